"""reelquant in Hugging Face's own command line: the real optimum-cli, our commands, and nothing loaded that is not asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from reelquant.runtime.cli import cli
from tests.conftest import BUILD, CHECKPOINTS, BundleMaker

PROMPT = "a red circle moves right on a white background"
MAINS = {"optimum-cli": "optimum.commands.optimum_cli", "reelquant": "reelquant.runtime.cli"}
CLIP = ("--seed", "3", "--steps", "2", "--size", "9x96x96", "--json", "--quiet")


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """Of a process in which optimum is installed: in a place of its own, since no other test wants it."""
    site = BUILD / "optimum"
    with FileLock(BUILD / "optimum.lock"):
        if not any(site.glob("optimum-2*.dist-info")):
            install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site)]
            subprocess.run([*install, "optimum>=2"], check=True)
    return {**os.environ, "PYTHONPATH": str(site)}


def ran(environment: dict[str, str], program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A module's main, for the script that pip puts beside Python is not there."""
    words = [sys.executable, "-c", f"from {MAINS[program]} import main; main()", *map(str, arguments)]
    words[2] = f"import sys; sys.argv[0] = {program!r}; {words[2]}"
    return subprocess.run(words, check=False, capture_output=True, text=True, env=environment)


def test_diffusers_does_not_take_us_for_optimum(environment: dict[str, str]) -> None:
    """It asks who brings the package ``optimum``, in whose namespace our file lies; it warns on stderr of several."""
    code = "from diffusers.utils import import_utils; print(import_utils._package_map.get('optimum', []))"
    for variables, brings in ((environment, ["optimum"]), ({**os.environ}, [])):
        asked = [sys.executable, "-c", code]
        found = subprocess.run(asked, check=True, capture_output=True, text=True, env=variables)
        assert found.stdout.strip() == str(brings) and "distribution" not in found.stderr


def test_optimum_lists_them_and_loads_nothing_of_ours(environment: dict[str, str]) -> None:
    script = (
        "import sys; sys.argv = ['optimum-cli']\n"
        "from optimum.commands.optimum_cli import load_optimum_namespace_cli_commands as load\n"
        "print([command.COMMAND.name for command, _ in map(lambda c: c if isinstance(c, tuple) else (c, None), load())])\n"
        "print(sorted(name for name in sys.modules if name.startswith('reelquant')))"
    )
    command = [sys.executable, "-c", script]
    found = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    assert found.splitlines() == ["['reelquant', 'reelquant']", "[]"]
    listed = ran(environment, "optimum-cli", "--help")
    assert listed.returncode == 0 and "reelquant" in listed.stdout


@pytest.mark.parametrize("command", ["export", "generate", "build", "inspect", "doctor"])
def test_the_options_are_the_commands_own(command: str, environment: dict[str, str]) -> None:
    words = ("export", "reelquant") if command == "export" else ("reelquant", command)
    shown = ran(environment, "optimum-cli", *words, "--help")
    assert shown.returncode == 0, shown.stderr
    found = cli.get_command(None, command)  # type: ignore[arg-type]
    assert found is not None
    options = {option for parameter in found.params for option in (*parameter.opts, *parameter.secondary_opts)}
    missing = {option for option in options if option.startswith("-") and option not in shown.stdout}
    assert not missing and all(
        p.human_readable_name in shown.stdout for p in found.params if p.param_type_name == "argument"
    )


def test_a_clip_is_the_one_that_reelquant_makes(
    environment: dict[str, str], demo_bundle: BundleMaker, tmp_path: Path
) -> None:
    bundle = demo_bundle("t2v", "fp32").path
    made = [
        ran(environment, "optimum-cli", "reelquant", "generate", bundle, PROMPT, "-o", tmp_path / "a.npy", *CLIP),
        ran(environment, "reelquant", "generate", bundle, PROMPT, "-o", tmp_path / "b.npy", *CLIP),
    ]
    assert all(each.returncode == 0 for each in made), made[0].stderr
    assert len({json.loads(each.stdout)["sha256_frames"] for each in made}) == 1


def test_an_export_is_planned_and_bad_input_is_a_message(environment: dict[str, str], tmp_path: Path) -> None:
    planned = ran(
        environment, "optimum-cli", "export", "reelquant", CHECKPOINTS / "t2v", tmp_path / "out", "--plan", "--json"
    )
    assert planned.returncode == 0 and json.loads(planned.stdout)["text_tokens"] == 24, planned.stderr
    refused = ran(environment, "optimum-cli", "export", "reelquant", tmp_path, tmp_path / "out", "--precision", "int3")
    assert refused.returncode == 2 and refused.stderr.splitlines()[-1].startswith("Error: ")
    assert "Traceback" not in refused.stderr
