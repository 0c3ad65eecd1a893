"""One guided step of a transformer at 2B's width on this CPU: ours as `reelquant tune` chose it, beside everybody else's.

    make peers && python -m benchmarks.cpu_transformer --json
    python -m benchmarks.cpu_transformer --layers 4 --size 9x256x256 --turns 5 --no-compile

Random weights. All runners take turns in one process; times are medians with the tenth and ninetieth percentile, and ratios are taken
turn by turn to the best of diffusers. ``rel_l2`` is of the velocity, to diffusers in float32. The rates are of one large product, as
OpenVINO multiplies it here in float32, bf16 and INT8; ``of_rate`` is a step's linears and attentions by their count of operations
(performance of the whole step) over the rate of the runner's own linears. ``compiled_cache`` is what a cache of compiled models would save.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.engines import fp32_bundle, in_precision
from benchmarks.peers import PYTHON, hand_over, quantized_by
from benchmarks.variants import VARIANTS
from reelquant.quant.graph.graph_files import load_graph
from reelquant.quant.graph.linears import linear_nodes
from reelquant.runtime.bundle import Bundle
from reelquant.runtime.engines.openvino import kernels
from reelquant.runtime.engines.options import EngineOptions
from reelquant.runtime.engines.registry import get_engine, open_onnx
from reelquant.runtime.engines.session import Session
from reelquant.runtime.machine.cpu_units import instruction_sets, usable_cores
from reelquant.runtime.machine.doctor import machine
from reelquant.runtime.models import model_of
from reelquant.runtime.relative_l2 import relative_l2
from reelquant.runtime.sizes import Size
from reelquant.runtime.tune.measure import candidates, measure
from reelquant.runtime.tune.timing import ratios, step_feeds

Floats = NDArray[np.float32]
Run = Callable[[], Floats]
_MATRIX = (
    1988,
    1920,
    7680,
)  # rows, inner and columns of the product whose rate is measured: a feed-forward's at 9x256x256


def operations(bundle: Bundle, size: Size) -> float:
    """Floating-point operations of one guided step: 2 · (24·N·D² + 4·N²·D) for each layer, of N tokens of width D."""
    model = model_of(bundle.manifest)
    tokens, width = model.attention_tokens(size), model.heads * model.head_dim
    layers = int(bundle.manifest.transformer["num_layers"])
    return 2.0 * layers * (24 * tokens * width**2 + 4 * tokens**2 * width)


def rates() -> dict[str, float]:
    """Operations per second of one large product on OpenVINO, in each number format."""
    from openvino import Model, opset13

    rows, inner, columns = _MATRIX
    rng, found = np.random.default_rng(0), {}
    for name in ("fp32", "bf16", "int8"):
        x = opset13.parameter([rows, inner], np.float32)
        ends = [opset13.constant(np.float32(end)) for end in (-4, 4 * 127 / 128)]
        weight = opset13.constant(rng.standard_normal((columns, inner), dtype=np.float32))
        if name == "int8":
            whole = rng.integers(-127, 128, (columns, inner), np.int8)
            weight = opset13.multiply(
                opset13.convert(opset13.constant(whole), "f32"),
                opset13.constant(np.full((columns, 1), 0.01, np.float32)),
            )
        fed = opset13.fake_quantize(x, *ends, *ends, 256) if name == "int8" else x
        model = Model([opset13.matmul(fed, weight, False, True)], [x])
        options = {**kernels.OPTIONS, **({"INFERENCE_PRECISION_HINT": "bf16"} if name == "bf16" else {})}
        request = kernels.core().compile_model(model, "CPU", options).create_infer_request()
        values = rng.standard_normal((rows, inner), dtype=np.float32)
        taken = []
        for _ in range(7):
            began = time.perf_counter()
            request.infer([values], share_inputs=True, share_outputs=True)
            taken.append(time.perf_counter() - began)
        found[name] = 2.0 * rows * inner * columns / statistics.median(taken[2:])
    return found


def diffusers_runs(checkpoint: Path, feeds: Mapping[str, Any], compiled: bool) -> dict[str, Run]:
    """The checkpoint's transformer in diffusers, eager and compiled, in float32 and bf16."""
    import torch
    from diffusers import CogVideoXTransformer3DModel

    torch.set_num_threads(usable_cores())
    runs: dict[str, Run] = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        eager = CogVideoXTransformer3DModel.from_pretrained(checkpoint, torch_dtype=dtype).eval()
        values = [
            *(torch.from_numpy(feeds[key]).to(dtype) for key in ("latents", "text")),
            torch.from_numpy(feeds["timestep"]),
        ]
        modules = {f"diffusers eager {name}": eager}
        if compiled:
            modules[f"diffusers compiled {name}"] = torch.compile(eager)
        for runner, module in modules.items():
            runs[runner] = partial(_module_run, module, values)
    return runs


