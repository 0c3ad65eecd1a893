"""Our quantizer beside the peers': the same model, linears, calibration samples and held-out samples.

    make peers && python -m benchmarks.quantizers --json

Of each quantizer, model and precision: ``rel_l2`` of the transformer's velocity on held-out steps (teacher forcing, all
steps together), and of the demo's clips over held-out prompts PSNR and SSIM to fp32 (same noise, mean over clips), prompt
fidelity, and ``bytes`` of the transformer on disk. ``noise_floor``: fp32 on the other engine against fp32. The 2B-width
checkpoint is random, four layers deep, and runs on random inputs; it has no clips.

Peers (ONNX Runtime, NVIDIA ModelOpt, NNCF) run in an environment of their own, since they need other packages' versions.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from skimage.metrics import structural_similarity

from benchmarks.engines import fp32_bundle
from benchmarks.peers import PEERS, PYTHON, hand_over, quantized_by
from benchmarks.variants import VARIANTS
from demo.fidelity import GUIDANCE, Pixels, Task, measure, pipeline_renderer, psnr, tasks
from reelquant.export.models.cogvideox.graphs import SAMPLES, transformer_inputs
from reelquant.quant.calibration.calibrate import Recorder, observed_transformer
from reelquant.quant.calibration.data import CalibrationData
from reelquant.quant.calibration.plan import CalibrationPlan
from reelquant.quant.calibration.ranges import Provenance, Ranges
from reelquant.quant.evaluation.teacher import Step, pooled_rel_l2, record_steps, velocities
from reelquant.quant.graph.graph_files import WEIGHTS, load_graph, load_mapped, save_graphs
from reelquant.quant.graph.linears import linear_nodes
from reelquant.quant.graph.scratch_session import scratch_session
from reelquant.quant.passes.insert_qdq import insert_qdq
from reelquant.quant.recipe import Recipe, Rule
from reelquant.runtime.bundle import Bundle
from reelquant.runtime.engines.options import EngineOptions
from reelquant.runtime.engines.registry import open_onnx
from reelquant.runtime.engines.session import Session
from reelquant.runtime.pipeline import Pipeline
from reelquant.runtime.request import Request

OURS = ("int8", "int8-minmax", "fp8", "fp8-minmax", "int8-weight", "int4-weight")
# What every quantizer quantizes here: the blocks' linears, and no attention, which no peer does.
LINEARS = ("transformer_blocks.*.attn1.to_*", "transformer_blocks.*.ff.net.*")
HELD_OUT = (8, 10)  # prompts and steps of each
_ENGINE = "openvino"


@dataclass(frozen=True)
class Case:
    """A model with the samples that all quantizers get; ``task`` is None for one that makes no clips."""

    name: str
    bundle: Bundle
    task: str | None
    calibration: Sequence[Step]
    held_out: Sequence[Step]

    @property
    def graph(self) -> Path:
        return self.bundle.graph("transformer", "main")


def demo_case(bundle: Bundle, task: str) -> Case:
    plan, data = CalibrationPlan(), CalibrationData.load("demo")
    seen = record_steps(bundle, data.requests(task, plan.prompts, plan.seed, plan.steps), "onnxruntime")
    prompts, steps = HELD_OUT
    unseen = [
        Request(one.scene.caption, one.image if task == "i2v" else None, seed=1000 + number, steps=steps)
        for number, one in enumerate(tasks(prompts))
    ]
    return Case(f"demo-{task}", bundle, task, seen, record_steps(bundle, unseen, "onnxruntime"))


def random_case(work: Path, layers: int) -> Case:
    name = f"cogvideox-2b-{layers}"
    bundle = fp32_bundle(work, name, VARIANTS["cogvideox-2b"].layers(layers), ("transformer",))
    inputs = {key: value.numpy() for key, value in transformer_inputs(bundle.manifest.transformer, SAMPLES[1]).items()}
    rng = np.random.default_rng(0)
    feeds = []
    for number in range(24):
        drawn = {key: rng.standard_normal(inputs[key].shape, dtype=np.float32) for key in ("latents", "text")}
        feeds.append({**inputs, **drawn, "timestep": np.full_like(inputs["timestep"], 999 - number * 41)})
    plan = open_onnx("onnxruntime", bundle.graph("transformer", "main"))
    steps = [Step(number, fed, plan.run(fed)["velocity"]) for number, fed in enumerate(feeds)]
    return Case(name, bundle, None, steps[::3] + steps[1::3], steps[2::3])


def ranges_of(case: Case) -> Ranges:
    """Ours, from exactly the samples that the peers get."""
    recorder, weights = Recorder(), case.graph.parent / WEIGHTS
    with scratch_session(observed_transformer(case.bundle), case.bundle.path, "onnxruntime", weights) as plan:
        for step in case.calibration:
            recorder.see(step.clip, step.feeds, plan.run(step.feeds))
    clips = 1 + max(step.clip for step in case.calibration)
    made = Provenance(case.name, 0, clips, "", 1, 1, 1, 1, "onnxruntime", "", case.bundle.digest)
    return recorder.ranges(made)


def linears_only(name: str) -> Recipe:
    """A recipe's method and numerics, for :data:`LINEARS` alone."""
    recipe = Recipe.load(name)
    numerics = {"int8": "int8", "fp8": "fp8", "int4": "int4_weight"}[name.split("-")[0]]
    if name == "int8-weight":
        numerics = "int8_weight"
    return replace(recipe, rules=tuple(Rule(match, numerics) for match in LINEARS))


