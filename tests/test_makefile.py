"""``make export`` names the bundle by the model, however the model is written; only the commands are printed here."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT


def exported(place: Path, *variables: str) -> tuple[str, str]:
    """The checkpoint and the bundle of the one ``reelquant export`` that ``make -n export`` prints in ``place``."""
    for name in ("Makefile", "pyproject.toml", "setup.py", "constraints.txt"):
        shutil.copy(ROOT / name, place)
    printed = subprocess.run(
        ["make", "-n", "--no-print-directory", "export", *variables],
        cwd=place,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.replace("\\\n", " ")
    (command,) = (line for line in printed.splitlines() if "/reelquant export" in line)
    words = shlex.split(command)
    return words[2], words[3]


@pytest.mark.parametrize(
    ("model", "bundle"),
    [
        ("models/CogVideoX-2b", "build/CogVideoX-2b-int8"),
        ("models/CogVideoX-2b/", "build/CogVideoX-2b-int8"),
        ("./models/../models/CogVideoX-2b", "build/CogVideoX-2b-int8"),
        (".", "build/place-int8"),
        ("my model", "build/my model-int8"),
        ("zai-org/CogVideoX-2b", "build/zai-org-CogVideoX-2b-int8"),
        ("zai-org/CogVideoX-2b@refs/pr/3", "build/zai-org-CogVideoX-2b@refs-pr-3-int8"),
    ],
)
def test_a_bundle_has_the_models_name(model: str, bundle: str, tmp_path: Path) -> None:
    place = tmp_path / "place"
    (place / "models" / "CogVideoX-2b").mkdir(parents=True)
    (place / "my model").mkdir()
    assert exported(place, f"MODEL={model}", "PRECISION=int8") == (model, bundle)


def test_a_bundle_has_the_name_that_it_is_given(tmp_path: Path) -> None:
    assert exported(tmp_path, "MODEL=owner/name", "OUT=my bundles/one") == ("owner/name", "my bundles/one")
