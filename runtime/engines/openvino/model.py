"""What is changed in OpenVINO's model of a graph before it is compiled: its shapes, its rotations, and where it computes in bf16."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from reelquant.runtime.engines.session import BF16_ALL, BF16_ATTENTION, BF16_KEY

Shapes = Sequence[tuple[int, ...]]


def with_shapes(model: Any, shapes: Shapes, inputs_apart: bool) -> None:
    """Make the shapes of ``model``'s inputs known.

    With ``inputs_apart`` they are known behind the inputs and not of them: for an input of known shape memory is taken when
    the graph is compiled.
    """
    if not inputs_apart:
        model.reshape(dict(zip((port.any_name for port in model.inputs), map(list, shapes), strict=True)))
        return
    from openvino import opset13

    for port, shape in zip(model.inputs, shapes, strict=True):
        users = port.get_target_inputs()
        known = opset13.reshape(port, opset13.constant(np.array(shape, np.int64)), special_zero=False)
        for user in users:
            user.replace_source_output(known.output(0))
    model.validate_nodes_and_infer_types()


def rotate_by_products(model: Any) -> int:
    """Let rotary positions pair up neighbours by a product, and return in how many places.

    y[2i] = −x[2i+1], y[2i+1] = x[2i] is a slice, a negation and a concatenation of single values, for which OpenVINO has reference code
    alone. The same is x times a matrix of 0, 1 and −1: exact, and in much less time on small models.
    """
    from openvino import opset13

    found = 0
    for concat in [node for node in model.get_ops() if node.get_type_name() == "Concat"]:
        pairs = _rotated(concat)
        if pairs is None:
            continue
        x, rotated = pairs
        size = x.get_partial_shape()[-1].get_length()
        even, matrix = np.arange(0, size, 2), np.zeros((size, size), np.float32)
        matrix[even + 1, even], matrix[even, even + 1] = -1, 1
        product = opset13.matmul(x, opset13.convert(opset13.constant(matrix), x.get_element_type()), False, False)
        for reader in rotated.output(0).get_target_inputs():
            reader.replace_source_output(product.output(0))
        found += 1
    model.validate_nodes_and_infer_types()
    return found


def _rotated(concat: Any) -> tuple[Any, Any] | None:
    """Of a concatenation that is the middle of such a rotation: what is rotated (an output), and the node with the result."""
    readers = list(concat.output(0).get_target_inputs())
    if concat.get_input_size() != 2 or len(readers) != 1 or readers[0].get_node().get_type_name() != "Reshape":
        return None
    odd, even = _source(concat, "Unsqueeze"), _source(concat, "Unsqueeze", 1)
    negated = _source(odd, "Negative")
    slices = [_source(_source(each, "Squeeze"), "Slice") for each in (negated, even)]
    folded = [_source(each, "Reshape") for each in slices]
    if None in slices or None in folded or folded[0] != folded[1]:
        return None
    x, result = folded[0].input_value(0), readers[0].get_node()
    starts = [_constant(each, 1) for each in slices]
    axes = [_constant(each, 4) for each in slices]
    shape, pairs = x.get_partial_shape(), folded[0].get_output_partial_shape(0)
    known = shape.rank.is_static and shape[-1].is_static and pairs[-1].is_static and pairs[-1].get_length() == 2
    last = [pairs.rank.get_length() - 1], [-1]
    if not known or starts != [[1], [0]] or any(each not in last for each in axes):
        return None
    same = len(result.get_output_partial_shape(0)) == len(shape) and concat.get_attributes()["axis"] in (-1, last[0][0])
    return (x, result) if same else None


def _source(node: Any, kind: str, number: int = 0) -> Any:
    """The node that ``node`` reads there, where both are and it is of this kind; else None."""
    found = None if node is None else node.input_value(number).get_node()
    return found if found is not None and found.get_type_name() == kind else None


def _constant(node: Any, number: int) -> list[int] | None:
    """The values of a constant that ``node`` reads, None where it reads none there."""
    source = node.input_value(number).get_node() if number < node.get_input_size() else None
    return (
        [int(value) for value in source.data.reshape(-1)] if source and source.get_type_name() == "Constant" else None
    )


def bf16_of(model: Any) -> str:
    """What of ``model`` may be computed in bf16, as its graph says (:mod:`reelquant.runtime.engines.session`); "" for nothing."""
    key = ["framework", BF16_KEY]
    said = str(model.get_rt_info(key).astype(str)) if model.has_rt_info(key) else ""
    return said if said in (BF16_ATTENTION, BF16_ALL) else ""


def attention_in_bf16(model: Any) -> int:
    """Put both products of every attention of ``model`` in bf16, and return how many there are.

    OpenVINO's own hint would put everything that is not INT8 in bf16, the residual stream and the norms among it: that errs
    far more, and gains little more.
    """
    from openvino import opset13

    def cast(node: Any, number: int) -> None:
        node.input(number).replace_source_output(opset13.convert(node.input_value(number), "bf16").output(0))

    found = 0
    for softmax in [node for node in model.get_ops() if node.get_type_name() == "Softmax"]:
        scores = softmax.input_value(0).get_node()
        users = list(softmax.output(0).get_target_inputs())
        mixed = users[0].get_node() if len(users) == 1 else None
        if scores.get_type_name() != "MatMul" or mixed is None or mixed.get_type_name() != "MatMul":
            continue  # a mask or a bias between them: not an attention of the transformer's
        before = mixed.get_output_element_type(0)
        for node, number in ((scores, 0), (scores, 1), (mixed, 1)):
            cast(node, number)
        readers = mixed.output(0).get_target_inputs()
        back = opset13.convert(mixed.output(0), before)
        for reader in readers:
            reader.replace_source_output(back.output(0))
        found += 1
    model.validate_nodes_and_infer_types()
    return found
