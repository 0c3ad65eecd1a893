"""Models of bundles' graphs that OpenVINO has compiled before, kept in the user's cache: a process that makes one small clip need not wait for compilers.

An entry is found by everything that decides it: the graph's and its weights' bytes, shapes, options, OpenVINO's version and this package's code, this
CPU's units and what oneDNN was told of them. It is ``KEY.blob`` and, written last, ``KEY.json`` with the blob's sha256, which is compared before the blob is
loaded; the folder is the user's own, as is that of TensorRT's engines. Large models are compiled in less time than a blob of theirs is
loaded (docs/benchmarks.md, "What did not pay"), and what is compiled in no time is not kept either.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from reelquant.runtime.engines.openvino import kernels
from reelquant.runtime.errors import BadInput
from reelquant.runtime.files.atomic import partial_file
from reelquant.runtime.files.user_cache import user_cache
from reelquant.runtime.machine.cpu_units import instruction_sets

Options = dict[str, Any]
_LARGEST = 100_000_000  # bytes of graph and weights
_LEAST = 0.2  # seconds of compiling


def load_or_compile(graph: Path, decides: object, compile: Callable[[], tuple[Any, Options]]) -> Any:
    """The model of ``graph``: loaded, where it was compiled before, else by ``compile``, and kept where that pays.

    ``decides`` is what beside the graph's bytes, OpenVINO and this CPU makes it what it is, as JSON; ``compile`` also returns the
    options that it compiled with.

    Raises:
        RuntimeError: OpenVINO cannot compile it.
    """
    weights = graph.parent / "weights.safetensors"
    files = [file for file in (graph, weights) if file.is_file()]
    if sum(file.stat().st_size for file in files) > _LARGEST:
        return compile()[0]
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    here = [str(kernels.module().get_version()), instruction_sets(), os.environ.get("DNNL_MAX_CPU_ISA"), _code()]
    digest.update(json.dumps([here, decides]).encode())
    blob, facts = (user_cache("openvino", f"{digest.hexdigest()}.{kind}") for kind in ("blob", "json"))
    found = _loaded(blob, facts)
    if found is not None:
        return found
    began = time.perf_counter()
    made, options = compile()
    if time.perf_counter() - began >= _LEAST:
        _keep(made, options, blob, facts)
    return made


@cache
def _code() -> str:
    """What this package changes in a model before it is compiled, by the bytes of its files."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _loaded(blob: Path, facts: Path) -> Any | None:
    """None where there is none, or where it is not what was written."""
    try:
        known, data = json.loads(facts.read_text(encoding="utf-8")), blob.read_bytes()
        if hashlib.sha256(data).hexdigest() != known["sha256"]:
            return None
        return kernels.core().import_model(io.BytesIO(data), "CPU", known["options"])
    except (OSError, ValueError, KeyError, TypeError, RuntimeError):
        return None


def _keep(made: Any, options: Options, blob: Path, facts: Path) -> None:
    """Where the cache cannot be written, nothing is kept: the model has been compiled and is there."""
    exported: Any = made.export_model()
    data: bytes = exported if isinstance(exported, bytes) else exported.getvalue()
    try:
        blob.parent.mkdir(parents=True, exist_ok=True)
        with partial_file(blob) as temporary:
            temporary.write_bytes(data)
        with partial_file(facts) as temporary:
            known = {"sha256": hashlib.sha256(data).hexdigest(), "options": options}
            temporary.write_text(json.dumps(known) + "\n", encoding="utf-8")
    except (OSError, BadInput):
        return
