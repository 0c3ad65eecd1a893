"""CogVideoX-2b's own width at its own size, two layers deep: what its engines take, by the builder's own log."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.engines import build, built_apart, fp32_bundle, in_precision
from benchmarks.variants import VARIANTS
from reelquant.runtime.bundle import Bundle

CLIP = "49x480x720"  # 17,776 tokens
Work = tuple[Path, Bundle]


@pytest.fixture(scope="module", autouse=True)
def no_parity() -> Iterator[None]:
    """Whether graphs are torch's is for the tests of the export to say; at this width it takes minutes."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("reelquant.export.trace_bundle.check_parity", lambda *_, **__: {})
        yield


@pytest.fixture(scope="module")
def transformer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Work]:
    work = tmp_path_factory.mktemp("engines")
    yield work, fp32_bundle(work, "cogvideox-2b-2", VARIANTS["cogvideox-2b"].layers(2), ("transformer",))
    shutil.rmtree(work)  # gigabytes, which pytest would keep


def test_attention_is_fused_and_memory_is_bounded_in_every_precision(transformer: Work) -> None:
    work, fp32 = transformer
    found: dict[str, dict[str, Any]] = {}
    for precision in ("fp16", "bf16", "fp8", "nvfp4"):
        bundle = in_precision(fp32, precision, "fp16")
        gpu = "sm120" if precision == "nvfp4" else "sm89"
        (found[precision],) = build(str(bundle.path), CLIP, gpu, False, str(work / "cache"))
    for row in found.values():
        assert row["attention"] == "fused" and row["activation_bytes"] <= 1.2e9
    assert found["fp8"]["activation_bytes"] <= found["fp16"]["activation_bytes"]
    assert found["fp8"]["weight_bytes"] <= 0.6 * found["fp16"]["weight_bytes"]
    assert found["nvfp4"]["weight_bytes"] <= 0.75 * found["fp8"]["weight_bytes"]


@pytest.mark.slow
@pytest.mark.parametrize("depth", [1, 3])
def test_the_vae_decoder_is_built_whole_and_in_tiles(depth: int, tmp_path: Path) -> None:
    two = VARIANTS["cogvideox-2b"].layers(2)
    variant = replace(two, vae={**two.vae, "layers_per_block": depth})
    fp32 = fp32_bundle(tmp_path, "cogvideox-2b-2", variant, ("vae_decoder",))
    bundle = in_precision(fp32, "fp16", "fp16")
    whole, tiles = (
        {row["graph"]: row for row in build(str(bundle.path), CLIP, "sm89", tiled, str(tmp_path / "cache"))}
        for tiled in (False, True)
    )
    assert whole.keys() == tiles.keys() == {"vae_decoder/first", "vae_decoder/next"}
    for graph, row in whole.items():
        assert tiles[graph]["activation_bytes"] < 0.4 * row["activation_bytes"] < 0.4 * 6e9
    for left in tmp_path.iterdir():
        shutil.rmtree(left)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_whole_of_2b_in_fp8(tmp_path: Path) -> None:
    fp32 = fp32_bundle(tmp_path, "cogvideox-2b", VARIANTS["cogvideox-2b"], ("transformer",))
    rows = {}
    for precision in ("fp16", "fp8"):
        bundle = in_precision(fp32, precision, "fp16")
        (rows[precision],) = built_apart(bundle, CLIP, "sm89", False, tmp_path / "cache")
        print(precision, rows[precision], file=sys.stderr)
    assert rows["fp8"]["engine_bytes"] <= 0.6 * rows["fp16"]["engine_bytes"]
    assert max(row["again_seconds"] for row in rows.values()) < 2
