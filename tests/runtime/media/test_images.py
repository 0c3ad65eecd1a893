from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFile

from reelquant.runtime.errors import AccuracyError, BadInput
from reelquant.runtime.media import images
from reelquant.runtime.media.images import from_model, load_image, to_model

WHITE = (255, 255, 255)


def noise(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def written(folder: Path, data: bytes, name: str = "image.png") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(width: int, height: int, rows: bytes, bits: int = 8, colour: int = 0, extra: bytes = b"") -> bytes:
    """A PNG built by hand: ``rows`` is the compressed pixel data, whatever it holds."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize(("have", "want"), [((50, 75), (96, 96)), ((311, 200), (96, 160)), ((96, 96), (96, 96))])
def test_equals_diffusers(tmp_path: Path, kind: str, have: tuple[int, int], want: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    processor = pytest.importorskip("diffusers.video_processor").VideoProcessor(vae_scale_factor=8)
    path = written(tmp_path, encoded(Image.fromarray(noise(*have)), kind), f"x.{kind.lower()}")
    with Image.open(path) as image:
        expected = processor.preprocess(image.convert("RGB"), height=want[0], width=want[1])
    ours = load_image(path, *want)
    assert ours.dtype == np.uint8 and ours.shape == (*want, 3)
    assert torch.equal(torch.from_numpy(to_model(ours[None])), expected.unsqueeze(2))
    assert np.abs(ours.astype(np.float32).transpose(2, 0, 1) / 127.5 - 1 - expected[0].numpy()).max() <= 1e-6


def test_pixels_out_equal_diffusers() -> None:
    torch = pytest.importorskip("torch")
    processor = pytest.importorskip("diffusers.video_processor").VideoProcessor(vae_scale_factor=8)
    x = np.random.default_rng(1).normal(0, 0.8, (1, 3, 3, 32, 48)).astype(np.float32)
    # Every value whose rounding is a tie, and both ends.
    x.flat[:512] = np.linspace(-1, 1, 511, dtype=np.float32).tolist() + [-7.0]
    expected = (processor.postprocess_video(torch.from_numpy(x), "np")[0] * 255).round().astype(np.uint8)
    assert np.array_equal(from_model(x), expected)


def test_pixels_survive_the_way_to_the_model_and_back() -> None:
    image = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    x = to_model(image[None])
    assert x.shape == (1, 3, 1, 16, 16) and x.dtype == np.float32 and (x.min(), x.max()) == (-1, 1)
    assert np.array_equal(from_model(x)[0], image)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_clip_with_nan_is_no_clip(bad: float) -> None:
    x = np.zeros((1, 3, 2, 16, 16), np.float32)
    x[0, 1, 1, 3, 3] = bad
    with pytest.raises(AccuracyError, match="frame 1"):
        from_model(x)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_transparency_becomes_white(tmp_path: Path, kind: str) -> None:
    rgba = np.zeros((16, 16, 4), np.uint8)
    rgba[:8] = 10, 200, 30, 255
    rgba[8:12] = 10, 200, 30, 0
    rgba[12:] = 55, 155, 255, 51  # a fifth opaque
    data = encoded(Image.fromarray(rgba), kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    pixels = load_image(written(tmp_path, data), 16, 16)
    assert [tuple(pixels[y, 0].tolist()) for y in (0, 8, 12)] == [(10, 200, 30), WHITE, (215, 235, 255)]


def test_palette_with_a_transparent_colour(tmp_path: Path) -> None:
    image = Image.new("P", (16, 16), 0)
    image.putpalette([200, 20, 20, 0, 0, 250])
    image.paste(1, (0, 0, 16, 8))
    pixels = load_image(written(tmp_path, encoded(image, "PNG", transparency=0)), 16, 16)
    assert tuple(pixels[0, 0].tolist()) == (0, 0, 250) and tuple(pixels[15, 0].tolist()) == WHITE


def test_sixteen_bit_grey_keeps_its_range(tmp_path: Path) -> None:
    grey = np.array([[0, 257 * 3 + 128], [257 * 128 - 128, 65535]], np.uint16)
    pixels = load_image(written(tmp_path, encoded(Image.fromarray(grey), "PNG")), 2, 2)
    assert pixels[..., 0].tolist() == [[0, 3], [128, 255]] and (pixels == pixels[..., :1]).all()


def test_sixteen_bit_grey_with_a_transparent_value(tmp_path: Path) -> None:
    rows = zlib.compress(b"\0" + struct.pack(">2H", 4096, 257 * 32) + b"\0" + struct.pack(">2H", 4097, 257 * 48))
    data = png(2, 2, rows, bits=16, extra=chunk(b"tRNS", struct.pack(">H", 4096)))
    assert load_image(written(tmp_path, data), 2, 2)[..., 0].tolist() == [[255, 32], [16, 48]]


@pytest.mark.parametrize(("mode", "colour", "rgb"), [("1", 1, WHITE), ("L", 77, (77, 77, 77)), ("LA", (9, 0), WHITE)])
def test_grey_becomes_rgb(tmp_path: Path, mode: str, colour: int | tuple[int, int], rgb: tuple[int, int, int]) -> None:
    pixels = load_image(written(tmp_path, encoded(Image.new(mode, (20, 20), colour), "PNG")), 16, 16)
    assert (pixels == np.array(rgb, np.uint8)).all()


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    pixels = load_image(written(tmp_path, encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG")), 16, 16)
    assert np.abs(pixels[0, 0].astype(int) - (255, 0, 0)).max() <= 3


@pytest.mark.parametrize(("orientation", "quarter_turns"), [(1, 0), (3, 2), (6, 3), (8, 1)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_orientation_is_applied(tmp_path: Path, kind: str, orientation: int, quarter_turns: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.zeros((32, 32, 3), np.uint8)
    stored[:16, :16] = WHITE
    path = written(tmp_path, encoded(Image.fromarray(stored), kind, exif=exif))
    seen = load_image(path, 32, 32)
    expected = np.rot90(stored, quarter_turns)
    assert np.abs(seen.astype(int) - expected).max() <= 16


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    first, second = Image.new("RGB", (16, 16), (250, 0, 0)), Image.new("RGB", (16, 16), (0, 0, 250))
    data = encoded(first, "WEBP", save_all=True, append_images=[second], lossless=True)
    assert tuple(load_image(written(tmp_path, data), 16, 16)[0, 0].tolist()) == (250, 0, 0)


@pytest.fixture
def no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(self: ImageFile.ImageFile) -> None:
        pytest.fail("decoded before its size was checked")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)


def deflated_zeros(count: int) -> bytes:
    squeeze = zlib.compressobj(1)
    return b"".join(squeeze.compress(bytes(2**20)) for _ in range(count // 2**20 + 1)) + squeeze.flush()


@pytest.mark.usefixtures("no_decoding")
@pytest.mark.parametrize("side", [60000, 12000, 7000])  # Pillow's error, Pillow's warning, our limit
def test_bombs_are_refused_from_the_header(tmp_path: Path, side: int) -> None:
    rows = deflated_zeros(side * (side + 1)) if side == 12000 else zlib.compress(b"\0")
    data = png(side, side, rows)
    assert len(data) < 2**20
    with pytest.raises(BadInput, match="more than 40 megapixels"):
        load_image(written(tmp_path, data), 96, 96)


@pytest.mark.usefixtures("no_decoding")
def test_webp_bomb(tmp_path: Path) -> None:
    lossless = b"\x2f" + struct.pack("<I", 16382 | 16382 << 14) + bytes(19)
    body = b"WEBPVP8L" + struct.pack("<I", len(lossless)) + lossless
    data = b"RIFF" + struct.pack("<I", len(body)) + body
    with pytest.raises(BadInput, match="more than 40 megapixels"):
        load_image(written(tmp_path, data, "x.webp"), 96, 96)


def test_pixel_limit_is_inclusive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, encoded(Image.fromarray(noise(20, 30)), "PNG"))
    monkeypatch.setattr(images, "MAX_PIXELS", 600)
    load_image(path, 16, 16)
    monkeypatch.setattr(images, "MAX_PIXELS", 599)
    with pytest.raises(BadInput, match="megapixels"):
        load_image(path, 16, 16)


def test_text_bomb(tmp_path: Path) -> None:
    text = chunk(b"zTXt", b"comment\0\0" + deflated_zeros(20 * 2**20))
    with pytest.raises(BadInput, match="too large"):
        load_image(written(tmp_path, png(8, 8, zlib.compress(bytes(72)), extra=text)), 16, 16)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_every_cut_is_noticed(tmp_path: Path, kind: str) -> None:
    data = encoded(Image.fromarray(noise(20, 24)), kind)
    load_image(written(tmp_path, data), 16, 16)
    for length in [*range(1, len(data) - 64, 29), *range(len(data) - 64, len(data))]:
        with pytest.raises(BadInput, match=r"damaged or cut short|not a PNG, JPEG or WebP"):
            load_image(written(tmp_path, data[:length]), 16, 16)


@pytest.mark.parametrize("data", [b"hello", bytes(500), encoded(Image.new("RGB", (16, 16)), "GIF"),
                                  encoded(Image.new("RGB", (16, 16)), "TIFF")])  # fmt: skip
def test_other_files_are_refused_whatever_their_name(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(BadInput, match=r"image\.png is not a PNG, JPEG or WebP image; convert"):
        load_image(written(tmp_path, data), 16, 16)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with (tmp_path / "big.png").open("wb") as handle:
        handle.truncate(images.MAX_FILE_BYTES + 1)
    for name, text in {"absent.png": "does not exist", ".": "is a folder", "pipe.png": "device or pipe",
                       "big.png/x.png": "cannot be read: Not a directory", "big.png": "more than the 67108864"
                       }.items():  # fmt: skip
        with pytest.raises(BadInput, match=text):
            load_image(tmp_path / name, 16, 16)
    with pytest.raises(BadInput, match="is empty"):
        load_image(written(tmp_path, b""), 16, 16)