def _module_run(module: Any, values: Sequence[Any]) -> Floats:
    import torch

    with torch.inference_mode():
        return np.asarray(module(*values, return_dict=False)[0].float().numpy())


def openvino_run(graph: Path, feeds: Mapping[str, Any], hint: str) -> Run:
    """A graph as OpenVINO runs it by its own choice, for shapes that it knows, with its hint of precision."""
    model = kernels.core().read_model(str(graph))
    names = [port.any_name for port in model.inputs]
    model.reshape({name: list(feeds[name].shape) for name in names})
    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": hint}
    request = kernels.core().compile_model(model, "CPU", options).create_infer_request()
    return lambda: np.array(request.infer([feeds[name] for name in names], share_inputs=True, share_outputs=True)[0])


def onnx_run(engine: str, graph: Path, feeds: Mapping[str, Any], options: EngineOptions | None = None) -> Run:
    session = open_onnx(engine, graph, options)
    fed = {name: feeds[name] for name in session.inputs}
    return lambda: session.run(fed)["velocity"]


def peer_int8(work: Path, bundle: Bundle, feeds: Mapping[str, Any]) -> dict[str, Run]:
    """What ONNX Runtime's and NNCF's own quantizers make of every block's linears, on the engines that they are for."""
    if not PYTHON.exists():
        print("no .venv-peers: ONNX Runtime's and NNCF's own int8 are left out (make peers)", file=sys.stderr)
        return {}
    graph = bundle.graph("transformer", "main")
    linears = [each.name for each in linear_nodes(load_graph(graph)) if each.name.startswith("transformer_blocks.")]
    linears = [name for name in linears if ".attn1.to_" in name or ".ff.net." in name]
    runs: dict[str, Run] = {}
    for peer, engine in (("onnxruntime", "onnxruntime"), ("nncf", "openvino")):
        folder = work / f"peer-{peer}"
        if not folder.exists():
            folder.mkdir(parents=True)
            hand_over(folder, graph, [feeds], linears)
        found = sorted(folder.glob(f"{peer}-int8.*"))
        made = found[0] if found else quantized_by(peer, "int8", folder, PYTHON)
        runs[f"{peer} int8 on {engine}"] = (
            openvino_run(made, feeds, "f32") if engine == "openvino" else onnx_run(engine, made, feeds)
        )
    return runs


def ours(bundles: Sequence[Bundle], size: Size, feeds: Mapping[str, Any], seconds: float) -> tuple[dict[str, Run], str]:
    """Every bundle on what `tune` found to be the fastest for it, and the name of the fastest of all."""
    runs: dict[str, Run] = {}
    best, least = "", float("inf")
    for bundle in bundles:
        way = measure(bundle, size, candidates(bundle), seconds)[0]
        session = get_engine(way.candidate.engine).open(bundle, "transformer", "main", way.candidate.options())
        name = f"reelquant {bundle.manifest.precision} on {way.candidate.engine}"
        runs[name] = session_run(session, {key: feeds[key] for key in session.inputs}, way.candidate.batch)
        if way.step_seconds < least:
            best, least = name, way.step_seconds
    return runs, best


def session_run(session: Session, fed: Mapping[str, Any], batch: int) -> Run:
    """Both halves of guidance in one run, or one after the other."""
    if batch == 2:
        return lambda: session.run(fed)["velocity"]
    rows = ("latents", "text", "timestep", "image_latents")
    halves = [{key: value[i : i + 1] if key in rows else value for key, value in fed.items()} for i in range(2)]
    return lambda: np.concatenate([session.run(half)["velocity"] for half in halves])


def compiled_cache(graph: Path, feeds: Mapping[str, Any]) -> dict[str, float]:
    """Seconds until a graph can run: compiled from its file, and loaded from what OpenVINO exports; and that export's bytes."""
    model = kernels.core().read_model(str(graph))
    names = [port.any_name for port in model.inputs]
    model.reshape({name: list(feeds[name].shape) for name in names})
    began = time.perf_counter()
    compiled = kernels.core().compile_model(model, "CPU", kernels.OPTIONS)
    made = time.perf_counter() - began
    exported: Any = compiled.export_model()
    blob = exported if isinstance(exported, bytes) else exported.getvalue()
    began = time.perf_counter()
    kernels.core().import_model(io.BytesIO(blob), "CPU", kernels.OPTIONS)
    loaded = time.perf_counter() - began
    return {"compile_seconds": round(made, 3), "load_seconds": round(loaded, 3), "bytes": len(blob)}


