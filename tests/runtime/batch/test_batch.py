"""Many clips: the same as one by one, none made twice, whatever ends a run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from reelquant.runtime.batch.jobs import read_jobs
from reelquant.runtime.bundle import Bundle
from reelquant.runtime.errors import BadInput
from reelquant.runtime.media.video import read_clip
from tests.command_line import run
from tests.conftest import TinyBundleMaker

LINES: list[dict[str, Any]] = [
    {"prompt": "a circle", "seed": 3, "steps": 2, "name": "circle"},
    {"prompt": "a square", "steps": 2, "size": "17x32x32", "guidance": 1.0},
    {"prompt": "a circle", "seed": 4, "steps": 2, "negative_prompt": "a square", "scheduler": "dpm"},
]


@pytest.fixture(scope="module")
def bundle(tiny_bundle: TinyBundleMaker) -> Bundle:
    return tiny_bundle("t2v")


def written(folder: Path, lines: list[Any]) -> Path:
    path = folder / "clips.jsonl"
    path.write_text("\n".join(each if isinstance(each, str) else json.dumps(each) for each in lines) + "\n\n")
    return path


def test_clips_are_those_that_are_made_one_by_one(
    bundle: Bundle, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    asked, out = written(tmp_path, LINES), tmp_path / "out"
    said = json.loads(run(capfd, "batch", bundle.path, asked, out, "--engine", "onnxruntime", "--json").out)
    assert [clip["name"] for clip in said["clips"]] == ["circle", "0002", "0003"] and said["made_before"] == []
    assert {path.name for path in out.iterdir()} == {"circle.mp4", "0002.mp4", "0003.mp4"}
    one = ("--seed", "3", "--steps", "2", "--engine", "onnxruntime", "--json")
    alone = json.loads(run(capfd, "generate", bundle.path, "a circle", "-o", tmp_path / "a.mp4", *one).out)
    assert said["clips"][0]["sha256"] == alone["sha256_frames"] and said["clips"][0]["forwards"] == 4
    assert read_clip(out / "0002.mp4").frames.shape == (17, 32, 32, 3)
    again = run(capfd, "generate", bundle.path, "--like", out / "0003.mp4", "-o", tmp_path / "b.mp4", "--json")
    assert json.loads(again.out)["sha256_frames"] == said["clips"][2]["sha256"]
    # Run again it makes what is missing, in processes of its own as well.
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    (out / "circle.mp4").unlink()
    (out / "0003.mp4").unlink()
    more = json.loads(
        run(capfd, "batch", bundle.path, asked, out, "--engine", "onnxruntime", "--workers", "2", "--json").out
    )
    assert more["made_before"] == ["0002"]
    made = {clip["name"]: clip["sha256"] for clip in more["clips"]}
    assert made == {clip["name"]: clip["sha256"] for clip in said["clips"] if clip["name"] != "0002"}
    assert (out / "0002.mp4").stat().st_mtime_ns == before[out / "0002.mp4"]


def working(group: int) -> list[str]:
    """The processes of a group that have not ended, as /proc says."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:  # it ended meanwhile
            continue
        if int(its_group) == group and state != "Z":
            found.append(path.parent.name)
    return found


def test_a_killed_batch_goes_on(bundle: Bundle, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Killed with its processes at work, it leaves whole clips alone, and the next run makes the others, each once."""
    lines = [{"prompt": "a circle", "steps": 12, "seed": seed} for seed in range(8)]
    asked, out = written(tmp_path, lines), tmp_path / "out"
    arguments = ["batch", str(bundle.path), str(asked), str(out), "--engine", "onnxruntime", "--workers", "2", "--json"]
    code = "from reelquant.runtime.cli import main; import sys; main(sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not list(out.glob("0*.mp4")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    while (left := working(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not left  # its processes saw that, and ended
    kept = {path.name: path.stat().st_mtime_ns for path in out.glob("0*.mp4")}
    assert kept
    said = json.loads(run(capfd, *arguments).out)
    assert sorted(said["made_before"]) == sorted(name.removesuffix(".mp4") for name in kept)
    assert {path.name for path in out.iterdir()} == {f"{number:04}.mp4" for number in range(1, 9)}  # and nothing else
    assert all((out / name).stat().st_mtime_ns == when for name, when in kept.items())
    assert len(said["clips"]) == 8 - len(kept)


def test_another_clip_in_the_folder_is_refused(
    bundle: Bundle, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    asked, out = written(tmp_path, LINES[:1]), tmp_path / "out"
    arguments = ("batch", bundle.path, asked, out, "--engine", "onnxruntime")
    assert run(capfd, *arguments).code == 0
    written(tmp_path, [{**LINES[0], "seed": 5}])
    other = run(capfd, *arguments)
    assert other.code == 2 and "circle.mp4 is there and is not the clip that its line asks for" in other.err


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ([], "has no lines"),
        (["{"], "line 1 is no JSON object"),
        (["[1]"], "line 1 is no JSON object"),
        ([{"prompt": "a circle"}, {"seed": 1}], "line 2 has no prompt"),
        ([{"prompt": "a circle", "mood": "good"}], "line 1 says 'mood', which is none of name, prompt"),
        ([{"prompt": "a circle", "seed": True}], "line 1: seed is True, not int"),
        ([{"prompt": "a circle", "guidance": "6"}], "line 1: guidance is '6', not float"),
        ([{"prompt": "a circle", "name": "../up"}], "the name '../up' is not of letters"),
        ([{"prompt": "a circle", "name": "A"}, {"prompt": "a square", "name": "a"}], "lines 1 and 2 both make"),
        ([{"prompt": "a circle", "size": "large"}], "large"),
    ],
)
def test_a_line_that_cannot_be_read_is_refused(lines: list[Any], why: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=why):
        read_jobs(written(tmp_path, lines))


def test_a_request_that_cannot_be_met_is_refused_before_the_first_clip(
    bundle: Bundle, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    asked, out = written(tmp_path, [LINES[0], {"prompt": "a square", "steps": 5000}]), tmp_path / "out"
    refused = run(capfd, "batch", bundle.path, asked, out)
    assert (
        refused.code == 2
        and "line 2 (0002): 5000 steps is not from 1 to 1000" in refused.err
        and list(out.iterdir()) == []
    )
    with pytest.raises(BadInput, match="cannot read"):
        read_jobs(tmp_path / "none.jsonl")
