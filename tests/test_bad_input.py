"""Every input that cannot be used, through the command line: exit 2, one message with the next step, nothing left."""

from __future__ import annotations

import json
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reelquant.quant.calibration.ranges import Provenance, Ranges, Samples
from reelquant.runtime.bundle import Bundle
from tests.command_line import contents, only_message, refused, run
from tests.conftest import TinyBundleMaker
from tests.tiny_bundle import RECIPE
from tests.walls import COMMAND, run_behind_wall

Capture = pytest.CaptureFixture[str]
PROMPT = "a red circle moves left"


@pytest.fixture
def t2v(tiny_bundle: TinyBundleMaker, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_bundle("t2v").path, tmp_path / "t2v")


@pytest.fixture
def i2v(tiny_bundle: TinyBundleMaker, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_bundle("i2v").path, tmp_path / "i2v")


@pytest.fixture
def ranges(tiny_bundle: TinyBundleMaker, tmp_path: Path) -> Path:
    """Ranges that belong to the tiny bundle."""
    bundle = tiny_bundle("t2v")
    low = {"text": np.full(2, -1, np.float32)}
    made = Provenance("t2v", 0, 1, "ab" * 32, 1, 9, 32, 48, "onnxruntime", "1", bundle.digest)
    samples = Samples(np.zeros(2, np.int64), np.arange(2) == 0, np.zeros(2, np.int64))
    Ranges(made, samples, low, {"text": -low["text"]}).save(tmp_path / "ranges")
    return tmp_path / "ranges"


def test_the_good_requests_that_the_bad_ones_differ_from(
    t2v: Path, ranges: Path, tmp_path: Path, capfd: Capture
) -> None:
    ran = run(capfd, "generate", t2v, PROMPT, "-o", tmp_path / "a.mp4", "--json")
    assert (ran.code, ran.err) == (0, "") and json.loads(ran.out)["frames"] == 9 and (tmp_path / "a.mp4").is_file()
    (tmp_path / "tiny.toml").write_text(RECIPE)
    ran = run(
        capfd, "quantize", t2v, ranges, tmp_path / "out", "--recipe", tmp_path / "tiny.toml", "--no-gate", "--json"
    )
    assert (ran.code, ran.err) == (0, "") and json.loads(ran.out)["quantized"] == 1
    assert run(capfd, "verify", tmp_path / "out").code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--size 9x33x32", "height 33 is not a positive multiple of 16; the nearest is 32"),
        ("--size 9x32x40", "width 40 is not a positive multiple of 16; the nearest is 48"),
        ("--size 9x0x32", "height 0 is not a positive multiple of 16; the nearest is 16"),
        ("--size 32x32", "size '32x32' is not FRAMESxHEIGHTxWIDTH; write it like 49x480x720: 49 frames, 480 high"),
        ("--size=", "size '' is not FRAMESxHEIGHTxWIDTH; write it like 49x480x720: 49 frames, 480 high, 720 wide"),
        ("--size 10x32x32", "10 frames is not 8N+1 from 9 to 49; the nearest is 9"),
        ("--size 0x32x32", "0 frames is not 8N+1 from 9 to 49; the nearest is 9"),
        ("--size -9x32x32", "size '-9x32x32' is not FRAMESxHEIGHTxWIDTH"),
        ("--size 57x32x32", "57 frames is not 8N+1 from 9 to 49; the nearest is 49"),
        ("--size many", "size 'many' is not FRAMESxHEIGHTxWIDTH"),
        ("--steps 0", "0 steps is not from 1 to 1000; 4 is this bundle's default"),
        ("--steps 1001", "1001 steps is not from 1 to 1000; 4 is this bundle's default"),
        ("--guidance nan", "guidance nan is not from 0 to 100; 6 is usual, and 1 or less turns it off"),
        ("--seed -1", "seed -1 is not from 0 to 2^64 - 1; choose another, or leave it out for a random one"),
        ("--scheduler euler", "Invalid value for '--scheduler': 'euler' is not one of 'ddim', 'dpm'."),
        ("--threads 0", "Invalid value for '--threads': 0 is not in the range x>=1."),
        ("--engine torch", "unknown engine 'torch'; one of openvino, onnxruntime"),
        ("--image x.png", "t2v makes clips from text alone; leave out --image, or use an i2v bundle"),
        (f"--negative-prompt {'a' * 99}", "this model reads 24; shorten it by "),
    ],
)
def test_generate_options(options: str, message: str, t2v: Path, tmp_path: Path, capfd: Capture) -> None:
    said = refused(capfd, tmp_path, "generate", t2v, PROMPT, "-o", tmp_path / "a.mp4", "--json", *options.split(" "))
    assert message in said


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "the prompt is empty; describe the clip in a sentence or two"),
        (" \n", "the prompt is empty; describe"),
        (
            "a " * 30,
            "the prompt is 31 tokens long, its end mark included, and this model reads 24; shorten it by 7 or more",
        ),
    ],
)
def test_prompts(prompt: str, message: str, t2v: Path, tmp_path: Path, capfd: Capture) -> None:
    assert message in refused(capfd, tmp_path, "generate", t2v, prompt, "-o", tmp_path / "a.mp4", "--json")


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("clip.avi", "clip.avi does not end in one of .mp4, .gif, .png, .npy; rename it"),
        ("clip", "clip does not end in one of"),
        ("t2v", "t2v does not end in one of"),
        (
            "t2v/manifest.json/a.mp4",
            "is not a folder; choose another place|Not a directory; choose another place",
        ),
    ],
)
def test_outputs(output: str, message: str, t2v: Path, tmp_path: Path, capfd: Capture) -> None:
    said = refused(capfd, tmp_path, "generate", t2v, PROMPT, "-o", tmp_path / output, "--json")
    assert any(text in said for text in message.split("|"))


