"""A transformer that holds every quantized product twice, and is told at each run which of the two to use.

One graph, opened once, then answers for every choice of layers: what each costs, and what a set of them costs together.
"""

from __future__ import annotations

import onnx_ir as ir

from reelquant.quant.graph.attentions import Attention, attention_nodes
from reelquant.quant.graph.graph_stats import is_quantized, is_quantized_attention, is_weight_only
from reelquant.quant.graph.linears import Linear, bias_of, linear_nodes

SWITCHES = "switches"


def add_switches(quantized: ir.Model, high: ir.Model) -> list[str]:
    """Give ``quantized`` an input ``switches`` (bool [products]), and return the products' names in its order.

    ``high`` is the graph that it was made from; a product whose switch is off is computed as there. Node and value names
    are the same in both graphs but for what quantizing added.
    """
    graph = quantized.graph
    chosen = {linear.name for linear in linear_nodes(quantized) if is_quantized(linear) or is_weight_only(linear)}
    whole = {attention.name for attention in attention_nodes(quantized) if is_quantized_attention(attention)}
    linears = [linear for linear in linear_nodes(high) if linear.name in chosen]
    attentions = [attention for attention in attention_nodes(high) if attention.name in whole]
    products: list[Linear | Attention] = [*linears, *attentions]
    names = [product.name for product in products]
    switches = ir.val(SWITCHES, ir.DataType.BOOL, ir.Shape([len(names)]))
    graph.inputs.append(switches)
    copier = _Copier(graph, high.graph)
    for number, product in enumerate(products):
        nodes = _of_linear(product) if isinstance(product, Linear) else _of_attention(product)
        copier.switch(nodes, product.name, switches, number)
    return names


def _of_linear(linear: Linear) -> list[ir.Node]:
    """The product and its bias."""
    node, _ = bias_of(linear)
    return [linear.node] if node is None or node is linear.node else [linear.node, node]


def _of_attention(attention: Attention) -> list[ir.Node]:
    """From Q·Kᵀ through the softmax to the product with V."""
    nodes, node = [attention.mix], attention.softmax
    while node is not attention.scores:
        nodes.append(node)
        producer = node.inputs[0].producer() if node.inputs[0] is not None else None
        assert producer is not None
        node = producer
    return [attention.scores, *reversed(nodes)]


class _Copier:
    def __init__(self, graph: ir.Graph, source: ir.Graph) -> None:
        self._graph = graph
        self._values = {value.name: value for node in graph for value in node.outputs}
        self._values |= {value.name: value for value in graph.inputs}
        self._source = source

    def switch(self, nodes: list[ir.Node], name: str, switches: ir.Value, number: int) -> None:
        """Copy ``nodes`` of the source, a chain, and let what reads its last value read one of the two."""
        made: dict[str | None, ir.Value] = {}
        copies: list[ir.Node] = []
        for node in nodes:
            inputs = [
                made.get(value.name) or self._value(value) if value is not None else None for value in node.inputs
            ]
            attributes = list(node.attributes.values())
            copy = ir.Node(
                node.domain, node.op_type, inputs, attributes, num_outputs=1, name=f"{name}/high/{len(copies)}"
            )
            copy.outputs[0].name = f"{node.outputs[0].name}::high"
            made[node.outputs[0].name] = copy.outputs[0]
            copies.append(copy)
        wanted = self._values[nodes[-1].outputs[0].name]
        index = ir.val(f"{name}::switch", const_value=ir.tensor(number, name=f"{name}::switch"))
        self._graph.register_initializer(index)
        chosen = ir.node("Gather", [switches, index], {"axis": 0}, name=f"{name}/switch")
        either = ir.node("Where", [chosen.outputs[0], wanted, copies[-1].outputs[0]], name=f"{name}/either")
        either.outputs[0].name, either.outputs[0].shape = f"{wanted.name}::either", wanted.shape
        either.outputs[0].dtype = ir.DataType.FLOAT
        last = wanted.producer()
        assert last is not None
        ir.convenience.replace_all_uses_with(wanted, either.outputs[0], replace_graph_outputs=True)
        either.replace_input_with(1, wanted)
        self._values[nodes[-1].outputs[0].name] = either.outputs[0]  # what later copies read
        self._graph.insert_after(last, [*copies, chosen, either])

    def _value(self, value: ir.Value) -> ir.Value:
        """The same value in the graph: computed, or an initializer, which it may have lost or changed."""
        if value.name in self._values:
            return self._values[value.name]
        name = f"{value.name}::high"
        if name not in self._graph.initializers:
            self._graph.register_initializer(ir.val(name, value.dtype, value.shape, const_value=value.const_value))
        return self._graph.initializers[name]
