"""An ONNX file as plain nodes. Knows protos, versions and functions; never what an operator computes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import numpy_helper

from maasdam.convert.onnx_files import operator_set
from maasdam.convert.operators import functions, narrow
from maasdam.convert.operators.nodes import Graph, Node
from maasdam.convert.operators.onnx import OPERATORS
from maasdam.errors import InvalidModel, Unsupported

if TYPE_CHECKING:
    from maasdam.core import type_array

OLDEST = 7
"""Before operator set 7 broadcasting had to be asked for, by attributes no table knows."""


def read(path: Path, framework: str) -> Graph:
    """The graph in an ONNX file for a framework, operators that the table lacks replaced by their ONNX definition.

    Raises InvalidModel for a broken file, Unsupported listing every operator that is left, or where onnx can't inline one.
    """
    try:
        model = onnx.load(path)
    except Exception as error:  # protobuf and onnx raise their own kinds
        raise InvalidModel(f"onnx can't read the file: {(str(error).splitlines() or ['no reason given'])[0][:300]}") from error
    others = [
        v.name for v in (*model.graph.input, *model.graph.output) if v.type.WhichOneof("value") not in (None, "tensor_type")
    ]
    if others:
        raise Unsupported(f"the model takes or gives what is no tensor: {', '.join(others)}")
    graph = of_model(model, framework)
    if graph.narrow:
        named = ", ".join(f"'{name}' ({narrow.KINDS[number].name})" for name, number in graph.narrow.items())
        raise Unsupported(f"{framework} has no tensors of the type of the model's {named}")
    return graph


def of_model(model: onnx.ModelProto, framework: str) -> Graph:
    """As `read`, of a model in memory."""
    version = operator_set(model)
    if 0 < version < OLDEST and _means_the_same(model.graph, version):
        version = OLDEST
    if version < OLDEST:
        raise Unsupported(
            f"the model uses ONNX operator set {version}; {OLDEST} and newer are known. "
            "onnx.version_converter.convert_version brings a model to a newer one"
        )
    known = {name for name in OPERATORS if OPERATORS.find(name, version)}
    proto = functions.inlined(model, version, known).graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*proto.input, *proto.output)}
    graph, refused = narrow.hold(_graph(proto, version), types)
    if missing := sorted({*unsupported(graph), *refused}):
        raise Unsupported(f"{framework} has no counterpart here for the model's {', '.join(missing)}")
    return graph


def _means_the_same(graph: onnx.GraphProto, version: int) -> bool:
    """Is every operator of a model before operator set 7 still the one of that set?"""
    for node in graph.node:
        inner = [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
        try:
            then, later = (onnx.defs.get_schema(node.op_type, at, node.domain).since_version for at in (version, OLDEST))
        except onnx.defs.SchemaError:
            return False
        if then != later or not all(_means_the_same(g, version) for g in inner):
            return False
    return True


def unsupported(graph: Graph) -> list[str]:
    """Every operator of the graph that the table lacks, with the attributes it lacks, sorted."""
    missing = set()
    for node in graph.walk():
        operator = OPERATORS.find(node.operator, graph.version)
        if operator is None:
            missing.add(node.operator)
        elif unknown := operator.unknown(node.attributes):
            missing.add(f"{node.operator} with {', '.join(sorted(unknown))}")
    return sorted(missing)


def _graph(proto: onnx.GraphProto, version: int) -> Graph:
    if proto.sparse_initializer:
        raise Unsupported("the model has sparse weights; store them dense")
    weights = {w.name: numpy_helper.to_array(w) for w in proto.initializer}
    stated = {n.output[0]: _constant(n) for n in proto.node if n.op_type == "Constant" and not n.domain}
    return Graph(
        version,
        tuple(v.name for v in proto.input if v.name not in weights),
        tuple(v.name for v in proto.output),
        tuple(_node(node, version) for node in proto.node if node.output[0] not in stated),
        weights | stated,
    )


def _constant(proto: onnx.NodeProto) -> type_array:
    """What a Constant node says, in whichever of its attributes."""
    if len(proto.attribute) != 1:
        raise Unsupported(
            f"the model has a Constant ('{proto.name or proto.output[0]}') with {len(proto.attribute)} values, not one"
        )
    (attribute,) = proto.attribute
    value = onnx.helper.get_attribute_value(attribute)
    if attribute.name == "value":
        return onnx.numpy_helper.to_array(value)
    if attribute.name in ("value_float", "value_floats"):
        return np.array(value, np.float32)
    if attribute.name in ("value_int", "value_ints"):
        return np.array(value, np.int64)
    raise Unsupported(f"the model has a constant of a kind only ONNX has ({attribute.name})")


def _node(proto: onnx.NodeProto, version: int) -> Node:
    domain = "" if proto.domain in ("", "ai.onnx") else f"{proto.domain}."
    attributes = {a.name: _attribute(a, version) for a in proto.attribute}
    return Node(proto.name, domain + proto.op_type, tuple(proto.input), tuple(proto.output), attributes)


def _attribute(proto: onnx.AttributeProto, version: int) -> Any:
    if proto.type == onnx.AttributeProto.GRAPH:
        return _graph(proto.g, version)
    value = onnx.helper.get_attribute_value(proto)
    if proto.type == onnx.AttributeProto.TENSOR:
        return onnx.numpy_helper.to_array(value)
    if proto.type == onnx.AttributeProto.STRING:
        return value.decode("utf-8", "replace")
    if proto.type == onnx.AttributeProto.STRINGS:
        return [each.decode("utf-8", "replace") for each in value]
    return list(value) if proto.type in (onnx.AttributeProto.INTS, onnx.AttributeProto.FLOATS) else value