def bomb(side: int) -> bytes:
    """A PNG of a few hundred bytes that says it is ``side`` pixels wide and high."""
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"\0")),
        (b"IEND", b""),
    ]
    made = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(made)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "image.png does not exist; check the name"),
        (b"", "image.png is empty; export or download it again"),
        (b"GIF89a", "image.png is not a PNG, JPEG or WebP image; convert it to one of these"),
        (b"\x89PNG\r\n\x1a\n junk", "image.png is not a PNG, JPEG or WebP image; convert it"),
        (bomb(60_000), "image.png has more than 40 megapixels; make it smaller first"),
        (bomb(64), "image.png is damaged or cut short"),
    ],
)
def test_images(data: bytes | None, message: str, i2v: Path, tmp_path: Path, capfd: Capture) -> None:
    image = tmp_path / "image.png"
    if data is not None:
        image.write_bytes(data)
    said = refused(capfd, tmp_path, "generate", i2v, PROMPT, "-o", tmp_path / "a.mp4", "--json", "--image", image)
    assert message in said


def test_image_to_video_needs_an_image(i2v: Path, tmp_path: Path, capfd: Capture) -> None:
    said = refused(capfd, tmp_path, "generate", i2v, PROMPT, "-o", tmp_path / "a.mp4", "--json")
    assert said.endswith("i2v makes clips from an image; give one with --image FILE")
    said = refused(capfd, tmp_path, "generate", i2v, PROMPT, "-o", tmp_path / "a.mp4", "--json", "--image", tmp_path)
    assert "is a folder; name a file in it" in said
    Image.new("RGB", (40, 30)).save(tmp_path / "image.png")
    ran = run(capfd, "generate", i2v, PROMPT, "-o", tmp_path / "a.mp4", "--image", tmp_path / "image.png")
    assert ran.code == 0 and (tmp_path / "a.mp4").is_file()


