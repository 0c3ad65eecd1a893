"""Our own code on the GPU: CUDA through our port, ONNX Runtime, and TensorRT-RTX for this GPU."""

from __future__ import annotations

import argparse
import shutil

import numpy as np

from benchmarks.first_hour.measures import PROMPT, STEPS, Facts, gpu_bytes_used, spread
from reelquant.runtime.bundle import Bundle
from reelquant.runtime.relative_l2 import relative_l2

ORT = "onnxruntime-cuda"


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
    """What the engine says of itself, and where ONNX Runtime puts the nodes of every graph of the demo, as the engine opens it."""
    import onnxruntime

    from reelquant.runtime.engines.onnxruntime_cuda.starts import load_libraries, providers
    from reelquant.runtime.engines.registry import get_engine

    engine = get_engine(ORT)
    report = engine.report()
    found: Facts = {"devices": report.devices, "reason": report.reason, "missing": load_libraries(onnxruntime)}
    built = cuda_bundle(arguments, "fp32")
    nodes: dict[str, dict[str, dict[str, int]]] = {}
    for component, name in built.manifest.graphs():
        own, made = built.graph(component, name), built.manifest.engines[ORT]["graphs"].get(f"{component}/{name}")
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(own.parent))
        graph = (built.path / made["file"] if made else own).read_bytes()
        session = onnxruntime.InferenceSession(graph, options, providers=providers(0), enable_fallback=0)
        for part in session.get_provider_graph_assignment_info():
            for node in part.get_nodes():
                counted = nodes.setdefault(f"{component}/{name}", {}).setdefault(part.ep_name, {})
                counted[node.op_type] = counted.get(node.op_type, 0) + 1
    return {**found, "nodes": nodes}


def cuda_bundle(arguments: argparse.Namespace, precision: str) -> Bundle:
    """A copy of the demo's bundle beside ``--out``, with attention as one node."""
    from reelquant.runtime.engines.options import BuildSpec
    from reelquant.runtime.engines.registry import get_engine

    folder = arguments.out.parent / f"cuda-{precision}"
    if not folder.exists():
        shutil.copytree(arguments.bundles / f"demo-t2v-{precision}", folder)
    return get_engine(ORT).build(Bundle.open(folder), BuildSpec())


def ort_clip(arguments: argparse.Namespace) -> Facts:
    """Whole demo clips: latents and frames against the CPU's, seconds, and memory over twenty decodes."""
    from reelquant.runtime import Request, load_pipeline
    from reelquant.runtime.monitor import Monitor

    with np.load(arguments.reference) as kept:
        wanted, frames = kept["latents"], kept["frames"]
    found: Facts = {}
    for precision in arguments.precisions:
        request = Request(PROMPT, seed=3, steps=STEPS)
        try:
            pipeline = load_pipeline(cuda_bundle(arguments, precision).path, ORT)
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
