"""Name nodes and weights by the module they come from, so that recipes and errors speak of ``…attn1.to_q``."""

from __future__ import annotations

import ast

import onnx_ir as ir

_SCOPES = "pkg.torch.onnx.name_scopes"
_WEIGHTED = ("MatMul", "Gemm", "Conv")


def name_by_module(model: ir.Model, prefix: str) -> int:
    """Give every node its module's path without ``prefix`` and return how many weights were renamed.

    A node that multiplies by a weight gets the path itself, and its weight ``path.weight``; any other node gets
    ``path/OpType`` with a number where there are several.
    """
    graph = model.graph
    for name in list(graph.initializers):
        if name.startswith(f"{prefix}."):
            graph.initializers[name].name = name.removeprefix(f"{prefix}.")
    renamed = 0
    seen: dict[str, int] = {}
    for node in graph:
        path = _module(node, prefix)
        weight = node.inputs[1] if node.op_type in _WEIGHTED and len(node.inputs) > 1 else None
        if weight is not None and weight.is_initializer() and path:
            node.name = path
            if weight.name != f"{path}.weight" and f"{path}.weight" not in graph.initializers:
                weight.name = f"{path}.weight"
                renamed += 1
            continue
        label = f"{path}/{node.op_type}" if path else node.op_type
        seen[label] = seen.get(label, 0) + 1
        node.name = label if seen[label] == 1 else f"{label}_{seen[label]}"
    for node in graph:
        node.metadata_props.clear()  # stack traces of the machine that traced it
    return renamed


def _module(node: ir.Node, prefix: str) -> str:
    scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
    modules = [scope for scope in scopes[:-1] if scope.startswith(prefix)]
    return str(modules[-1]).removeprefix(prefix).removeprefix(".") if modules else ""