USED = ["tokenizer.json"] + [
    f"{part}/weights.safetensors" for part in ("text_encoder", "transformer", "vae_decoder", "vae_encoder")
]
USED += ["transformer/main.onnx", "vae_decoder/next.onnx"]


@pytest.mark.parametrize("name", USED)
def test_a_tampered_bundle(name: str, i2v: Path, tmp_path: Path, capfd: Capture) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "image.png")
    data = bytearray((i2v / name).read_bytes())
    data[len(data) // 2] ^= 1
    (i2v / name).write_bytes(data)
    request = ["generate", i2v, PROMPT, "-o", tmp_path / "a.mp4", "--json", "--image", tmp_path / "image.png"]
    for command in (request, ["verify", i2v, "--json"], ["build", i2v, "--json"]):
        said = refused(capfd, tmp_path, *command)
        assert f"i2v/{name} was changed after export: its sha256 differs from the manifest; copy it again" in said


@pytest.mark.parametrize("name", [*USED, "manifest.json"])
@pytest.mark.parametrize("how", ["cut", "gone"])
def test_a_truncated_bundle(name: str, how: str, t2v: Path, tmp_path: Path, capfd: Capture) -> None:
    data = (t2v / name).read_bytes()
    (t2v / name).unlink()
    if how == "cut":
        (t2v / name).write_bytes(data[: len(data) // 2])
    commands = [[command, t2v, "--json"] for command in ("inspect", "verify", "build")]
    commands += [["generate", t2v, PROMPT, "-o", tmp_path / "a.mp4"], ["calibrate", t2v, tmp_path / "out"]]
    for command in commands:
        said = refused(capfd, tmp_path, *command)
        assert f"t2v/{name} " in said or "it has no manifest.json" in said
        assert "again" in said or "reelquant export makes one" in said


def test_places_that_are_no_bundles(tmp_path: Path, capfd: Capture) -> None:
    (tmp_path / "empty").mkdir()
    for name, message in {"none": "no such folder; make one with: reelquant export CHECKPOINT OUT",
                          "empty": "it has no manifest.json; reelquant export makes one"}.items():  # fmt: skip
        for command in ("inspect", "verify", "build"):
            assert message in refused(capfd, tmp_path, command, tmp_path / name, "--json")
    refused(capfd, tmp_path, "inspect", "x" * 300)  # longer than a name may be


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            "--recipe int7",
            "unknown recipe 'int7'; one of fp8, fp8-ends-high, fp8-minmax, int4-weight, int8, int8-ends-high, int8-minmax, int8-reduced, int8-weight, mxfp8, nvfp4, or the path of a .toml file",
        ),
        ("--recipe none.toml", "cannot read the recipe none.toml"),
        ("--recipe int8", "matches no linear of this graph; its linears are transformer_blocks.0.attn1.to_q"),
    ],
)
def test_quantize(options: str, message: str, t2v: Path, ranges: Path, tmp_path: Path, capfd: Capture) -> None:
    said = refused(capfd, tmp_path, "quantize", t2v, ranges, tmp_path / "out", "--json", *options.split())
    assert message in said


