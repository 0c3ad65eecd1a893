"""Ranges: what is saved comes back, and nothing damaged does."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from reelquant.quant.calibration.channels import BINS, Channels
from reelquant.quant.calibration.ranges import Provenance, Ranges, Samples
from reelquant.runtime.errors import BadInput, BundleError

PROVENANCE = Provenance(
    "text-to-video", 42, 3, "ab" * 32, 2, 9, 32, 48, "openvino", "2026.4", "cd" * 32, "DDIM, 2 steps"
)


def made() -> Ranges:
    """3 prompts × 2 steps × with and without text = 12 samples of two tensors, one of them awkwardly named."""
    rng = np.random.default_rng(0)
    prompt, step, conditional = (grid.reshape(-1) for grid in np.meshgrid(range(3), range(2), range(2), indexing="ij"))
    samples = Samples(np.array([999, 499])[step], conditional == 1, prompt.astype(np.int64))
    low = {name: rng.normal(-2, 0.3, 12).astype(np.float32) for name in ("add_1", "gelu::low")}
    high = {name: rng.normal(1, 0.3, 12).astype(np.float32) for name in low}
    clips = tuple(rng.normal(0, 1, (3, 4, 2, 2)).astype(np.float32) for _ in range(3))
    return Ranges(PROVENANCE, samples, low, high, {"gelu::low": channels()}, {"add_1": np.arange(BINS)}, clips)


def channels() -> Channels:
    """Of four channels, in two blocks."""
    rng = np.random.default_rng(1)
    low, high, mean = (rng.normal(0, 1, 4).astype(np.float32) for _ in range(3))
    return Channels(low, high, mean, rng.normal(0, 1, (2, 2, 2)).astype(np.float32))


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    ranges = made()
    ranges.save(tmp_path / "ranges")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["ranges", "ranges.json", "ranges.safetensors"]
    again = Ranges.load(tmp_path / "ranges")
    assert again.provenance == PROVENANCE and again.digest == ranges.digest and again.summary == ranges.summary
    for name in ("timestep", "conditional", "prompt"):
        one, two = getattr(ranges.samples, name), getattr(again.samples, name)
        assert one.dtype == two.dtype and one.tolist() == two.tolist()
    for one, two in ((ranges.low, again.low), (ranges.high, again.high)):
        assert {k: v.tolist() for k, v in one.items()} == {k: v.tolist() for k, v in two.items()}
    assert again.channels.keys() == {"gelu::low"} and again.histograms["add_1"].tolist() == list(range(BINS))
    assert [clip.tolist() for clip in again.clips] == [clip.tolist() for clip in ranges.clips]
    for part in dataclasses.fields(Channels):
        one, two = (getattr(each.channels["gelu::low"], part.name) for each in (ranges, again))
        assert one.tolist() == two.tolist()


def test_absmax_looks_at_both_ends_of_every_sample() -> None:
    ranges = made()
    for name in ranges.low:
        expected = max(abs(float(v)) for v in [*ranges.low[name], *ranges.high[name]])
        assert ranges.absmax(name) == expected
    high = {name: values + 10 for name, values in ranges.high.items()}
    assert Ranges(PROVENANCE, ranges.samples, ranges.low, high).absmax("add_1") == high["add_1"].max()
    with pytest.raises(KeyError):
        ranges.absmax("add_2")


def test_the_summary_says_prompts_steps_and_samples() -> None:
    assert made().summary == "2 tensors over 12 samples: 3 prompts, DDIM, 2 steps, seed 42, on openvino 2026.4"


def test_the_digest_is_of_all_content_in_any_order() -> None:
    ranges = made()
    low, high = (dict(sorted(table.items(), reverse=True)) for table in (ranges.low, ranges.high))
    assert dataclasses.replace(ranges, low=low, high=high).digest == ranges.digest

    def bumped(table: Any) -> dict[str, Any]:
        return {name: np.nextafter(values, np.float32(np.sign(values[0]) * 9)) for name, values in table.items()}

    moved = dataclasses.replace(channels(), mean=channels().mean + 1)
    others = [
        dataclasses.replace(ranges, channels={"gelu::low": moved}),
        dataclasses.replace(ranges, channels={}),
        dataclasses.replace(ranges, clips=ranges.clips[:2]),
        dataclasses.replace(ranges, histograms={"add_1": np.arange(BINS) + 1}),
        dataclasses.replace(ranges, low=bumped(ranges.low)),
        dataclasses.replace(ranges, high=bumped(ranges.high)),
        dataclasses.replace(ranges, samples=dataclasses.replace(ranges.samples, timestep=ranges.samples.timestep + 1)),
        dataclasses.replace(ranges, samples=dataclasses.replace(ranges.samples, conditional=np.ones(12, np.bool_))),
        *(
            dataclasses.replace(ranges, provenance=dataclasses.replace(PROVENANCE, **{field.name: value}))
            for field in dataclasses.fields(Provenance)
            for value in [getattr(PROVENANCE, field.name) * 2]
        ),
    ]
    assert len({ranges.digest, *(other.digest for other in others)}) == 1 + len(others)


def _json(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
    def apply(folder: Path) -> None:
        facts = json.loads((folder / "ranges.json").read_text())
        change(facts)
        (folder / "ranges.json").write_text(json.dumps(facts))

    return apply


def _arrays(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
    def apply(folder: Path) -> None:
        arrays = load_file(folder / "ranges.safetensors")
        change(arrays)
        save_file(arrays, folder / "ranges.safetensors")

    return apply


def _cut(folder: Path) -> None:
    path = folder / "ranges.safetensors"
    path.write_bytes(path.read_bytes()[:-5])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "ranges.json").unlink(), "missing or damaged"),
        (lambda folder: (folder / "ranges.safetensors").unlink(), "missing or damaged"),
        (lambda folder: (folder / "ranges.json").write_text("{"), "missing or damaged"),
        (lambda folder: (folder / "ranges.json").write_text("[]"), "missing or damaged"),
        (_cut, "missing or damaged"),
        (_json(lambda facts: facts.update(version=1)), "version 1, and this reelquant reads 5"),
        (_json(lambda facts: facts.pop("digest")), "missing or damaged"),
        (_json(lambda facts: facts.update(provenance=3)), "missing or damaged"),
        (_json(lambda facts: facts["provenance"].update(seed=43)), "does not match its digest"),
        (_json(lambda facts: facts["provenance"].update(mood="good")), "missing or damaged"),
        (_json(lambda facts: facts["provenance"].pop("steps")), "missing or damaged"),
        (_json(lambda facts: facts["provenance"].update(prompts=2)), "a prompt beyond the 2"),
        (_arrays(lambda arrays: arrays["add_1::low"].__setitem__(3, -2.5)), "does not match its digest"),
        (
            _arrays(lambda arrays: arrays["add_1::low"].__setitem__(3, np.nan)),
            "range of add_1 is infinite, not a number",
        ),
        (
            _arrays(lambda arrays: arrays["add_1::high"].__setitem__(3, np.inf)),
            "range of add_1 is infinite, not a number",
        ),
        (_arrays(lambda arrays: arrays["add_1::high"].__setitem__(3, -90)), "upside down"),
        (_arrays(lambda arrays: arrays.pop("add_1::low")), "not of the same tensors: ['add_1']"),
        (_arrays(lambda arrays: arrays.pop("sample::prompt")), "missing or damaged"),
        (_arrays(lambda arrays: arrays.update(other=np.ones(2))), "does not match its digest"),
        (_arrays(lambda arrays: arrays.update({"add_1::low": np.zeros(11, np.float32)})), "not float32 [12]"),
        (_arrays(lambda arrays: arrays.update({"add_1::low": np.zeros(12)})), "float64 [12], not float32"),
        (_arrays(lambda arrays: arrays.pop("clip::1")), "missing or damaged"),
        (_json(lambda facts: facts.update(clips=2)), "does not match its digest"),
        (
            _arrays(lambda arrays: arrays["clip::1"].__setitem__((0, 0, 0, 0), np.nan)),
            "clip 1 is float32 [3, 4, 2, 2], not finite",
        ),
        (_arrays(lambda arrays: arrays.update({"sample::timestep": np.zeros(12, np.int32)})), "not int64 [12]"),
    ],
)
def test_damaged_ranges_are_refused(tmp_path: Path, damage: Callable[[Path], Any], message: str) -> None:
    folder = tmp_path / "ranges"
    made().save(folder)
    damage(folder)
    with pytest.raises(BundleError, match=re.escape(str(folder))) as refusal:
        Ranges.load(folder)
    assert message in str(refusal.value)


def test_empty_ranges_are_refused() -> None:
    ranges = made()
    with pytest.raises(BundleError, match="empty"):
        Ranges(PROVENANCE, ranges.samples, {}, {})


def test_saving_replaces_only_when_asked(tmp_path: Path) -> None:
    made().save(tmp_path / "ranges")
    with pytest.raises(BadInput, match="exists"):
        made().save(tmp_path / "ranges")
    made().save(tmp_path / "ranges", replace=True)
    assert Ranges.load(tmp_path / "ranges").digest == made().digest
