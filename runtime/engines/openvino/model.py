"""What is changed in OpenVINO's model of a graph before it is compiled: its shapes, and where it computes in bf16."""

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


def bf16_of(model: Any) -> str:
    """What of ``model`` may be computed in bf16, as its graph says (:mod:`reelquant.runtime.engines.session`); "" for nothing."""
    key = ["framework", BF16_KEY]
    said = str(model.get_rt_info(key).astype(str)) if model.has_rt_info(key) else ""
    return said if said in (BF16_ATTENTION, BF16_ALL) else ""


def attention_in_bf16(model: Any) -> int:
    """Put both products of every attention of ``model`` in bf16, and return how many there are.

    OpenVINO's own hint would put everything that is not INT8 in bf16, the residual stream and the norms among it: on the
    demo that errs seven times as much, and gains little more (docs/benchmarks.md).
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
        for node, number in ((scores, 0), (scores, 1), (mixed, 1)):
            cast(node, number)
        readers = mixed.output(0).get_target_inputs()
        back = opset13.convert(mixed.output(0), "f32")
        for reader in readers:
            reader.replace_source_output(back.output(0))
        found += 1
    model.validate_nodes_and_infer_types()
    return found
