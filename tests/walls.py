"""Python processes in which some packages are as good as not installed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

_WALL = """
import sys

class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {refused!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
        return None

assert not sys.modules.keys() & set({refused!r})
sys.meta_path.insert(0, Wall())
"""
COMMAND = """
from reelquant.runtime.cli import main
main(sys.argv[1:])
"""


def run_behind_wall(
    refused: Sequence[str], *arguments: object, script: str = COMMAND
) -> subprocess.CompletedProcess[str]:
    """Run ``reelquant ARGUMENTS`` (or a script with them) in a new process that can import none of ``refused``."""
    code = _WALL.format(refused=tuple(refused)) + script
    command = [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
