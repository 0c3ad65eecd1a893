"""A stream's caches: written in place only where that is safe, and computed early."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from reelquant.export.caches import check_in_place
from reelquant.export.passes.early_caches import compute_caches_early

GRAPH = """<ir_version: 10, opset_import: ["" : 21]>
stream (float[2] "cache.in", float[2] x) => (float[4] y, float[2] "next_cache.in")
<int64[1] start = {{-2}}, int64[1] end = {{9999}}, int64[1] axis = {{0}}> {{
 joined = Concat <axis = 0> ("cache.in", x)
 size = Shape("cache.in")
 "next_cache.in" = {successor}
 y = Neg(joined)
}}"""


def test_a_successor_of_the_join_is_allowed() -> None:
    check_in_place(ir.from_onnx_text(GRAPH.format(successor="Slice(joined, start, end, axis)")))


def test_a_successor_of_the_new_frames_alone_is_not() -> None:
    with pytest.raises(ValueError, match="cache.in is read by .*, which its successor does not need"):
        check_in_place(ir.from_onnx_text(GRAPH.format(successor="Neg(x)")))


def test_caches_are_first_of_the_outputs_and_last_in_the_file() -> None:
    model = ir.from_onnx_text(GRAPH.format(successor="Slice(joined, start, end, axis)"))
    assert compute_caches_early(model) == 1
    assert [value.name for value in model.graph.outputs] == ["next_cache.in", "y"]
    assert [node.op_type for node in model.graph][-2:] == ["Neg", "Slice"]
