from __future__ import annotations

from dataclasses import replace

import pytest

from reelquant.runtime.errors import BadInput
from reelquant.runtime.models.cogvideox.geometry import Geometry
from reelquant.runtime.sizes import Size

GEOMETRY = Geometry()
LATER = Geometry(patch_t=2, max_frames=81)


@pytest.mark.parametrize("size", [Size(49, 480, 720), Size(9, 16, 16), Size(17, 96, 32)])
def test_possible_sizes_are_given_back(size: Size) -> None:
    assert GEOMETRY.checked(size) is size
    assert GEOMETRY.size_of(GEOMETRY.latent_shape(size)) == size


@pytest.mark.parametrize("geometry", [GEOMETRY, LATER])
def test_smaller_sizes_are_possible_ones(geometry: Geometry) -> None:
    """Down to the smallest, by frames alone first."""
    sizes = list(geometry.smaller(Size(49, 480, 720)))
    assert all(geometry.checked(size) is size for size in sizes)
    assert sizes[0] == Size(33 if geometry is LATER else 41, 480, 720)
    assert sizes[-1] == Size(1 + geometry.frame_step, 64, 96)


@pytest.mark.parametrize(
    ("name", "value", "nearest"),
    [("height", 481, 480), ("height", 488, 496), ("height", 487, 480), ("height", 0, 16), ("height", -32, 16),
     ("width", 7, 16), ("width", 719, 720), ("width", 728, 736)],
)  # fmt: skip
def test_sides_are_multiples_of_sixteen(name: str, value: int, nearest: int) -> None:
    size = Size(9, value, 64) if name == "height" else Size(9, 64, value)
    with pytest.raises(BadInput, match=f"^{name} {value} is not a positive multiple of 16; the nearest is {nearest}$"):
        GEOMETRY.checked(size)


@pytest.mark.parametrize(
    ("frames", "nearest"),
    [(-8, 9), (0, 9), (1, 9), (2, 9), (12, 9), (13, 17), (16, 17), (48, 49), (50, 49), (10**9, 49)],
)
def test_frames_are_one_more_than_a_multiple_of_eight(frames: int, nearest: int) -> None:
    with pytest.raises(BadInput, match=f"^{frames} frames is not 8N.1 from 9 to 49; the nearest is {nearest}$"):
        GEOMETRY.checked(Size(frames, 64, 64))


def test_temporal_patches_double_the_step() -> None:
    assert LATER.checked(Size(81, 64, 64)) == Size(81, 64, 64)
    with pytest.raises(BadInput, match="25 frames is not 16N.1 from 17 to 81; the nearest is 33"):
        LATER.checked(Size(25, 64, 64))


def test_every_nearest_value_is_itself_possible() -> None:
    for field in ("frames", "height", "width"):
        for value in range(-20, 120):
            size = replace(Size(9, 64, 64), **{field: value})
            try:
                GEOMETRY.checked(size)
            except BadInput as error:
                assert GEOMETRY.checked(replace(size, **{field: int(str(error).split()[-1])}))


def test_latents_and_tokens() -> None:
    size = Size(49, 480, 720)
    assert GEOMETRY.latent_frames(size) == 13 and GEOMETRY.latent_shape(size) == (13, 16, 60, 90)
    assert GEOMETRY.sampled_shape(size) == (13, 16, 60, 90) and LATER.sampled_shape(size) == (14, 16, 60, 90)
    assert GEOMETRY.video_tokens(size) == 13 * 30 * 45 and LATER.video_tokens(size) == 7 * 30 * 45


@pytest.mark.parametrize(
    ("text", "size"), [("49x480x720", Size(49, 480, 720)), ("9X96x32", Size(9, 96, 32)), (" 9x16x16 ", Size(9, 16, 16))]
)
def test_sizes_are_written_frames_first_then_height(text: str, size: Size) -> None:
    assert Size.parse(text) == size and Size.parse(str(size)) == size and str(size) == text.strip().lower()


@pytest.mark.parametrize("text", ["", "x", "480", "480x", "x720", "480x720", "480x720x", "-9x16x16", "1x480x720x3", "9x1.5x16", "a x b x c", "٤x٤x٤",
                                  "9" * 5000 + "x16x16"])  # fmt: skip
def test_other_texts_are_no_sizes(text: str) -> None:
    with pytest.raises(BadInput, match="is not FRAMESxHEIGHTxWIDTH; write it like 49x480x720") as refusal:
        Size.parse(text)
    assert len(str(refusal.value)) < 160
