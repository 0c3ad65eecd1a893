"""Copies of the demo checkpoints to spoil: links to their files, so that a copy costs nothing."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from tests.conftest import CHECKPOINTS


def linked_copy(target: Path, task: str = "t2v") -> Path:
    shutil.copytree(CHECKPOINTS / task, target, copy_function=os.symlink)
    return target


def edit_json(path: Path, **changes: Any) -> None:
    """Change fields of a linked JSON file, in the copy only; None removes one."""
    fields = {**json.loads(path.read_text("utf-8")), **changes}
    path.unlink()
    path.write_text(json.dumps({key: value for key, value in fields.items() if value is not None}), "utf-8")


def put(path: Path, data: bytes) -> None:
    """Replace a linked file, or add one, in the copy only."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)
