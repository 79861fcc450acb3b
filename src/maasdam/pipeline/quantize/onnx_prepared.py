"""An ONNX graph as ONNX Runtime's quantisation tools take it. Knows what they stumble over; computes the same as before.

graph --already int8? halves? names?--> the same in float32, named anew --biases apart--> tools
graph --> what lies behind its last products, where boxes and scores stand beside each other and nothing may be rounded
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from maasdam.convert.onnx_files import graphs_of, inner_graphs, nodes_of
from maasdam.convert.proof.precision import QUANTIZED
from maasdam.errors import Unsupported

PRODUCTS = frozenset(
    {"Attention", "Conv", "ConvTranspose", "DeformConv", "Einsum", "GRU", "Gemm", "LSTM", "MatMul", "MultiHeadAttention", "RNN"}
)
"""Where a network's arithmetic is; what has none of them behind it is its head."""


def prepared(model: Any) -> Any:
    """The same network in float32, its names unique, biases as the tools expect them. Changes and returns `model`.

    Raises Unsupported for a graph that is quantised already.
    """
    check_is_float(model)
    _own_weights(model.graph)
    _as_float32(model)
    _name_anew(model)
    constants = {t.name: t for t in model.graph.initializer}
    for node in list(model.graph.node):
        if node.op_type == "Gemm" and not _is_plain(node, constants):
            _as_product(model.graph, node, constants)
        elif node.op_type == "ConvTranspose" and len(node.input) > 2 and _attribute(node, "group", 1) > 1:
            _bias_behind(model.graph, node, constants)
    without_unused(model.graph)
    return model


def check_is_float(model: Any) -> None:
    """Raise Unsupported for a graph that is quantised already: rounding it again would lose more and gain nothing."""
    for node in nodes_of(model.graph):
        if node.op_type.startswith(QUANTIZED):
            raise Unsupported(
                f"the network is quantised already (it holds {node.op_type}); build it with the recipe fp32, "
                "or give the float network it was made from"
            )


def gemms_as_products(model: Any) -> None:
    """Every Gemm with constant weights as a MatMul and an Add, for tools that know no other product."""
    _own_weights(model.graph)
    _name_anew(model)
    constants = {t.name: t for t in model.graph.initializer}
    for node in [n for n in model.graph.node if n.op_type == "Gemm"]:
        _as_product(model.graph, node, constants)
    without_unused(model.graph)


def head(graph: Any) -> tuple[list[str], list[str]]:
    """Names of the nodes with no product behind them, and of the last products before those. Node names are unique."""
    reads: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in (*node.input, *(n for g in inner_graphs(node) for inner in nodes_of(g) for n in inner.input)):
            reads.setdefault(name, []).append(node)
    leads_to_product: set[str] = set()
    behind, last = [], []
    for node in reversed(graph.node):  # they stand in the order they are computed in
        after = [reader for name in node.output for reader in reads.get(name, ())]
        goes_on = any(reader.op_type in PRODUCTS or reader.name in leads_to_product for reader in after)
        if goes_on:
            leads_to_product.add(node.name)
        elif node.op_type in PRODUCTS:
            last.append(node.name)
        else:
            behind.append(node.name)
    return behind, last


def exact_heads(model: Any, behind: list[str], last: list[str]) -> None:
    """In a QDQ graph, take the rounding from what the last products give: to nodes behind them and to outputs."""
    graph = model.graph
    made_by = {name: node for node in graph.node for name in node.output}
    heads, products = set(behind), set(last)
    exact: dict[str, str] = {}
    for node in graph.node:
        if node.op_type != "DequantizeLinear" or (rounding := made_by.get(node.input[0])) is None:
            continue
        maker = made_by.get(rounding.input[0])
        if rounding.op_type == "QuantizeLinear" and maker is not None and maker.name in products | heads:
            exact[node.output[0]] = rounding.input[0]
    for node in graph.node:
        if node.name in heads:
            node.input[:] = [exact.get(name, name) for name in node.input]
    outputs = {output.name for output in graph.output}
    for name in outputs & exact.keys():  # the maker's answer takes the output's name
        old, maker = exact[name], made_by[exact[name]]
        restoring = made_by[name]
        restoring.output[0] = f"{name}_rounded"
        maker.output[list(maker.output).index(old)] = name
        renamed = {old: name, name: f"{name}_rounded"}
        for node in graph.node:
            node.input[:] = [renamed.get(given, given) for given in node.input]
    without_idle_roundings(graph)


def without_idle_roundings(graph: Any) -> None:
    """Take out roundings, and what turns them back, that nothing reads."""
    for kind in ("DequantizeLinear", "QuantizeLinear"):
        used = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
        for node in [n for n in graph.node if n.op_type == kind and n.output[0] not in used]:
            graph.node.remove(node)


def _is_plain(gemm: Any, constants: Mapping[str, Any]) -> bool:
    """Whether the tools take it: they forget alpha and beta, and break on a bias of two axes."""
    if _attribute(gemm, "alpha", 1.0) != 1 or _attribute(gemm, "beta", 1.0) != 1:
        return False
    bias = constants.get(gemm.input[2]) if len(gemm.input) > 2 else None
    return bias is None or len(bias.dims) == 1


