"""The demo's judge: what is rendered can be read back, and a wrong clip scores wrong."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray

from demo.clips import (
    ATTRIBUTES,
    BACKGROUNDS,
    COLOURS,
    DIRECTIONS,
    SHAPES,
    Scene,
    held_out_scenes,
    random_scene,
    render,
)
from demo.fidelity import measure, tasks
from demo.reader import read_clip, score, shape_iou


@pytest.mark.parametrize("size", [64, 96])
def test_every_rendered_clip_is_read_back(size: int) -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        scene = random_scene(rng)
        assert all(score(scene, render(scene, rng, height=size, width=size)).values()), scene


def test_a_wrong_clip_scores_wrong() -> None:
    rng = np.random.default_rng(1)
    scene = Scene("red", "circle", "left", "black")
    clip = render(scene, rng)
    for other in (
        replace(scene, colour="blue"),
        replace(scene, shape="cross"),
        replace(scene, direction="up"),
        replace(scene, background="white"),
    ):
        wrong = [name for name, right in score(other, clip).items() if not right]
        assert wrong == [name for name in ATTRIBUTES if getattr(other, name) != getattr(scene, name)]
    assert score(replace(scene, direction="right"), clip[::-1])["direction"]


def test_an_empty_clip_shows_nothing() -> None:
    clip = np.full((17, 96, 96, 3), BACKGROUNDS["grey"], np.uint8)
    assert read_clip(clip) is None
    assert not any(score(Scene("red", "circle", "left", "grey"), clip).values())


def test_one_combination_in_eight_is_held_out_and_no_other_is_scored() -> None:
    every = [Scene(*names) for names in product(COLOURS, SHAPES, DIRECTIONS, BACKGROUNDS)]
    assert sum(scene.held_out for scene in every) == len(every) // 8
    scenes = held_out_scenes(64)
    assert len(set(scenes)) == 64 and all(scene.held_out for scene in scenes)
    rng = np.random.default_rng(2)
    assert not any(random_scene(rng).held_out for _ in range(100))
    for name, values in (
        ("colour", COLOURS),
        ("shape", SHAPES),
        ("direction", DIRECTIONS),
        ("background", BACKGROUNDS),
    ):
        assert {getattr(scene, name) for scene in scenes} == set(values)


def test_fidelity_counts_what_is_right() -> None:
    wanted = tasks(8)
    rng = np.random.default_rng(3)
    right = [(task, render(task.scene, rng)) for task in wanted]
    found = measure("t2v", iter(right))
    assert found.pop("shape_iou") > 0.97
    assert found == {"prompts": 8, "fidelity": dict.fromkeys([*ATTRIBUTES, "mean"], 1.0)}
    blank = np.zeros_like(right[0][1])
    found = measure("t2v", iter([*right[:6], *((task, blank) for task in wanted[6:])]))
    assert found["fidelity"] == dict.fromkeys([*ATTRIBUTES, "mean"], 0.75)
    assert 0.73 < found["shape_iou"] < 0.75


def test_how_well_a_shape_is_drawn() -> None:
    rng = np.random.default_rng(4)
    ideal = [shape_iou(scene, render(scene, rng)) for scene in held_out_scenes(48)]
    assert min(ideal) > 0.91 and float(np.mean(ideal)) > 0.995  # a cyan thing's soft edge on black is green
    for scene in held_out_scenes(8):
        for drawn in set(SHAPES) - {scene.shape}:
            assert shape_iou(scene, render(replace(scene, shape=drawn), rng)) < 0.87
        assert shape_iou(scene, blob(scene)) < 0.87
        lumpy = render(scene, rng)
        lumpy[:, ::6] = BACKGROUNDS[scene.background]  # every sixth row is lost
        assert shape_iou(scene, lumpy) < 0.9
        assert shape_iou(replace(scene, colour="cyan" if scene.colour != "cyan" else "red"), render(scene, rng)) < 0.5


def blob(scene: Scene) -> NDArray[np.uint8]:
    """A still clip in the scene's colours of an oblong without corners, as large as its shape."""
    ys, xs = np.mgrid[-48:48, -48:48] + 0.5
    inside = np.hypot(xs / 30, ys / 17) < 1
    frame = np.where(inside[..., None], COLOURS[scene.colour], BACKGROUNDS[scene.background])
    return np.repeat(frame[None].astype(np.uint8), 3, axis=0)
