"""Peak memory of each network on each engine, beside what ``reelquant export --plan`` says of it.

    python -m benchmarks.memory --like cogvideox-2b --layers 2 --sizes 9x256x256 --json
    python -m benchmarks.memory --like cogvideox-2b --reduced --component vae_decoder --sizes 9x240x368,49x240x368,161x240x368

Each measurement is a process of its own, which loads one network of a random-weight bundle and runs it as the pipeline
does. The peak is the kernel's (VmHWM), so files that an engine maps count as far as they were read.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from benchmarks.random_checkpoint import write_checkpoint
from benchmarks.variants import VARIANTS, Variant
from reelquant.export.checkpoint import Checkpoint
from reelquant.export.needs import component_needs, engine_memory
from reelquant.export.trace_bundle import trace_bundle
from reelquant.runtime.engines.registry import engine_names, get_engine
from reelquant.runtime.sizes import Size

COMPONENTS = ("text_encoder", "transformer", "vae_decoder", "vae_encoder")
MEASURED = [name for name in engine_names() if get_engine(name).memory]


def measured(bundle: Path, component: str, engine: str, size: Size, tiled: bool = False) -> list[int]:
    """Peaks in bytes of :mod:`benchmarks.peak_memory` in a new process."""
    command = [sys.executable, "-m", "benchmarks.peak_memory", str(bundle), component, engine]
    command += [str(size), *(["tiled"] if tiled else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed ({done.returncode}): {done.stderr[-500:]}")
    peaks: list[int] = json.loads(done.stdout)
    return peaks


def planned(checkpoint: Checkpoint, component: str, engine: str, size: Size, tiled: bool = False) -> int:
    """What the plan says: bytes."""
    need = component_needs(checkpoint, size, engine, tiled=tiled)[component]
    return engine_memory(engine).process + need.memory


def prepared(work: Path, name: str, variant: Variant) -> tuple[Checkpoint, Path]:
    """A random checkpoint and its fp32 bundle, made once and kept in ``work``."""
    checkpoint, bundle = work / name, work / f"{name}-fp32"
    if not (checkpoint / "model_index.json").exists():
        write_checkpoint(checkpoint, variant)
    if not (bundle / "manifest.json").exists():
        trace_bundle(str(checkpoint), bundle)
    return Checkpoint.open(str(checkpoint)), bundle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--like", choices=VARIANTS, default="cogvideox-2b")
    parser.add_argument("--layers", type=int, default=2, help="transformer blocks")
    parser.add_argument("--reduced", action="store_true", help="at reduced width")
    parser.add_argument("--component", action="append", choices=COMPONENTS, help="default: all that the variant has")
    parser.add_argument("--engine", action="append", choices=MEASURED, help="default: all")
    parser.add_argument("--sizes", default="9x256x256", help="FRAMESxHEIGHTxWIDTH,…")
    parser.add_argument("--tiled", action="store_true", help="decode in tiles")
    parser.add_argument("--work", type=Path, default=Path("build/random"), help="where checkpoint and bundle are kept")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    name = f"{arguments.like}-{'reduced' if arguments.reduced else arguments.layers}"
    variant = VARIANTS[arguments.like]
    variant = variant.reduced() if arguments.reduced else variant.layers(arguments.layers)
    checkpoint, bundle = prepared(arguments.work, name, variant)
    components = arguments.component or [
        part for part in COMPONENTS if part != "vae_encoder" or checkpoint.task == "i2v"
    ]
    rows = []
    for text in arguments.sizes.split(","):
        size = Size(*map(int, text.split("x")))
        for component in components:
            for engine in arguments.engine or MEASURED:
                peaks = measured(bundle, component, engine, size, arguments.tiled)
                wanted = planned(checkpoint, component, engine, size, arguments.tiled)
                row = {"component": component, "engine": engine, "size": text, "peak_bytes": max(peaks),
                       "planned_bytes": wanted, "peaks": peaks}  # fmt: skip
                rows.append(row)
                if not arguments.json:
                    print(
                        f"{component:13} {engine:12} {text:12} peak {max(peaks) / 1e9:6.2f} GB, "
                        f"planned {wanted / 1e9:6.2f} GB ({wanted / max(peaks):.2f})",
                        flush=True,
                    )
    if arguments.json:
        print(json.dumps({"checkpoint": name, "rows": rows}))


if __name__ == "__main__":
    main()
