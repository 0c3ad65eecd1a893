from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from demo.architecture import TEXT_TOKENS, build_tokenizer
from demo.clips import held_out_scenes
from reelquant.quant.calibration.data import CalibrationData
from reelquant.quant.evaluation.teacher import Trial
from reelquant.runtime.errors import BadInput
from reelquant.runtime.media.images import load_image
from reelquant.runtime.sampling.tokenizer import Tokenizer
from tests.conftest import ROOT


def folder(tmp_path: Path, prompts: str | bytes, images: tuple[str, ...] = ()) -> Path:
    (tmp_path / "images").mkdir()
    (tmp_path / "prompts.txt").write_bytes(prompts.encode() if isinstance(prompts, str) else prompts)
    for name in images:
        (tmp_path / "images" / name).touch()
    return tmp_path


def test_the_demo_set_is_whole_and_held_out_scenes_are_not_in_it() -> None:
    data = CalibrationData.load("demo")
    assert len(data.prompts) == len(data.images) == 32 == len(set(data.prompts))
    assert not {scene.caption for scene in held_out_scenes(64)} & set(data.prompts)
    assert all(load_image(image, 96, 96).std() > 5 for image in data.images)
    assert max(len(build_tokenizer().encode(prompt).ids) for prompt in data.prompts) <= TEXT_TOKENS


def test_the_general_set_has_prompts_only() -> None:
    data = CalibrationData.load("general")
    assert len(data.prompts) == 32 == len(set(data.prompts)) and data.images == ()
    assert not any(prompt.startswith("#") for prompt in data.prompts)


def test_every_set_says_where_it_comes_from() -> None:
    said = (ROOT / "calib_data" / "README.md").read_text("utf-8")
    for path in (ROOT / "calib_data").glob("*/"):
        assert path.name.startswith("_") or f"| `{path.name}` |" in said
    with pytest.raises(BadInput, match="give one of demo, general, or a folder"):
        CalibrationData.load("none such")


def test_a_folder_of_ones_own(tmp_path: Path) -> None:
    names = ("b.png", "a.JPG", "c.webp", "notes.txt", "d.gif")
    data = CalibrationData.load(str(folder(tmp_path, "# who made it\n a red cat \n\n\tein roter Bär\n", names)))
    assert data.prompts == ("a red cat", "ein roter Bär")
    assert [image.name for image in data.images] == ["a.JPG", "b.png", "c.webp"]
    assert data.first(1) == ("a red cat",) and data.first(2) == data.prompts
    assert [image.name for image in data.images_for(2)] == ["a.JPG", "b.png"]


@pytest.mark.parametrize("count", [0, -1, 3])
def test_no_more_prompts_than_there_are(tmp_path: Path, count: int) -> None:
    data = CalibrationData.load(str(folder(tmp_path, "one\ntwo")))
    with pytest.raises(BadInput, match=f"has 2 prompts; {count} cannot be used"):
        data.first(count)


def test_an_image_for_every_prompt(tmp_path: Path) -> None:
    data = CalibrationData.load(str(folder(tmp_path, "one\ntwo", ("a.png",))))
    assert len(data.images_for(1)) == 1
    with pytest.raises(BadInput, match="has 1 images for 2 prompts; give --data FOLDER with prompts.txt and images/"):
        data.images_for(2)


@pytest.mark.parametrize("text", [None, b"\xff\xfe"])
def test_folders_without_readable_prompts(tmp_path: Path, text: bytes | None) -> None:
    if text is not None:
        (tmp_path / "prompts.txt").write_bytes(text)
    with pytest.raises(BadInput, match=r"no calibration data in .*folder with prompts.txt \(one prompt a line\)"):
        CalibrationData.load(str(tmp_path))


def test_the_last_prompts_are_tried(tmp_path: Path) -> None:
    """With their own images; all of a set that has fewer; and an error counts from the file's first prompt."""
    data = CalibrationData.load(str(folder(tmp_path, "one\ntwo\nthree\nfour", ("a.png", "b.png", "c.png"))))
    assert data.last(2, "t2v").prompts == ("three", "four")
    tried = data.last(2, "i2v")
    assert tried.prompts == ("two", "three") and [image.name for image in tried.images] == ["b.png", "c.png"]
    assert data.last(9, "t2v").prompts == data.prompts and data.last(9, "i2v").prompts == data.prompts[:3]
    requests = Trial(str(tmp_path), prompts=9, steps=3).requests("i2v")
    assert [(request.prompt, request.seed, request.steps) for request in requests] == [
        ("one", 1000, 3), ("two", 1001, 3), ("three", 1002, 3)
    ]  # fmt: skip
    with pytest.raises(BadInput, match=r"general has 0 images for 1 prompts"):
        Trial("general").requests("i2v")
    long = CalibrationData("mine", ("a", "b", "red " * 99), ()).last(1, "t2v")
    with pytest.raises(
        BadInput, match="calibration data mine, prompt 3: .*, or calibrate on a set that fits: --data demo"
    ):
        long.check_tokens(1, Tokenizer.of(build_tokenizer(), TEXT_TOKENS, "demo"))


def test_what_was_read_is_in_the_digest(tmp_path: Path) -> None:
    """Images that are replaced by others are other data, as prompts are."""
    (tmp_path / "images").mkdir()
    (tmp_path / "prompts.txt").write_text("a red circle\na blue square\n")
    for name, colour in (("a.png", "red"), ("b.png", "blue")):
        Image.new("RGB", (8, 8), colour).save(tmp_path / "images" / name)
    data = CalibrationData.load(str(tmp_path))
    before = {task: data.digest(task, 2) for task in ("t2v", "i2v")}
    Image.new("RGB", (8, 8), "green").save(tmp_path / "images" / "b.png")
    assert data.digest("t2v", 2) == before["t2v"] != data.digest("i2v", 2) != before["i2v"]
    assert data.digest("i2v", 1) == CalibrationData.load(str(tmp_path)).digest("i2v", 1)
    (tmp_path / "prompts.txt").write_text("a red circle\na blue triangle\n")
    assert CalibrationData.load(str(tmp_path)).digest("t2v", 2) != before["t2v"]