def quantized(case: Case, work: Path, peers: Path | None, only: Sequence[str]) -> Iterator[tuple[str, str, Path]]:
    """(quantizer, precision, graph) of each, or of those named in ``only``."""
    ranges = ranges_of(case)
    for name in OURS:
        if only and name not in only:
            continue
        model = load_mapped(case.graph)
        insert_qdq(model, ranges, linears_only(name))
        save_graphs(work / name, {"main": model})
        plain = name.endswith("-minmax")
        yield ("plain min-max" if plain else "reelquant"), name.removesuffix("-minmax"), work / name / "main.onnx"
    if peers is None:
        return
    chosen = linears_only("int8")
    named = [linear.name for linear in linear_nodes(load_graph(case.graph)) if chosen.rule_of(linear.name)]
    hand_over(work, case.graph, [step.feeds for step in case.calibration], named)
    for peer, precision in PEERS:
        if only and f"{peer}-{precision}" not in only:
            continue
        try:
            yield peer, precision, quantized_by(peer, precision, work, peers)
        except RuntimeError as error:  # the others are still worth seeing
            print(error, file=sys.stderr)


def rel_l2(session: Session, steps: Sequence[Step]) -> float:
    return pooled_rel_l2(velocities(session, steps), [step.velocity for step in steps])


def drawn(case: Case, session: Session | None, wanted: list[Task], steps: int) -> list[Pixels]:
    """The clips of ``wanted`` with ``session`` as the transformer, everything else in fp32."""
    pipeline = Pipeline(case.bundle, EngineOptions(_ENGINE), transformer=session)
    _, draw = pipeline_renderer(pipeline, steps, GUIDANCE)
    return [draw(task) for task in wanted]


def clip_facts(case: Case, clips: list[Pixels], fp32: list[Pixels], wanted: list[Task]) -> dict[str, Any]:
    assert case.task is not None
    similar = [
        structural_similarity(a, b, channel_axis=-1, data_range=255)
        for one, two in zip(clips, fp32, strict=True)
        for a, b in zip(one, two, strict=True)
    ]
    return {
        "psnr": round(float(np.mean([min(psnr(a, b), 99.0) for a, b in zip(clips, fp32, strict=True)])), 2),
        "ssim": round(float(np.mean(similar)), 4),
        "fidelity": measure(case.task, iter(zip(wanted, clips, strict=True)))["fidelity"]["mean"],
    }


NO_CLIPS: dict[str, None] = {"psnr": None, "ssim": None, "fidelity": None}


