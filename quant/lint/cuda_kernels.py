"""Which nodes of a graph ONNX Runtime's CUDA provider has kernels of, by the list of kernels that its package registers.

``cuda_kernels.json`` is that list (``tests/runtime/engines/onnxruntime_cuda/record_kernels.py`` wrote it); how a kernel is chosen is
ONNX Runtime's KernelRegistry: by domain, operator, the version in which the operator last changed, and the types of its parameters.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import onnx
import onnx.inliner
import onnx.shape_inference
import onnx_ir as ir

_TABLE: dict[str, Any] = json.loads(Path(__file__).with_name("cuda_kernels.json").read_text(encoding="utf-8"))
VERSION: str = _TABLE["version"]
# What shapes are made of: a few numbers, which ONNX Runtime leaves on the CPU by its own choice.
_SHAPES = frozenset({"int64", "int32", "bool"})
_NAMES = {ir.DataType.FLOAT: "float", ir.DataType.DOUBLE: "double"}


@dataclass(frozen=True)
class Placed:
    """``on_cpu`` are the kinds of nodes that CUDA has no kernel of and the CPU has, ``lacking`` those that neither has: each as "3
    Resize of bfloat16". Nodes that only make shapes are in neither.
    """

    on_cpu: tuple[str, ...]
    lacking: tuple[str, ...]


@dataclass(frozen=True)
class Kind:
    """Nodes that the same kernel computes: ``since`` is the version in which the operator last changed, ``types`` are those of its type
    parameters, by their names.
    """

    domain: str
    operator: str
    since: int
    types: tuple[tuple[str, str], ...]

    def of(self, old: str, new: str) -> Kind:
        """The same nodes with the type ``new`` wherever ``old`` is."""
        return replace(self, types=tuple((key, new if name == old else name) for key, name in self.types))

    def __str__(self) -> str:
        return f"{self.operator} of {', '.join(dict.fromkeys(name for _, name in self.types))}"


def placed(model: ir.Model) -> Placed:
    """Where each node of ``model`` would compute."""
    counted: dict[str, Counter[str]] = {"on_cpu": Counter(), "lacking": Counter()}
    for kind in kinds(model):
        if kind.operator == "Constant" or has_kernel("CUDA", kind) or all(name in _SHAPES for _, name in kind.types):
            continue
        # On the CPU what has no fp16 kernel is computed in float32, between casts.
        there = has_kernel("CPU", kind) or has_kernel("CPU", kind.of("float16", "float"))
        counted["on_cpu" if there else "lacking"][str(kind)] += 1
    said = {where: tuple(f"{n} {kind}" for kind, n in sorted(found.items())) for where, found in counted.items()}
    return Placed(**said)


def has_kernel(provider: str, kind: Kind) -> bool:
    """Whether "CUDA" or "CPU" computes it."""
    types = dict(kind.types)
    for first, last, wanted in _TABLE["kernels"][provider].get(kind.operator, ()) if not kind.domain else ():
        # A kernel without a last version is for the operator as it was when it was written, and no later one.
        version = first == kind.since or (last is not None and first <= kind.since <= last)
        if version and all(name not in types or types[name] in allowed for name, allowed in wanted.items()):
            return True
    return False


def kinds(model: ir.Model) -> Iterator[Kind]:
    """What kind each node is of; of an operator that neither provider has a kernel of, whatever its types, and that ONNX defines by
    others, those: ONNX Runtime puts them in its place.
    """
    for node in model.graph:
        yield from kinds_of(node, model.opset_imports)


def kinds_of(node: ir.Node, versions: Mapping[str, int | None]) -> tuple[Kind, ...]:
    """As :func:`kinds`, of one node; ``versions`` are the graph's of each domain."""
    version = versions.get(node.domain) or 1
    known = not node.domain and any(node.op_type in kernels for kernels in _TABLE["kernels"].values())
    if not known and not node.domain and _is_function(node.op_type, version):
        given = tuple(_onnx_type(value) for value in node.inputs if value is not None)
        return _body(ir.to_proto(node).SerializeToString(), given, version)
    inputs, outputs = ([_type(value) for value in values] for values in (node.inputs, node.outputs))
    return (_kind(node.domain, node.op_type, version, inputs, outputs),)


def _kind(domain: str, operator: str, version: int, inputs: list[str], outputs: list[str]) -> Kind:
    if not onnx.defs.has(operator, domain):
        return Kind(domain, operator, version, tuple((str(i), name) for i, name in enumerate([*inputs, *outputs])))
    schema = onnx.defs.get_schema(operator, version, domain)
    types: dict[str, str] = {}
    for formals, given in ((schema.inputs, inputs), (schema.outputs, outputs)):
        for i, name in enumerate(given):
            formal = formals[min(i, len(formals) - 1)]  # the last may be given many times
            if name:
                # A kernel names a parameter's type by its letter in the schema, or by the parameter.
                types.setdefault(formal.type_str if "(" not in formal.type_str else formal.name, name)
                types.setdefault(formal.name, name)
    return Kind(domain, operator, schema.since_version, tuple(types.items()))


def _is_function(operator: str, version: int) -> bool:
    schema: Any = onnx.defs.get_schema(operator, version, "") if onnx.defs.has(operator, "") else None
    return schema is not None and bool(schema.has_function or schema.has_context_dependent_function)


@cache
def _body(node: bytes, given: tuple[int, ...], version: int) -> tuple[Kind, ...]:
    """The kinds of the nodes that ONNX puts in the place of ``node``, a NodeProto, whose inputs have the types ``given``."""
    proto = onnx.NodeProto.FromString(node)
    schema: Any = onnx.defs.get_schema(proto.op_type, version, "")
    types = [onnx.helper.make_tensor_type_proto(each, None) for each in given]
    since, given_types = schema.since_version, [each.SerializeToString() for each in types]
    written = (
        schema.get_context_dependent_function_with_opset_version(since, node, given_types)
        if schema.has_context_dependent_function
        else schema.get_function_with_opset_version(since).SerializeToString()
    )
    function = onnx.FunctionProto.FromString(written)
    inputs = [onnx.helper.make_value_info(f"in{i}", each) for i, each in enumerate(types)]
    outputs = [onnx.ValueInfoProto(name=f"out{i}") for i in range(len(function.output))]
    call = onnx.helper.make_node(
        "body", [each.name for each in inputs], [each.name for each in outputs], domain="local"
    )
    call.attribute.extend(proto.attribute)
    function.domain, function.name = "local", "body"
    del function.attribute[:]
    function.attribute.extend(each.name for each in proto.attribute)
    opsets = [*function.opset_import, onnx.helper.make_opsetid("local", 1)]
    model = onnx.helper.make_model(
        onnx.helper.make_graph([call], "g", inputs, outputs), opset_imports=opsets, functions=[function]
    )
    inlined = onnx.shape_inference.infer_shapes(onnx.inliner.inline_local_functions(model))
    return tuple(kinds(ir.from_proto(inlined)))


def _type(value: ir.Value | None) -> str:
    return "" if value is None or value.dtype is None else _NAMES.get(value.dtype, value.dtype.name.lower())


def _onnx_type(value: ir.Value) -> int:
    return int(value.dtype) if value.dtype is not None else int(ir.DataType.FLOAT)
