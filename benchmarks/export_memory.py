"""Peak memory and time of exporting a transformer: ours beside a plain ``torch.onnx.export`` of the same module.

    python -m benchmarks.export_memory --like cogvideox-5b --json

Each runs in a process of its own, on the same random checkpoint (kept in --work, so that a second run has it). Ours
includes the parity check against torch. ``plain`` makes the same float32 graph, ``plain_16bit`` one in the dtype that
the checkpoint is stored in. The plain ones may use all the memory that is free when they start, less 1 GB: beyond that
their allocations fail, instead of the machine.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.random_checkpoint import write_checkpoint
from benchmarks.variants import VARIANTS

SPARE = 1 << 30
_WHICH = ("ours", "plain", "plain_16bit")


def ours(checkpoint: Path, out: Path) -> None:
    from reelquant.export.checkpoint import Checkpoint
    from reelquant.export.trace_bundle import trace_component

    # Not open(), which asks for the other networks' weights too.
    trace_component(Checkpoint(checkpoint, checkpoint.name), "transformer", out)


def plain_16bit(checkpoint: Path, out: Path) -> None:
    plain(checkpoint, out, stored=True)


def plain(checkpoint: Path, out: Path, stored: bool = False) -> None:
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    resource.setrlimit(resource.RLIMIT_DATA, (free - SPARE, free - SPARE))
    import torch
    from diffusers import CogVideoXTransformer3DModel

    from reelquant.export.models.cogvideox.graphs import SAMPLES, transformer_inputs
    from reelquant.export.models.cogvideox.modules import Transformer
    from reelquant.export.weights import open_weights

    dtypes = {"F16": torch.float16, "BF16": torch.bfloat16}
    folder = checkpoint / "transformer"
    dtype = dtypes[next(iter(open_weights(folder).values())).dtype] if stored else torch.float32
    loaded: Any = CogVideoXTransformer3DModel.from_pretrained(folder, torch_dtype=dtype)
    inputs = {
        name: value.to(dtype) if value.is_floating_point() else value
        for name, value in transformer_inputs(dict(loaded.config), SAMPLES[0]).items()
    }
    out.mkdir(parents=True)
    with torch.no_grad():
        program = torch.onnx.export(Transformer(loaded).eval(), (), kwargs=inputs, dynamo=True, opset_version=21)
    assert program is not None
    program.save(str(out / "model.onnx"), external_data=True)


def measure(which: str, checkpoint: Path, out: Path) -> dict[str, Any]:
    """Run one export in a new process; its peak resident memory is the kernel's own figure for it."""
    shutil.rmtree(out, ignore_errors=True)
    code = (
        "import resource, sys; from pathlib import Path; from benchmarks import export_memory as m\n"
        f"getattr(m, {which!r})(Path({str(checkpoint)!r}), Path({str(out)!r}))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, text=True)
    found: dict[str, Any] = {"seconds": round(time.monotonic() - began, 1)}
    if done.returncode == 0:
        found["peak_rss_bytes"] = int(done.stdout.split()[-1])
    else:
        said = [line for line in done.stderr.splitlines() if line.split(":")[0].endswith(("Error", "Exception"))]
        last = said[-1] if said else f"ended with {done.returncode}"
        found |= {"peak_rss_bytes": None, "error": last[:300]}
    shutil.rmtree(out, ignore_errors=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--like", choices=VARIANTS, required=True)
    parser.add_argument("--layers", type=int, help="transformer blocks (default: the variant's)")
    parser.add_argument("--work", type=Path, default=Path("build/random"), help="where the checkpoint is kept")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    variant = VARIANTS[arguments.like]
    name = arguments.like
    if arguments.layers:
        variant, name = variant.layers(arguments.layers), f"{name}-{arguments.layers}"
    checkpoint = arguments.work / name
    if not (checkpoint / "model_index.json").exists():  # written last
        shutil.rmtree(checkpoint, ignore_errors=True)
        write_checkpoint(checkpoint, variant, only=("transformer",))
    found = {which: measure(which, checkpoint, arguments.work / f"{name}-{which}") for which in _WHICH}
    if arguments.json:
        print(json.dumps(found))
    else:
        for which, row in found.items():
            peak = "-" if row["peak_rss_bytes"] is None else f"{row['peak_rss_bytes'] / 1e9:.2f} GB"
            print(f"{which:11} {peak:>9} {row['seconds']:8.1f} s  {row.get('error', '')}")


if __name__ == "__main__":
    main()
