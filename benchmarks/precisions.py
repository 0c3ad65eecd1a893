"""What each precision costs in quality and saves in time: fp32, int8, fp8 or other bundles of the demo, side by side.

    python -m benchmarks.precisions --prompts 64 --json

For each task and precision: prompt fidelity and shape IoU over held-out prompts, clip PSNR against the fp32 bundle (same noise), the
noise floor of that PSNR (fp32 on the other engine against fp32), bytes of the transformer, and milliseconds of one
guided step. Times are taken in turns, one step of each precision after the other, and reported as medians with the
spread of the ratio to fp32.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np

from demo.fidelity import GUIDANCE, Pixels, Task, measure, psnr, renderer, tasks
from reelquant.runtime.bundle import Bundle
from reelquant.runtime.engines.options import EngineOptions
from reelquant.runtime.engines.registry import get_engine
from reelquant.runtime.tune.timing import in_turns, ratios, step_feeds


def render_all(path: Path, wanted: list[Task], steps: int, engine: str) -> list[Pixels]:
    _, draw = renderer(path, steps, GUIDANCE, engine)
    return [draw(task) for task in wanted]


def compare(
    folder: Path, task: str, precisions: list[str], prompts: int, steps: int, engine: str, repeats: int
) -> list[dict[str, Any]]:
    paths = {precision: folder / f"demo-{task}-{precision}" for precision in ("fp32", *precisions)}
    wanted = tasks(prompts)
    bundles = {precision: Bundle.open(path) for precision, path in paths.items()}
    runs = {
        name: (
            get_engine(engine).open_component(bundle, "transformer", EngineOptions(engine), "main")["main"],
            step_feeds(bundle),
        )
        for name, bundle in bundles.items()
    }
    times = in_turns(runs, repeats)
    other = "onnxruntime" if engine == "openvino" else "openvino"
    few = wanted[: max(1, prompts // 8)]
    rows: list[dict[str, Any]] = []
    fp32: list[Pixels] = []
    for precision, path in paths.items():
        print(f"{task} {precision}: {prompts} clips", file=sys.stderr)
        clips = render_all(path, wanted, steps, engine)
        fp32 = fp32 or clips
        against = render_all(path, few, steps, other) if precision == "fp32" else clips
        values = [min(psnr(a, b), 99.0) for a, b in zip(against, fp32, strict=False)]
        ratio, *spread = ratios(times[precision], times["fp32"])
        files = bundles[precision].manifest.files
        weights = sum(entry.size for name, entry in files.items() if name.startswith("transformer/"))
        rows.append(
            {
                "task": task,
                "precision": precision,
                "engine": engine,
                **measure(task, iter(zip(wanted, clips, strict=True))),
                "psnr_to_fp32": round(float(np.mean(values)), 2),
                "psnr_to_fp32_least": round(float(np.min(values)), 2),
                "transformer_bytes": weights,
                "step_ms": round(1000 * statistics.median(times[precision]), 2),
                "step_ratio": round(ratio, 3),
                "step_ratio_spread": [round(one, 3) for one in spread],
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| task | precision | colour | shape | direction | background | mean | shape IoU | first frame | "
        + "PSNR to fp32 (least) | transformer | step vs fp32 (10–90 %) |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        found = row["fidelity"]
        shares = " | ".join(f"{found[name]:.3f}" for name in ("colour", "shape", "direction", "background", "mean"))
        first = f"{row['first_frame_psnr']:.1f} dB" if "first_frame_psnr" in row else "–"
        close = f"{row['psnr_to_fp32']:.1f} ({row['psnr_to_fp32_least']:.1f}) dB"
        if row["precision"] == "fp32":
            close = f"floor {close}"
        low, high = row["step_ratio_spread"]
        lines.append(
            f"| {row['task']} | {row['precision']} | {shares} | {row['shape_iou']:.3f} | {first} | {close} "
            f"| {row['transformer_bytes'] / 1e6:.1f} MB | {row['step_ratio']:.2f} ({low:.2f}–{high:.2f}) |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundles", type=Path, default=Path("build"), help="where make export put demo-TASK-PRECISION")
    parser.add_argument("--tasks", nargs="+", default=["t2v", "i2v"])
    parser.add_argument("--precisions", nargs="+", default=["int8", "fp8"], help="beside fp32")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=30, help="timed transformer runs of each precision")
    parser.add_argument("--engine", default="openvino")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = [
        row
        for task in arguments.tasks
        for row in compare(
            arguments.bundles,
            task,
            arguments.precisions,
            arguments.prompts,
            arguments.steps,
            arguments.engine,
            arguments.repeats,
        )
    ]
    print(json.dumps({"rows": rows}, indent=1) if arguments.json else table(rows))


if __name__ == "__main__":
    main()
