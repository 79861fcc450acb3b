"""Calls of functions replaced by their bodies: a model's own, and ONNX's definition of an operator that a table lacks.

onnx's inliner does it. What it can't is prepared for it: attributes left at their defaults, and definitions that depend on the
types of inputs where an input is left out.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import onnx
from onnx import inliner

from maasdam.errors import Unsupported

DOMAIN = "maasdam.defined"
"""Of definitions on their way into a graph."""


def inlined(model: onnx.ModelProto, version: int, known: Collection[str]) -> onnx.ModelProto:
    """`model` with every call replaced that is not of an operator in `known`. Raises Unsupported where onnx can't."""
    if all(_full_name(node) in known for node in model.graph.node):
        return model
    kept = [(name.rpartition(".")[0], name.rpartition(".")[2]) for name in known]
    try:
        return inliner.inline_selected_functions(
            _prepared(model, version, known), kept, exclude=True, inline_schema_functions=True
        )
    except Exception as error:  # the checker's own kinds
        raise Unsupported(f"onnx can't inline the model's functions: {str(error)[:300]}") from error


def _full_name(node: onnx.NodeProto) -> str:
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"


def _prepared(model: onnx.ModelProto, version: int, known: Collection[str]) -> onnx.ModelProto:
    """`model`, or a copy in which calls that need it have their attributes and definitions stated."""
    defined: dict[int, Any] = {}  # onnx's stubs lack half of a schema's members
    for i, node in enumerate(model.graph.node):
        if _full_name(node) in known or node.domain not in ("", "ai.onnx"):
            continue
        try:
            schema: Any = onnx.defs.get_schema(node.op_type, version)
        except onnx.defs.SchemaError:
            continue
        if schema.has_function or schema.has_context_dependent_function:
            defined[i] = schema
    if not defined:
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    types = _types(copy) if any("" in model.graph.node[i].input for i in defined) else {}
    for i, schema in defined.items():
        node = copy.graph.node[i]
        stated = {attribute.name for attribute in node.attribute}
        node.attribute.extend(
            a.default_value for name, a in schema.attributes.items() if name not in stated and a.default_value.name
        )
        if schema.has_context_dependent_function and "" in node.input:
            _define(copy, i, schema, version, types)
    return copy


def _types(model: onnx.ModelProto) -> dict[str, onnx.TypeProto]:
    """The type of every value of the graph that onnx can tell."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    found = {w.name: onnx.helper.make_tensor_type_proto(w.data_type, w.dims) for w in graph.initializer}
    return found | {v.name: v.type for v in (*graph.input, *graph.value_info, *graph.output)}


def _define(model: onnx.ModelProto, i: int, schema: Any, version: int, types: dict[str, onnx.TypeProto]) -> None:
    """Turn a call of an operator into one of a function of the model, which is its definition for these types."""
    node = model.graph.node[i]
    given = [types.get(name, onnx.TypeProto()).SerializeToString() for name in node.input]
    fitting = max(v for v in schema.context_dependent_function_opset_versions if v <= version)
    function = onnx.FunctionProto()
    function.ParseFromString(schema.get_context_dependent_function_with_opset_version(fitting, node.SerializeToString(), given))
    function.domain, function.name = DOMAIN, f"{node.op_type}_{i}"
    node.domain, node.op_type = function.domain, function.name
    model.functions.append(function)
    if not any(o.domain == DOMAIN for o in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
