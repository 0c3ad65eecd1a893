"""The tracer's leftovers removed: onnxscript's folding and rewriting, without ever touching a weight.

``onnxscript.optimizer.optimize_ir`` does the same with all of its rewriting rules; one that never matches here
(slice_split) takes the square of the number of nodes.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import Sequential, common
from onnxscript.optimizer import fold_constants_ir
from onnxscript.rewriter import RewritePass
from onnxscript.rewriter.rules import common as rules

_RULES = [
    rules.add_0_rule,
    rules.cast_cast_rule,
    rules.collapse_slice2_rule,
    rules.collapse_slice_rule,
    rules.div_by_1_rule,
    rules.materialize_reshape_shape_rule,
    rules.mul_by_1_rule,
    rules.no_op_cast_rule,
    rules.no_op_expand_rule,
    rules.no_op_transpose_rule,
    rules.reshape_reshape_rule,
    rules.squeeze_reshape_1d_rule,
    rules.sub_0_rule,
    rules.transpose_transpose_rule,
    rules.two_reshapes_matmul_reshape_rule,
    rules.unsqueeze_unsqueeze_rule,
]


def optimize(model: ir.Model) -> int:
    """Simplify ``model`` in place; return by how many nodes it shrank. What reads a weight is never computed."""
    before = sum(1 for _ in model.graph)
    common.InlinePass()(model)
    _fold(model)  # first, so that the rules look at half the nodes
    RewritePass(_RULES)(model)
    _fold(model)  # what the rules left as Identity
    Sequential(
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.LiftSubgraphInitializersToMainGraphPass(),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
        common.RemoveUnusedOpsetsPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    )(model)
    _fold(model)  # what had been written twice
    return before - sum(1 for _ in model.graph)


def _fold(model: ir.Model) -> None:
    with np.errstate(divide="ignore", invalid="ignore"):  # T5's folded position buckets take the log of 0
        fold_constants_ir(model, onnx_shape_inference=True, should_fold=_reads_no_weight)
    common.RemoveUnusedNodesPass()(model)


def _reads_no_weight(node: ir.Node) -> bool | None:
    """False for what computes with a weight, which would load it; for all else the folding's own rules."""
    weights = (value.const_value for value in node.inputs if value is not None)
    return False if any(isinstance(weight, ir.LazyTensor) for weight in weights) else None
