"""The cache of engines: found by its inputs alone, whole or not there, and built once however many want it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from reelquant.runtime.engines.tensorrt.cache import (
    EngineCache,
    cache_key,
    changed_inputs,
)
from reelquant.runtime.files.atomic import link_or_copy
from reelquant.runtime.files.user_cache import user_cache

INPUTS: dict[str, Any] = {"graph": "a" * 64, "profile": {"height": [60, 60, 60]}, "targets": ["sm89"], "level": 3}


def engine(data: bytes = b"engine") -> tuple[memoryview, Mapping[str, Any]]:
    return memoryview(data), {"inputs": {"x": ((1, 2), (1, 2))}, "evidence": {"build_seconds": 1.5}}


def test_what_was_built_is_found_again(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    assert cache.find(INPUTS) is None
    made, was_there = cache.get(INPUTS, engine)
    again, was_there_again = EngineCache(tmp_path).get(INPUTS, lambda: engine(b"another"))
    assert (was_there, was_there_again) == (False, True)
    assert made == again and made.file.read_bytes() == b"engine"
    assert again.facts["inputs"] == {"x": [[1, 2], [1, 2]]}


@pytest.mark.parametrize(
    ("name", "value"),
    [("graph", "b" * 64), ("profile", {"height": [30, 60, 60]}), ("targets", ["sm120"]), ("level", 5)],
)
def test_every_input_counts(tmp_path: Path, name: str, value: Any) -> None:
    cache = EngineCache(tmp_path)
    cache.get(INPUTS, engine)
    changed = {**INPUTS, name: value}
    assert cache_key(changed) != cache_key(INPUTS) and cache.find(changed) is None
    (why,) = changed_inputs(INPUTS, changed)
    assert why.startswith(name) and " → " in why and len(why) < 100


def test_what_is_not_whole_is_not_found(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    entry, _ = cache.get(INPUTS, engine)
    facts = entry.file.with_suffix(".json")
    text = facts.read_text("utf-8")
    for damage in ("", "{", json.dumps({**json.loads(text), "bytes": 5}), text.replace("sm89", "sm86")):
        facts.write_text(damage, "utf-8")
        assert cache.find(INPUTS) is None
    facts.write_text(text, "utf-8")
    entry.file.write_bytes(b"engines")
    assert cache.find(INPUTS) is None
    entry.file.unlink()
    assert cache.find(INPUTS) is None
    assert cache.get(INPUTS, engine)[1] is False and cache.find(INPUTS) is not None


def test_a_build_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> tuple[memoryview, Mapping[str, Any]]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        EngineCache(tmp_path).get(INPUTS, fail)
    assert [file.suffix for file in tmp_path.iterdir() if file.suffix != ".lock"] == []
    assert EngineCache(tmp_path).get(INPUTS, engine)[1] is False  # and does not lock the next out


def test_two_builders_of_one_key_build_once(tmp_path: Path) -> None:
    built: list[int] = []
    started = Event()

    def build() -> tuple[memoryview, Mapping[str, Any]]:
        built.append(1)
        started.set()
        Event().wait(0.3)
        return engine()

    with ThreadPoolExecutor(2) as both:
        first = both.submit(EngineCache(tmp_path).get, INPUTS, build)
        assert started.wait(5)
        second = both.submit(EngineCache(tmp_path).get, INPUTS, build)
        assert {first.result()[1], second.result()[1]} == {False, True}
    assert built == [1]


def test_an_engine_gets_a_second_name_or_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"engine")
    link_or_copy(source, tmp_path / "new" / "name")
    assert (tmp_path / "new" / "name").samefile(source)

    def refuse(*_: Any) -> None:
        raise OSError("another disk")

    monkeypatch.setattr("os.link", refuse)
    link_or_copy(source, tmp_path / "new" / "name")
    assert not (tmp_path / "new" / "name").samefile(source)
    assert (tmp_path / "new" / "name").read_bytes() == b"engine"


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {"XDG_CACHE_HOME": "/x/cache"}, "/x/cache/reelquant/engines"),
        ("linux", {}, "/home/me/.cache/reelquant/engines"),
        ("darwin", {}, "/home/me/Library/Caches/reelquant/engines"),
        ("win32", {"LOCALAPPDATA": "/appdata"}, "/appdata/reelquant/engines"),
        ("win32", {}, "/home/me/AppData/Local/reelquant/engines"),
        ("linux", {"REELQUANT_CACHE": "/big", "XDG_CACHE_HOME": "/x"}, "/big/engines"),
    ],
)
def test_the_cache_is_where_the_system_has_caches(
    monkeypatch: pytest.MonkeyPatch, platform: str, variables: dict[str, str], expected: str
) -> None:
    for name in ("REELQUANT_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/me", **variables}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.platform", platform)
    assert user_cache("engines").as_posix() == expected
