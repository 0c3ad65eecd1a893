"""Our own code on the GPU: CUDA through our port, ONNX Runtime, and TensorRT-RTX for this GPU."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.first_hour.measures import PROMPT, STEPS, Facts, gpu_bytes_used, spread
from reelquant.runtime.relative_l2 import relative_l2


def port(arguments: argparse.Namespace) -> Facts:
    """Every method of the CUDA port, and that copies, events and a recorded graph do what they say."""
    from reelquant.runtime.engines.tensorrt.cuda import CudaRuntime

    cuda = CudaRuntime()
    stream = cuda.stream()
    sent, back = np.arange(1 << 22, dtype=np.float32), np.zeros(1 << 22, np.float32)
    address = cuda.allocate(sent.nbytes)
    found: Facts = {"aligned": address % 256 == 0}
    begin = cuda.record(stream)
    cuda.to_device(address, sent, stream)
    cuda.to_host(back, address, stream)
    end = cuda.record(stream)
    cuda.synchronize(stream)
    found["round_trip"] = bool(np.array_equal(sent, back))
    found["gb_per_s"] = round(2 * sent.nbytes / cuda.seconds(begin, end) / 1e9, 2)
    try:
        cuda.begin_capture(stream)
        cuda.to_host(back, address, stream)
        graph = cuda.end_capture(stream)
        back[:] = 0
        cuda.launch(graph, stream)
        cuda.synchronize(stream)
        found["graph"] = bool(np.array_equal(sent, back))
        cuda.free_graph(graph)
    except Exception as error:  # noqa: BLE001 - what it says is the finding
        found["graph"] = f"{type(error).__name__}: {error}"
    try:
        cuda.allocate(1 << 50)
        found["too_much"] = "allocated"
    except Exception as error:  # noqa: BLE001 - as above
        found["too_much"] = f"{type(error).__name__}: {error}"
    cuda.to_device(address, sent, stream)  # the failure before left nothing behind
    cuda.synchronize(stream)
    cuda.free(address)
    return found


def reference(arguments: argparse.Namespace) -> Facts:
    """The demo's latents in fp32 on a CPU engine, kept in ``--reference``."""
    from reelquant.runtime import Request, load_pipeline

    pipeline = load_pipeline(arguments.bundles / "demo-t2v-fp32", "openvino")
    request = Request(PROMPT, seed=3, steps=STEPS)
    latents = pipeline.sample(request)
    np.savez(arguments.reference, latents=latents, frames=pipeline.decode(latents))
    return {"frames": list(latents.shape)}


def ort_open(arguments: argparse.Namespace) -> Facts:
    """Which providers a session of ours has, and which nodes of the demo's transformer fall to the CPU."""
    import onnxruntime

    from reelquant.runtime.bundle import Bundle
    from reelquant.runtime.engines.registry import get_engine, open_onnx

    bundle = Bundle.open(arguments.bundles / "demo-t2v-fp32")
    found: Facts = {"devices": get_engine("onnxruntime").report().devices}
    plan: Any = open_onnx("onnxruntime", bundle.graph("transformer", "main"))
    found["providers"] = plan._session.get_providers()
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(arguments.out.with_suffix(""))
    session = onnxruntime.InferenceSession(
        str(bundle.graph("transformer", "main")), options, providers=found["providers"]
    )
    from reelquant.runtime.tune.timing import step_feeds

    feeds = step_feeds(bundle)
    session.run(None, {value.name: feeds[value.name] for value in session.get_inputs()})
    events = json.loads(Path(session.end_profiling()).read_text())
    nodes: dict[str, dict[str, int]] = {}
    for event in events:
        arguments_of = event.get("args", {})
        if event.get("cat") == "Node" and "provider" in arguments_of:
            counted = nodes.setdefault(arguments_of["provider"], {})
            counted[arguments_of["op_name"]] = counted.get(arguments_of["op_name"], 0) + 1
    return {**found, "nodes": nodes}


def ort_clip(arguments: argparse.Namespace) -> Facts:
    """Whole demo clips: latents and frames against the CPU's, seconds, and memory over twenty decodes."""
    from reelquant.runtime import Request, load_pipeline
    from reelquant.runtime.monitor import Monitor

    with np.load(arguments.reference) as kept:
        wanted, frames = kept["latents"], kept["frames"]
    found: Facts = {}
    for precision in arguments.precisions:
        pipeline = load_pipeline(arguments.bundles / f"demo-t2v-{precision}", "onnxruntime")
        request = Request(PROMPT, seed=3, steps=STEPS)
        try:
            latents = pipeline.sample(request)
            taken = []
            for _ in range(5):
                monitor = Monitor()
                latents = pipeline.sample(request, monitor)
                taken.append(monitor.seconds["denoise"] / STEPS)
            shown = pipeline.decode(wanted)
            memory = []
            for _ in range(20):
                pipeline.decode(wanted)
                memory.append(gpu_bytes_used(arguments))
            found[precision] = {
                "latents": relative_l2(latents, wanted),
                "frames": relative_l2(shown, frames),
                "seconds_per_step": spread(taken),
                "gpu_bytes": [memory[0], memory[-1]],
            }
        except Exception as error:  # noqa: BLE001 - what it says is the finding
            found[precision] = f"{type(error).__name__}: {error}"[:600]
    return found


def rtx(arguments: argparse.Namespace) -> Facts:
    """What TensorRT-RTX says of this GPU, and a build for it."""
    from reelquant.runtime.bundle import Bundle
    from reelquant.runtime.engines.options import BuildSpec
    from reelquant.runtime.engines.tensorrt.flavor import RTX
    from reelquant.runtime.engines.tensorrt.stage import build_engines
    from reelquant.runtime.engines.tensorrt.targets import buildable
    from reelquant.runtime.machine.gpus import gpus

    found: Facts = {"gpus": [gpus().names, gpus().targets, gpus().driver], "builds_for": buildable(RTX)}
    bundle = Bundle.open(arguments.bundles / "demo-t2v-fp16")
    for target in ("current", *gpus().targets):
        try:
            built = build_engines(bundle, RTX, BuildSpec(gpus=(target,), cache=arguments.out.parent / "cache"))
            found[target] = built.manifest.engines[RTX.engine]["engines"][0]["evidence"]
        except Exception as error:  # noqa: BLE001 - what it says is the finding
            found[target] = f"{type(error).__name__}: {error}"[:800]
            continue
        try:
            from reelquant.runtime import Request, load_pipeline

            pipeline = load_pipeline(built.path, RTX.engine)
            request = Request(PROMPT, seed=3, steps=STEPS)
            latents = pipeline.sample(request)
            with np.load(arguments.reference) as kept:
                found[f"{target} clip"] = relative_l2(latents, kept["latents"])
        except Exception as error:  # noqa: BLE001 - what it says is the finding
            found[f"{target} clip"] = f"{type(error).__name__}: {error}"[:800]
    return found