def compare(
    case: Case, peers: Path | None, prompts: int, steps: int, only: Sequence[str]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    wanted = tasks(prompts) if case.task else []
    other = open_onnx("openvino", case.graph)
    floor: dict[str, Any] = {"rel_l2": rel_l2(other, case.held_out), **NO_CLIPS}
    fp32 = drawn(case, None, wanted, steps) if case.task else []
    stored = sum(path.stat().st_size for path in case.graph.parent.iterdir())
    first: dict[str, Any] = {"quantizer": "none", "model": case.name, "precision": "fp32", "rel_l2": 0.0, **NO_CLIPS}
    if case.task:
        again = drawn(case, open_onnx("onnxruntime", case.graph), wanted, steps)
        floor |= clip_facts(case, again, fp32, wanted)
        first |= {"fidelity": clip_facts(case, fp32, fp32, wanted)["fidelity"]}
    rows = [{**first, "bytes": stored}]
    print(json.dumps({"noise_floor": {case.name: floor}, **rows[0]}), file=sys.stderr, flush=True)
    with TemporaryDirectory() as folder:
        for quantizer, precision, graph in quantized(case, Path(folder), peers, only):
            plan = open_onnx(_engine_of(quantizer, precision), graph)
            row: dict[str, Any] = {"quantizer": quantizer, "model": case.name, "precision": precision}
            row |= {"rel_l2": rel_l2(plan, case.held_out), **NO_CLIPS}
            if case.task:
                row |= clip_facts(case, drawn(case, plan, wanted, steps), fp32, wanted)
            own = graph.parent.iterdir() if graph.parent != Path(folder) else graph.parent.glob(f"{graph.stem}.*")
            rows.append({**row, "bytes": sum(path.stat().st_size for path in own)})
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows, floor


def _engine_of(quantizer: str, precision: str) -> str:
    """OpenVINO, but for two INT8 graphs: it cannot load ModelOpt's, and ONNX Runtime's belongs on ONNX Runtime."""
    return "onnxruntime" if (quantizer, precision) in (("onnxruntime", "int8"), ("modelopt", "int8")) else _ENGINE


def table(rows: list[dict[str, Any]], floors: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| model | precision | quantizer | rel. L2 | PSNR to fp32 | SSIM | fidelity | transformer |",
        "|---|---|---|---|---|---|---|---|",
    ]

    def cells(row: dict[str, Any]) -> str:
        clip = ("–", "–") if row["psnr"] is None else (f"{row['psnr']:.1f} dB", f"{row['ssim']:.4f}")
        fidelity = "–" if row["fidelity"] is None else f"{row['fidelity']:.4f}"
        return f"{row['rel_l2']:.5f} | {clip[0]} | {clip[1]} | {fidelity}"

    for name, floor in floors.items():
        lines.append(f"| {name} | fp32 | noise floor: other engine | {cells(floor)} | |")
        lines += [
            f"| {name} | {row['precision']} | {row['quantizer']} | {cells(row)} | {row['bytes'] / 1e6:.1f} MB |"
            for row in sorted(
                (row for row in rows if row["model"] == name), key=lambda row: (row["precision"], row["rel_l2"])
            )
        ]
    return "\n".join(lines)


def _case(name: str, arguments: argparse.Namespace) -> Case:
    if name == "cogvideox-2b":
        return random_case(arguments.work, arguments.layers)
    bundle = Bundle.open(arguments.bundles / f"{name}-fp32")
    return demo_case(bundle, bundle.manifest.task)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    named = (*OURS, *(f"{peer}-{precision}" for peer, precision in PEERS))
    parser.add_argument("--models", nargs="+", default=["demo-t2v", "demo-i2v", "cogvideox-2b"])
    parser.add_argument("--bundles", type=Path, default=Path("build"), help="where make export put demo-TASK-fp32")
    parser.add_argument("--work", type=Path, default=Path("build/quantizers"), help="keeps the random checkpoint")
    parser.add_argument("--layers", type=int, default=4, help="of the random checkpoint")
    parser.add_argument("--peers", type=Path, default=PYTHON, help="made by make peers")
    parser.add_argument("--without-peers", action="store_true")
    parser.add_argument("--only", nargs="*", default=(), choices=named, help="some of the quantizers")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--steps", type=int, default=8, help="of each clip")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if not arguments.without_peers and not arguments.peers.exists():
        parser.error(f"{arguments.peers} does not exist; run: make peers, or compare --without-peers")
    arguments.work.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    floors: dict[str, dict[str, Any]] = {}
    peers = None if arguments.without_peers else arguments.peers
    for name in arguments.models:
        case = _case(name, arguments)
        found, floors[case.name] = compare(case, peers, arguments.prompts, arguments.steps, arguments.only)
        rows += found
    print(json.dumps({"rows": rows, "noise_floor": floors}, indent=1) if arguments.json else table(rows, floors))


if __name__ == "__main__":
    main()