def _as_product(graph: Any, gemm: Any, constants: Mapping[str, Any]) -> None:
    """A Gemm of constant float32 weights as a MatMul, its bias in an Add; left as it is where it can't be said so."""
    weight = constants.get(gemm.input[1])
    bias = gemm.input[2] if len(gemm.input) > 2 else ""
    alpha, beta = np.float32(_attribute(gemm, "alpha", 1.0)), np.float32(_attribute(gemm, "beta", 1.0))
    if weight is None or weight.data_type != TensorProto.FLOAT or _attribute(gemm, "transA", 0):
        return
    if bias and beta != 1 and bias not in constants:
        return
    values = np.asarray(numpy_helper.to_array(weight))
    matrix = np.ascontiguousarray(values.T if _attribute(gemm, "transB", 0) else values) * alpha
    out, made = gemm.output[0], f"{gemm.output[0]}_weight"
    graph.initializer.append(numpy_helper.from_array(matrix, made))
    gemm.op_type = "MatMul"
    gemm.input[1] = made
    del gemm.attribute[:]
    if not bias:
        del gemm.input[2:]
        return
    if beta != 1:
        scaled = np.asarray(numpy_helper.to_array(constants[bias])) * beta
        bias = f"{out}_bias"
        graph.initializer.append(numpy_helper.from_array(scaled, bias))
    _added(graph, gemm, bias)


def _bias_behind(graph: Any, node: Any, constants: Mapping[str, Any]) -> None:
    """The tools take as many scales as a group has channels for the bias of all groups: it is added afterwards."""
    bias, weight = constants.get(node.input[2]), constants.get(node.input[1])
    if bias is None or weight is None:
        return
    values = np.asarray(numpy_helper.to_array(bias))
    name = f"{node.output[0]}_bias"
    graph.initializer.append(numpy_helper.from_array(values.reshape(1, -1, *[1] * (len(weight.dims) - 2)), name))
    _added(graph, node, name)


def _added(graph: Any, node: Any, bias: str) -> None:
    """`bias` as an Add behind the node rather than its third input."""
    place = list(graph.node).index(node)
    out = node.output[0]
    node.output[0] = f"{out}_product"
    del node.input[2]
    graph.node.insert(place + 1, helper.make_node("Add", [node.output[0], bias], [out], name=f"{out}_bias"))


def _own_weights(graph: Any) -> None:
    """Take the weights out of the inputs: graphs of the first versions list them there, as what a caller may replace."""
    stored = {t.name for t in graph.initializer}
    kept = [info for info in graph.input if info.name not in stored]
    del graph.input[:]
    graph.input.extend(kept)


def without_unused(graph: Any, those: Container[str] | None = None) -> None:
    """Take out constants that nothing reads any more, of all or of `those`."""
    used = {name for node in nodes_of(graph) for name in node.input} | {o.name for g in graphs_of(graph) for o in g.output}
    kept = [t for t in graph.initializer if t.name in used or (those is not None and t.name not in those)]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _as_float32(model: Any) -> None:
    """Halves as float32, inside: inputs and outputs stay what they are, with a Cast."""
    half, single = TensorProto.FLOAT16, TensorProto.FLOAT

    def wide(tensor: Any) -> None:
        if tensor.data_type == half:
            values = np.asarray(numpy_helper.to_array(tensor)).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))

    for graph in graphs_of(model.graph):
        for tensor in graph.initializer:
            wide(tensor)
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    wide(attribute.t)
                if attribute.name in ("to", "dtype") and attribute.i == half:
                    attribute.i = single
        ends = () if graph is model.graph else (*graph.input, *graph.output)
        for info in (*graph.value_info, *ends):
            if info.type.tensor_type.elem_type == half:
                info.type.tensor_type.elem_type = single
    graph = model.graph
    for info in [i for i in graph.input if i.type.tensor_type.elem_type == half]:
        _replace_uses(graph, info.name, f"{info.name}_single")
        graph.node.insert(0, helper.make_node("Cast", [info.name], [f"{info.name}_single"], to=single))
    for info in [o for o in graph.output if o.type.tensor_type.elem_type == half]:
        for node in graph.node:
            node.output[:] = [f"{info.name}_single" if name == info.name else name for name in node.output]
        _replace_uses(graph, info.name, f"{info.name}_single")
        graph.node.append(helper.make_node("Cast", [f"{info.name}_single"], [info.name], to=half))


def _name_anew(model: Any) -> None:
    """Nodes and tensors under plain names: the tools make names from those there are, which then collide with others."""
    ends = {info.name for info in (*model.graph.input, *model.graph.output)} | {""}
    for graph in graphs_of(model.graph):
        if graph is not model.graph:
            ends |= {info.name for info in (*graph.input, *graph.output)}
    fresh: dict[str, str] = {}
    taken = "v"
    while any(name.startswith(taken) and name[len(taken) :].isdigit() for name in ends):
        taken += "v"

    def new(name: str) -> str:
        return name if name in ends else fresh.setdefault(name, f"{taken}{len(fresh)}")

    count = 0
    for graph in graphs_of(model.graph):
        for tensor in graph.initializer:
            tensor.name = new(tensor.name)
        for info in graph.value_info:
            info.name = new(info.name)
        for node in graph.node:
            node.input[:] = [new(name) for name in node.input]
            node.output[:] = [new(name) for name in node.output]
            node.name = f"{node.op_type}_{count}"
            count += 1


def _replace_uses(graph: Any, old: str, new: str) -> None:
    for node in nodes_of(graph):
        node.input[:] = [new if name == old else name for name in node.input]


def _attribute(node: Any, name: str, default: Any) -> Any:
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)
