"""Write quant/lint/cuda_kernels.json: every kernel that onnxruntime-gpu registers for ONNX's own operators, on CUDA and on the CPU.

    pip download --no-deps onnxruntime-gpu==VERSION && python -m zipfile -e onnxruntime_gpu-*.whl wheel
    python -m tests.runtime.engines.onnxruntime_cuda.record_kernels wheel

The package itself is asked (``get_all_opkernel_def``, as its docs/OperatorKernels.md is made), on libraries that stand in for CUDA's
(stand_in.py): no GPU is needed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.conftest import ROOT
from tests.runtime.engines.onnxruntime_cuda.stand_in import make_libraries

FILE = ROOT / "quant" / "lint" / "cuda_kernels.json"
_ASK = """
import json, sys
sys.path.insert(0, sys.argv[1])
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as state
found = [[k.provider, k.domain, k.op_name, k.version_range, k.type_constraints] for k in state.get_all_opkernel_def()]
print("KERNELS", json.dumps([onnxruntime.__version__, found]), flush=True)
"""
_LAST, _OLDEST = 2**31 - 1, 13  # a kernel without a last version; what graphs of opset 21 and later reach no more


def record(wheel: Path) -> str:
    """The file's text, of the unpacked wheel in the folder ``wheel``."""
    with tempfile.TemporaryDirectory() as folder:
        make_libraries(wheel / "onnxruntime" / "capi", Path(folder))
        command = [sys.executable, "-c", _ASK, str(wheel)]
        environment = {**os.environ, "LD_LIBRARY_PATH": folder}
        ran = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    (line,) = (line for line in ran.stdout.splitlines() if line.startswith("KERNELS "))
    version, found = json.loads(line.removeprefix("KERNELS "))
    kernels: dict[str, dict[str, list[list[Any]]]] = {"CPU": {}, "CUDA": {}}
    for provider, domain, operator, (first, last), types in sorted(found, key=json.dumps):
        name = provider.removesuffix("ExecutionProvider")
        if domain or name not in kernels or last < _OLDEST:
            continue
        allowed = {key: sorted(_short(each) for each in types[key]) for key in sorted(types)}
        _add(kernels[name].setdefault(operator, []), [first, None if last == _LAST else last, allowed])
    lines = [
        f'  "{name}": {{\n'
        + ",\n".join(
            f"   {json.dumps(key)}: {json.dumps(kernels[name][key], separators=(',', ':'))}" for key in kernels[name]
        )
        + "\n  }"
        for name in kernels
    ]
    return f'{{\n "version": {json.dumps(version)},\n "kernels": {{\n' + ",\n".join(lines) + "\n }\n}\n"


def _add(rows: list[list[Any]], row: list[Any]) -> None:
    """Put a kernel into ``rows``: into one that differs from it in the types of a single parameter, where there is one."""
    for other in rows:
        if other[:2] == row[:2] and other[2].keys() == row[2].keys():
            apart = [key for key in row[2] if row[2][key] != other[2][key]]
            if len(apart) < 2:
                for key in apart:
                    other[2][key] = sorted({*other[2][key], *row[2][key]})
                return
    rows.append(row)


def _short(name: str) -> str:
    return name.removeprefix("tensor(").removesuffix(")")


if __name__ == "__main__":
    FILE.write_text(record(Path(sys.argv[1])), encoding="utf-8")
    print(FILE)
