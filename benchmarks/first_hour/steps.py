"""One guided step beside diffusers': of the demo, and at CogVideoX-2b's width."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from benchmarks.first_hour.measures import Facts, gpu_bytes_used, spread
from reelquant.runtime.relative_l2 import relative_l2


def diffusers(arguments: argparse.Namespace) -> Facts:
    """Seconds of one guided run of the demo's transformer in diffusers, eager, on the device."""
    import torch
    from diffusers import CogVideoXTransformer3DModel

    from reelquant.runtime.bundle import Bundle
    from reelquant.runtime.tune.timing import step_feeds

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
    from reelquant.runtime.engines.registry import open_onnx
    from reelquant.runtime.sizes import Size
    from reelquant.runtime.tune.timing import step_feeds

    size = Size.parse(arguments.size)
    work = arguments.out.parent / "wide"
    work.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    fp32 = fp32_bundle(work, "cogvideox-2b-2", VARIANTS["cogvideox-2b"].layers(2), ("transformer",))
    found: Facts = {"clip": arguments.size, "export_seconds": round(time.monotonic() - began, 1)}
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
    engine = "onnxruntime-cuda" if arguments.device == "cuda" else "onnxruntime"
    for precision in ("fp32", "fp16"):
        if arguments.device == "cpu" and precision != "fp32":
            continue
        try:
            bundle = fp32 if precision == "fp32" else in_precision(fp32, precision, "fp16")
            plan = open_onnx(engine, bundle.graph("transformer", "main"))  # attention as one node
            constants = {name: value for name, value in feeds.items() if name not in ("latents", "timestep")}
            given = {**feeds, **plan.put(constants)}  # float32 whatever the graph computes in
            taken = []
            for turn in range(6):
                began = time.perf_counter()
                velocity = plan.run(given)["velocity"]
                if turn:
                    taken.append(time.perf_counter() - began)
            wanted = velocity if wanted is None else wanted
            found[f"{engine} {precision}"] = {"seconds": spread(taken), "to_fp32": relative_l2(velocity, wanted)}
            found[f"{engine} {precision} gpu_bytes"] = gpu_bytes_used(arguments)
            del plan
        except Exception as error:  # noqa: BLE001 - what it says is the finding
            found[f"{engine} {precision}"] = f"{type(error).__name__}: {error}"[:600]
    return found


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
