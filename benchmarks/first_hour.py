"""The first look at a GPU: what runs there, how exactly and how fast, each figure written as soon as it is there.

    python -m benchmarks.first_hour --bundles build --out first-hour.jsonl

Sections are processes of their own with a time limit, so that one that crashes or hangs costs only itself; a section whose
line is in ``--out`` is not run again. Needs a CUDA build of torch, and whatever engines are to be looked at: onnxruntime-gpu,
tensorrt-rtx. ``--device cpu`` runs what a machine without a GPU can, to try the program itself. ``--reference FILE`` keeps
the demo's latents on this CPU (made once, on any machine, with ``--section reference``).

``port`` is CUDA through our port, ``ort_*`` ONNX Runtime, ``rtx`` TensorRT-RTX for this GPU, ``diffusers`` the baseline on
the demo, ``wide`` one guided step of CogVideoX-2b's width, two layers, random weights, in ONNX Runtime and in diffusers.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

PROMPT = "a red circle moves right on a white background"
STEPS = 8
Facts = dict[str, Any]


def machine(arguments: argparse.Namespace) -> Facts:
    """Hardware and versions."""
    asked = [
        "nvidia-smi",
        "--query-gpu=name,driver_version,memory.total,clocks.sm,power.limit",
        "--format=csv,noheader",
    ]
    try:
        gpu = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    except OSError as error:
        gpu = str(error)
    packages = ("torch", "diffusers", "onnxruntime-gpu", "onnxruntime", "tensorrt-rtx", "tensorrt-rtx-cu13-libs",
                "cuda-bindings", "numpy", "onnx-ir")  # fmt: skip
    versions: Facts = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {"gpu": gpu, "python": sys.version.split()[0], "versions": versions}


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

    preload(onnxruntime)
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
    from reelquant.quant.evaluation.timing import step_feeds

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
    import onnxruntime

    preload(onnxruntime)
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
                "latents": relative(latents, wanted),
                "frames": relative(shown, frames),
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
                found[f"{target} clip"] = relative(latents, kept["latents"])
        except Exception as error:  # noqa: BLE001 - what it says is the finding
            found[f"{target} clip"] = f"{type(error).__name__}: {error}"[:800]
    return found


def diffusers(arguments: argparse.Namespace) -> Facts:
    """Seconds of one guided run of the demo's transformer in diffusers, eager, on the device."""
    import torch
    from diffusers import CogVideoXTransformer3DModel

    from reelquant.quant.evaluation.timing import step_feeds
    from reelquant.runtime.bundle import Bundle

    feeds = step_feeds(Bundle.open(arguments.bundles / "demo-t2v-fp32"))
    found: Facts = {}
    for dtype in (torch.float32, torch.float16):
        if arguments.device == "cpu" and dtype != torch.float32:
            continue
        network = CogVideoXTransformer3DModel.from_pretrained(
            Path("demo/checkpoints/t2v/transformer"), torch_dtype=dtype
        )
        found[str(dtype)] = spread(torch_step(network.to(arguments.device).eval(), feeds, dtype, arguments.device, 20))
    return found


def wide(arguments: argparse.Namespace) -> Facts:
    """One guided step at 2B's width, two layers: ONNX Runtime in fp32 and fp16, and diffusers eager and compiled in fp16."""
    import torch
    from diffusers import CogVideoXTransformer3DModel

    from benchmarks.engines import fp32_bundle, in_precision
    from benchmarks.variants import VARIANTS
    from reelquant.quant.evaluation.timing import step_feeds
    from reelquant.runtime.engines.registry import open_onnx
    from reelquant.runtime.sizes import parse_clip

    size = parse_clip(arguments.clip)
    work = arguments.out.parent / "wide"
    work.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    fp32 = fp32_bundle(work, "cogvideox-2b-2", VARIANTS["cogvideox-2b"].layers(2), ("transformer",))
    found: Facts = {"clip": arguments.clip, "export_seconds": round(time.monotonic() - began, 1)}
    feeds = step_feeds(fp32, size)
    wanted = None
    dtypes = (torch.float16,) if arguments.device == "cuda" else (torch.float32,)
    for dtype in dtypes:
        checkpoint = next(path for path in work.iterdir() if (path / "transformer" / "config.json").exists())
        network = CogVideoXTransformer3DModel.from_pretrained(checkpoint / "transformer", torch_dtype=dtype)
        network = network.to(arguments.device).eval()
        taken = torch_step(network, feeds, dtype, arguments.device, 5)
        found[f"diffusers {dtype}"] = spread(taken)
        if arguments.device == "cuda":
            found["diffusers peak bytes"] = torch.cuda.max_memory_allocated()
            network.compile(mode="max-autotune-no-cudagraphs")
            found[f"diffusers compiled {dtype}"] = spread(torch_step(network, feeds, dtype, arguments.device, 5))
        del network
        if arguments.device == "cuda":
            torch.cuda.empty_cache()
    import onnxruntime

    preload(onnxruntime)
    for precision in ("fp32", "fp16"):
        if arguments.device == "cpu" and precision != "fp32":
            continue
        try:
            bundle = fp32 if precision == "fp32" else in_precision(fp32, precision, "fp16")
            plan = open_onnx("onnxruntime", bundle.graph("transformer", "main"))
            half = np.float16 if precision == "fp16" else np.float32
            given = {
                name: feeds[name].astype(half) if feeds[name].dtype == np.float32 else feeds[name]
                for name in plan.inputs
            }
            taken = []
            for turn in range(6):
                began = time.perf_counter()
                velocity = plan.run(given)["velocity"]
                if turn:
                    taken.append(time.perf_counter() - began)
            wanted = velocity if wanted is None else wanted
            found[f"onnxruntime {precision}"] = {"seconds": spread(taken), "to_fp32": relative(velocity, wanted)}
            found[f"onnxruntime {precision} gpu_bytes"] = gpu_bytes_used(arguments)
            del plan
        except Exception as error:  # noqa: BLE001 - what it says is the finding
            found[f"onnxruntime {precision}"] = f"{type(error).__name__}: {error}"[:600]
    return found