def test_quantize_with_what_does_not_belong(t2v: Path, i2v: Path, ranges: Path, tmp_path: Path, capfd: Capture) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text(RECIPE)
    command = ["--recipe", recipe, "--json"]
    said = refused(capfd, tmp_path, "quantize", i2v, ranges, tmp_path / "out", *command)
    assert "these ranges are not of" in said and f"run: reelquant calibrate {i2v} RANGES" in said
    said = refused(capfd, tmp_path, "quantize", t2v, tmp_path / "none", tmp_path / "out", *command)
    assert "are missing or damaged" in said and "run calibrate again" in said
    said = refused(capfd, tmp_path, "quantize", t2v, ranges, i2v, *command)
    assert "i2v exists and is not empty; choose another name, or --replace it" in said
    recipe.write_text(RECIPE.replace("int8", "int4"))
    said = refused(capfd, tmp_path, "quantize", t2v, ranges, tmp_path / "out", *command)
    assert "mine.toml, rule 1: unknown numerics 'int4'; one of high, int8, int8_reduced, fp8" in said
    (ranges / "ranges.safetensors").write_bytes((ranges / "ranges.safetensors").read_bytes()[:-4])
    said = refused(capfd, tmp_path, "quantize", t2v, ranges, tmp_path / "out", *command)
    assert "ranges are missing or damaged" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--data none", "no calibration data in none"),
        ("--prompts 0", "Invalid value for '--prompts': 0 is not in the range x>=1."),
        ("--prompts 33", "calibration data general has 32 prompts; 33 cannot be used"),
        ("--steps 0", "Invalid value for '--steps': 0 is not in the range 1<=x<=1000."),
        ("--seed -1", "Invalid value for '--seed': -1 is not in the range x>=0."),
        ("--data demo --engine torch", "unknown engine 'torch'; one of openvino, onnxruntime"),
        ("--data general", "general has 0 images for 16 prompts; give --data FOLDER with prompts.txt and images/"),
    ],
)
def test_calibrate(options: str, message: str, i2v: Path, tmp_path: Path, capfd: Capture) -> None:
    assert message in refused(capfd, tmp_path, "calibrate", i2v, tmp_path / "out", "--json", *options.split())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    said = refused(capfd, tmp_path, "calibrate", i2v, tmp_path / "out", "--json")
    assert said.endswith("out exists and is not empty; choose another name, or --replace it")
    said = refused(capfd, tmp_path, "calibrate", i2v, tmp_path / "out", "--json", "--replace")
    assert said.endswith("out holds no bundle, so it is not replaced; choose another name, or remove it yourself")


def test_only_an_fp32_bundle_is_calibrated(t2v: Path, tmp_path: Path, capfd: Capture) -> None:
    manifest = t2v / "manifest.json"
    manifest.write_text(manifest.read_text("utf-8").replace('"precision": "fp32"', '"precision": "int8"'), "utf-8")
    assert Bundle.open(t2v).manifest.precision == "int8"
    said = refused(capfd, tmp_path, "calibrate", t2v, tmp_path / "out", "--json")
    assert said.endswith("t2v is int8; calibrate the fp32 bundle that export wrote")


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_an_engine_that_is_not_installed(engine: str, t2v: Path, tmp_path: Path) -> None:
    before = contents(tmp_path)
    for command in (["generate", t2v, PROMPT, "-o", tmp_path / "a.mp4"], ["build", t2v]):
        ran = run_behind_wall([engine], *command, "--engine", engine, "--json")
        assert (ran.returncode, ran.stdout) == (2, "")
        said = f"{engine} is not installed; install it with: pip install 'reelquant[{engine}]'"
        assert only_message(ran.stderr) == said
    assert contents(tmp_path) == before


def test_what_the_system_refuses_is_said_too(
    t2v: Path, tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "manifest")

    monkeypatch.setattr(Path, "is_dir", refuse)
    ran = run(capfd, "inspect", t2v)
    assert (ran.code, ran.out) == (2, "")
    assert only_message(ran.err).endswith("Permission denied: 'manifest'; mend that and run the command again")


def test_a_clip_that_memory_cannot_hold(t2v: Path, tmp_path: Path) -> None:
    """Latents of 32 GB where a process gets 16."""
    before = contents(tmp_path)
    script = f"import resource\nresource.setrlimit(resource.RLIMIT_AS, (2**34, 2**34))\n{COMMAND}"
    command = ["generate", t2v, PROMPT, "-o", tmp_path / "a.mp4", "--size", "49x99984x99984", "--json"]
    ran = run_behind_wall([], *command, script=script)
    assert (ran.returncode, ran.stdout, contents(tmp_path)) == (2, "", before)
    said = only_message(ran.stderr)
    assert said.startswith("not enough memory") and said.endswith("choose a smaller size or fewer frames")
