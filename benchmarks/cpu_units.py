"""What INT8 costs and loses on CPUs with VNNI and without, on both CPU engines.

    python -m benchmarks.cpu_units --json

OpenVINO obeys DNNL_MAX_CPU_ISA, so one machine shows what others with fewer units do: ``native`` is this CPU,
``AVX512_CORE`` one with AVX-512 and no VNNI, ``AVX2`` one with neither. ONNX Runtime has no such switch: its row ``no VNNI``
is what it computes on such a CPU, on this CPU's float units; weights that fit would take INT8 units there, so they have no such
row. ``saturating`` forces OpenVINO into the INT8 kernels that it
would take by itself. Each row set is a process of its own; within it runs take turns, and times are ratios to fp32's.

After ``make export``. ``demo-t2v`` is judged on steps of its own clips, ``cogvideox-2b-2`` (2B's width, two layers, random
weights; 2×994 tokens) and the decoder on random inputs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.engines import fp32_bundle, in_precision
from benchmarks.variants import VARIANTS
from reelquant.quant.calibration.ranges import Ranges
from reelquant.quant.decoder_bundle import DecoderTrial, quantize_decoder
from reelquant.quant.evaluation.teacher import Trial, pooled_rel_l2
from reelquant.quant.graph.graph_files import load_graph
from reelquant.quant.graph.static_shapes import known_shape
from reelquant.quant.quantize import quantize_bundle
from reelquant.quant.recipe import Recipe
from reelquant.runtime.bundle import Bundle
from reelquant.runtime.engines import onnxruntime
from reelquant.runtime.engines.openvino import kernels
from reelquant.runtime.engines.registry import open_onnx
from reelquant.runtime.engines.session import Feeds
from reelquant.runtime.machine.cpu_units import instruction_sets
from reelquant.runtime.machine.doctor import machine
from reelquant.runtime.sizes import Size
from reelquant.runtime.tune.timing import in_turns, ratios, step_feeds

PRECISIONS = ("fp32", "int8", "int8-reduced", "int8-weight")
SATURATING = "int8 (saturating)"
CAPS = ("native", "AVX512_CORE", "AVX2")


def prepared(bundles: Path, work: Path) -> dict[str, dict[str, Path]]:
    """Graphs by network and precision; those that ``make export`` did not leave are made and kept in ``work``."""
    demo = Bundle.open(bundles / "demo-t2v-fp32")
    found: dict[str, dict[str, Path]] = {"demo-t2v": {}, "cogvideox-2b-2": {}, "demo-t2v decoder": {}}
    ranges = Ranges.load(bundles / "stages" / "demo-t2v" / "ranges")
    large = fp32_bundle(work, "cogvideox-2b-2", VARIANTS["cogvideox-2b"].layers(2), ("transformer",))
    for precision in PRECISIONS:
        path = bundles / f"demo-t2v-{precision}"
        if not path.exists():
            path = work / path.name
        if not path.exists():
            quantize_bundle(demo, ranges, Recipe.load(precision), path)
        found["demo-t2v"][precision] = Bundle.open(path).graph("transformer", "main")
        other = large if precision == "fp32" else in_precision(large, precision, "fp32")
        found["cogvideox-2b-2"][precision] = other.graph("transformer", "main")
    decoder = work / "demo-t2v-decoder-int8"
    if not decoder.exists():
        quantize_decoder(demo, decoder, DecoderTrial("demo"))
    found["demo-t2v decoder"] = {
        "fp32": demo.graph("vae_decoder", "next"),
        "int8": Bundle.open(decoder).graph("vae_decoder", "next"),
    }
    return found


def fed(network: str, bundles: Path, graph: Path) -> tuple[Sequence[Feeds], str]:
    """What a network is run on, the first of it for time, and the output that is compared."""
    if network == "demo-t2v":
        steps = Trial("demo").record(Bundle.open(bundles / "demo-t2v-fp32"))
        return [step.feeds for step in steps], "velocity"
    if network != "demo-t2v decoder":
        return [step_feeds(Bundle.open(graph.parents[1]), Size(9, 256, 256))], "velocity"
    rng = np.random.default_rng(0)
    feeds = {}
    for value in load_graph(graph).graph.inputs:
        shape = known_shape(value, {"height": 12, "width": 12})
        assert shape is not None
        feeds[value.name or ""] = rng.standard_normal(shape, dtype=np.float32)
    return [feeds], "frames"


def measure(
    network: str, graphs: Mapping[str, Path], engine: str, feeds: Sequence[Feeds], output: str, repeats: int
) -> list[dict[str, Any]]:
    plans = {precision: open_onnx(engine, graph) for precision, graph in graphs.items()}
    if engine == "openvino" and kernels.saturates() and "decoder" not in network:
        kept, kernels.overflows = kernels.overflows, lambda model: False
        plans[SATURATING] = forced = open_onnx(engine, graphs["int8"])
        forced.run({name: feeds[0][name] for name in forced.inputs})  # compiled now
        kernels.overflows = kept
    wanted = [plans["fp32"].run({name: each[name] for name in plans["fp32"].inputs})[output] for each in feeds]
    lost = {
        precision: pooled_rel_l2((plan.run({n: each[n] for n in plan.inputs})[output] for each in feeds), wanted)
        for precision, plan in plans.items()
    }
    taken = in_turns({precision: (plan, feeds[0]) for precision, plan in plans.items()}, repeats)
    rows = []
    for precision in plans:
        ratio, *spread = (round(value, 3) for value in ratios(taken[precision], taken["fp32"]))
        rows.append({"precision": precision, "rel_l2": round(lost[precision], 5), "ratio": ratio, "spread": spread})
    return rows


def worker(arguments: argparse.Namespace) -> None:
    graphs = {precision: Path(path) for precision, path in json.loads(arguments.graphs).items()}
    if arguments.units == "no VNNI":
        setattr(onnxruntime, "has_int8_units", lambda: False)  # noqa: B010 - mypy knows no such attribute
        graphs = {precision: path for precision, path in graphs.items() if precision != "int8-reduced"}
    feeds, output = fed(arguments.network, arguments.bundles, graphs["fp32"])
    rows = measure(arguments.network, graphs, arguments.engine, feeds, output, arguments.repeats)
    print(json.dumps(rows))


def apart(
    arguments: argparse.Namespace, network: str, graphs: Mapping[str, Path], engine: str, units: str, repeats: int
) -> list[dict[str, Any]]:
    """The rows of one network on one engine with some units, measured in a process of its own."""
    said = json.dumps({precision: str(path) for precision, path in graphs.items()})
    options = {"network": network, "graphs": said, "engine": engine, "units": units, "repeats": repeats}
    command = [sys.executable, "-m", "benchmarks.cpu_units", "--bundles", str(arguments.bundles)]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    capped = {"DNNL_MAX_CPU_ISA": units} if units in CAPS[1:] else {}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **capped})
    if done.returncode:
        raise RuntimeError(f"{network} on {engine} failed: {done.stderr[-800:]}")
    rows: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return [{"network": network, "engine": engine, "units": units, **row} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundles", type=Path, default=Path("build"), help="where make export put demo-t2v-fp32")
    parser.add_argument("--work", type=Path, default=Path("build/cpu-units"), help="keeps what is made for this")
    parser.add_argument("--repeats", type=int, default=20, help="timed runs of each; of the large network a quarter")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    for name in ("--network", "--graphs", "--engine", "--units"):
        parser.add_argument(name, help=argparse.SUPPRESS)  # of the processes that measure
    arguments = parser.parse_args()
    if arguments.graphs:
        worker(arguments)
        return
    arguments.work.mkdir(parents=True, exist_ok=True)
    rows = []
    for network, graphs in prepared(arguments.bundles, arguments.work).items():
        repeats = max(3, arguments.repeats // 4) if "2b" in network else arguments.repeats
        wanted = [("openvino", cap) for cap in CAPS] + [("onnxruntime", "native")]
        if "decoder" not in network:  # its weights fit
            wanted.append(("onnxruntime", "no VNNI"))
        for engine, units in wanted:
            print(f"{network} on {engine}, {units}", file=sys.stderr)
            rows += apart(arguments, network, graphs, engine, units, repeats)
    if arguments.json:
        print(json.dumps({"cpu": machine().cpu, "units": instruction_sets(), "rows": rows}, indent=1))
        return
    print("| network | engine | units | precision | rel. L2 | time, of fp32's (10–90 %) |\n|---|---|---|---|---|---|")
    for row in rows:
        low, high = row["spread"]
        print(
            f"| {row['network']} | {row['engine']} | {row['units']} | {row['precision']} | {row['rel_l2']:.5f} "
            f"| {row['ratio']:.2f} ({low:.2f}–{high:.2f}) |"
        )


if __name__ == "__main__":
    main()