def preload(onnxruntime: Any) -> None:
    """CUDA's libraries from the pip packages that torch brings, which onnxruntime-gpu does not find by itself."""
    if hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()


def torch_step(network: Any, feeds: Any, dtype: Any, device: str, repeats: int) -> list[float]:
    """Seconds of guided runs of diffusers' transformer, after two that do not count."""
    import torch

    def given(name: str) -> Any:
        value = torch.from_numpy(feeds[name]).to(device)
        return value.to(dtype) if value.is_floating_point() else value

    rotary = (torch.from_numpy(feeds[f"rotary_{part}"]).to(device) for part in ("cos", "sin"))
    text = feeds["text"].shape[1]
    # Ours cover the text too (decision 2).
    tables = tuple(table[text:] for table in rotary) if "rotary_cos" in feeds else None
    keys = {"hidden_states": "latents", "encoder_hidden_states": "text", "timestep": "timestep"}
    arguments = {key: given(name) for key, name in keys.items()}
    taken = []
    with torch.inference_mode():
        for turn in range(2 + repeats):
            wait(device)
            began = time.perf_counter()
            network(**arguments, image_rotary_emb=tables, return_dict=False)
            wait(device)
            if turn >= 2:
                taken.append(time.perf_counter() - began)
    return taken


def wait(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def gpu_bytes_used(arguments: argparse.Namespace) -> int | None:
    """Of the whole GPU, as the driver counts them."""
    if arguments.device == "cpu":
        return None
    from cuda.bindings import runtime

    _, free, total = runtime.cudaMemGetInfo()
    return int(total - free)


def relative(found: Any, wanted: Any) -> float:
    a, b = (np.asarray(value, np.float64) for value in (found, wanted))
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def spread(taken: list[float]) -> Facts:
    return {"median": round(statistics.median(taken), 5), "least": round(min(taken), 5), "most": round(max(taken), 5)}


# In order of what is learned per second; each with its limit in seconds.
SECTIONS: dict[str, tuple[Callable[[argparse.Namespace], Facts], int]] = {
    "machine": (machine, 30),
    "port": (port, 30),
    "ort_open": (ort_open, 60),
    "ort_clip": (ort_clip, 100),
    "rtx": (rtx, 100),
    "diffusers": (diffusers, 60),
    "wide": (wide, 160),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundles", type=Path, default=Path("build"), help="where demo-t2v-PRECISION are")
    parser.add_argument("--precisions", nargs="+", default=["fp32", "int8"], help="of the demo clips")
    parser.add_argument("--out", type=Path, default=Path("build/first-hour.jsonl"))
    parser.add_argument("--reference", type=Path, default=Path("build/first-hour.npz"))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--clip", default="17x480x720", help="of the wide step")
    parser.add_argument("--section", help="run this one alone, in this process")
    arguments = parser.parse_args()
    if arguments.section:
        run = reference if arguments.section == "reference" else SECTIONS[arguments.section][0]
        print(json.dumps(run(arguments)))
        return
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    done = {json.loads(line)["section"] for line in arguments.out.open()} if arguments.out.exists() else set()
    for section, (_, limit) in SECTIONS.items():
        if section in done:
            continue
        began = time.monotonic()
        command = [sys.executable, "-m", "benchmarks.first_hour", *sys.argv[1:], "--section", section]
        facts: Facts
        try:
            ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit)
            lines = ran.stdout.splitlines()
            facts = {"found": json.loads(lines[-1])} if ran.returncode == 0 else {"failed": ran.stderr[-1500:]}
            facts["printed"] = "\n".join([*lines[:-1], ran.stderr])[-800:]
        except subprocess.TimeoutExpired:
            facts = {"failed": f"took more than {limit} s"}
        row = {"section": section, "seconds": round(time.monotonic() - began, 1), **facts}
        with arguments.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
