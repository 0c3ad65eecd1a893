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
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.first_hour import engines, steps
from benchmarks.first_hour.measures import Facts


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


# In order of what is learned per second; each with its limit in seconds.
SECTIONS: dict[str, tuple[Callable[[argparse.Namespace], Facts], int]] = {
    "machine": (machine, 30),
    "port": (engines.port, 30),
    "ort_open": (engines.ort_open, 60),
    "ort_clip": (engines.ort_clip, 100),
    "rtx": (engines.rtx, 100),
    "diffusers": (steps.diffusers, 60),
    "wide": (steps.wide, 160),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundles", type=Path, default=Path("build"), help="where demo-t2v-PRECISION are")
    parser.add_argument("--precisions", nargs="+", default=["fp32", "int8"], help="of the demo clips")
    parser.add_argument("--out", type=Path, default=Path("build/first-hour.jsonl"))
    parser.add_argument("--reference", type=Path, default=Path("build/first-hour.npz"))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--size", default="17x480x720", help="of the wide step")
    parser.add_argument("--section", help="run this one alone, in this process")
    arguments = parser.parse_args()
    if arguments.section:
        run = engines.reference if arguments.section == "reference" else SECTIONS[arguments.section][0]
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