def measured(runs: Mapping[str, Run], turns: int) -> tuple[dict[str, list[float]], dict[str, Floats]]:
    """Seconds of each turn after two that do not count, and what came out."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    found: dict[str, Floats] = {}
    for turn in range(turns + 2):
        for name, run in runs.items():
            began = time.perf_counter()
            found[name] = run()
            if turn >= 2:
                taken[name].append(time.perf_counter() - began)
        print(f"turn {turn + 1} of {turns + 2}", file=sys.stderr)
    return taken, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--like", choices=VARIANTS, default="cogvideox-2b")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--size", type=Size.parse, default=Size(9, 256, 256))
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=30.0, help="what tune takes for each bundle")
    parser.add_argument("--no-compile", action="store_true", help="without torch.compile, which needs a C++ compiler")
    parser.add_argument("--work", type=Path, default=Path("build/cpu"), help="keeps what is made for this")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    name = f"{arguments.like}-{arguments.layers}"
    fp32 = fp32_bundle(arguments.work, name, VARIANTS[arguments.like].layers(arguments.layers), ("transformer",))
    int8 = in_precision(fp32, "int8", "fp32")
    graph, feeds = fp32.graph("transformer", "main"), step_feeds(fp32, arguments.size)
    checkpoint = arguments.work / f"{name}-transformer" / "transformer"
    own, best_of_ours = ours((fp32, int8), arguments.size, feeds, arguments.seconds)
    theirs = diffusers_runs(checkpoint, feeds, not arguments.no_compile)
    rest = {
        "onnxruntime fp32": onnx_run("onnxruntime", graph, feeds),
        "openvino fp32": openvino_run(graph, feeds, "f32"),
        **({"openvino bf16": openvino_run(graph, feeds, "bf16")} if kernels.multiplies_bf16() else {}),
        **peer_int8(arguments.work / name, fp32, feeds),
    }
    taken, found = measured({**theirs, **rest, **own}, arguments.turns)
    speed, count = rates(), operations(fp32, arguments.size)
    best = min(theirs, key=lambda runner: statistics.median(taken[runner]))
    best_of_rest = min(rest, key=lambda runner: statistics.median(taken[runner]))
    rows: list[dict[str, Any]] = []
    for runner, seconds in taken.items():
        ratio, *spread = (round(value, 3) for value in ratios(seconds, taken[best]))
        format = "int8" if "int8" in runner else "bf16" if "bf16" in runner else "fp32"
        rows.append(
            {
                "runner": runner,
                "seconds": round(statistics.median(seconds), 4),
                "of_best_diffusers": ratio,
                "spread": spread,
                "rel_l2": round(relative_l2(found[runner], found["diffusers eager fp32"]), 5),
                "of_rate": round(count / statistics.median(seconds) / speed[format], 3),
            }
        )
    result = {
        "cpu": machine().cpu,
        "units": instruction_sets(),
        "network": name,
        "size": str(arguments.size),
        "operations": count,
        "rates": {key: round(value / 1e9, 1) for key, value in speed.items()},
        "best_diffusers": best,
        "best_of_rest": best_of_rest,
        "ours": best_of_ours,
        "ours_times_best_diffusers": round(ratios(taken[best], taken[best_of_ours])[0], 2),
        "ours_times_best_of_rest": round(ratios(taken[best_of_rest], taken[best_of_ours])[0], 2),
        "compiled_cache": compiled_cache(int8.graph("transformer", "main"), feeds),
        "rows": rows,
    }
    if arguments.json:
        print(json.dumps(result, indent=1))
        return
    print("| runner | seconds | of the best diffusers (10–90 %) | rel. L2 | of the rate |\n|---|---|---|---|---|")
    for row in rows:
        low, high = row["spread"]
        print(
            f"| {row['runner']} | {row['seconds']:.3f} | {row['of_best_diffusers']:.2f} ({low:.2f}–{high:.2f}) "
            f"| {row['rel_l2']:.5f} | {row['of_rate']:.0%} |"
        )


if __name__ == "__main__":
    main()
