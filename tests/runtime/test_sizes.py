from __future__ import annotations

from dataclasses import replace

import pytest

from reelquant.runtime.errors import BadInput
from reelquant.runtime.sizes import Geometry, Size, checked, parse_size, smaller_sizes

GEOMETRY = Geometry()
LATER = Geometry(patch_t=2, max_frames=81)


@pytest.mark.parametrize("size", [Size(49, 480, 720), Size(9, 16, 16), Size(17, 96, 32)])
def test_possible_sizes_are_given_back(size: Size) -> None:
    assert checked(size, GEOMETRY) is size
    assert Size.of_latents(size.latent_shape(GEOMETRY), GEOMETRY) == size


@pytest.mark.parametrize("geometry", [GEOMETRY, LATER])
def test_smaller_sizes_are_possible_ones(geometry: Geometry) -> None:
    """Down to the smallest, by frames alone first."""
    sizes = list(smaller_sizes(Size(49, 480, 720), geometry))
    assert all(checked(size, geometry) is size for size in sizes)
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
        checked(size, GEOMETRY)


@pytest.mark.parametrize(
    ("frames", "nearest"),
    [(-8, 9), (0, 9), (1, 9), (2, 9), (12, 9), (13, 17), (16, 17), (48, 49), (50, 49), (10**9, 49)],
)
def test_frames_are_one_more_than_a_multiple_of_eight(frames: int, nearest: int) -> None:
    with pytest.raises(BadInput, match=f"^{frames} frames is not 8N.1 from 9 to 49; the nearest is {nearest}$"):
        checked(Size(frames, 64, 64), GEOMETRY)


def test_temporal_patches_double_the_step() -> None:
    assert checked(Size(81, 64, 64), LATER) == Size(81, 64, 64)
    with pytest.raises(BadInput, match="25 frames is not 16N.1 from 17 to 81; the nearest is 33"):
        checked(Size(25, 64, 64), LATER)


def test_every_nearest_value_is_itself_possible() -> None:
    for field in ("frames", "height", "width"):
        for value in range(-20, 120):
            size = replace(Size(9, 64, 64), **{field: value})
            try:
                checked(size, GEOMETRY)
            except BadInput as error:
                assert checked(replace(size, **{field: int(str(error).split()[-1])}), GEOMETRY)


def test_latents_and_tokens() -> None:
    size = Size(49, 480, 720)
    assert size.latent_frames(GEOMETRY) == 13 and size.latent_shape(GEOMETRY) == (13, 16, 60, 90)
    assert size.latent_shape(GEOMETRY, 32) == (13, 32, 60, 90)
    assert size.video_tokens(GEOMETRY) == 13 * 30 * 45 and size.video_tokens(LATER) == 7 * 30 * 45


@pytest.mark.parametrize(("text", "size"), [("480x720", (480, 720)), ("96X32", (96, 32)), (" 16x16 ", (16, 16))])
def test_sizes_are_written_height_first(text: str, size: tuple[int, int]) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "480", "480x", "x720", "480x720x3", "-16x16", "1.5x16", "a x b", "٤x٤",
                                  "9" * 5000 + "x16"])  # fmt: skip
def test_other_texts_are_no_sizes(text: str) -> None:
    with pytest.raises(BadInput, match="is not HEIGHTxWIDTH; write it like 480x720") as refusal:
        parse_size(text)
    assert len(str(refusal.value)) < 120
