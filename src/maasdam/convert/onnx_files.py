"""ONNX files and what lies in them: read without their weights, written within what a message may hold, walked with the graphs
inside their nodes. Knows protos; never what an operator computes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx

LARGEST_MESSAGE = 1_900_000_000
"""A protobuf message ends at 2 GiB; larger weights go into a file beside the model."""


def read_onnx(path: Path) -> onnx.ModelProto:
    """The model without its external weights."""
    return onnx.load(path, load_external_data=False)


def write_onnx(model: onnx.ModelProto, path: Path) -> None:
    """Write the model, its weights beside it where one message can't hold them."""
    onnx.save(model, path, save_as_external_data=model.ByteSize() > LARGEST_MESSAGE, location=f"{path.name}.data")


def external_files(path: Path) -> set[str]:
    """Names of the files beside a model that hold its weights."""
    weights = read_onnx(path).graph.initializer
    return {entry.value for weight in weights for entry in weight.external_data if entry.key == "location"}


def operator_set(model: onnx.ModelProto) -> int:
    """The version of ONNX's own operators that a model uses; 0 where it names none."""
    return next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)


def graphs_of(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph, then those inside its nodes, however deep."""
    yield graph
    for node in graph.node:
        for inner in inner_graphs(node):
            yield from graphs_of(inner)


def nodes_of(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node, each followed by those of the graphs inside it."""
    for node in graph.node:
        yield node
        for inner in inner_graphs(node):
            yield from nodes_of(inner)


def inner_graphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Branches and bodies that a node holds itself."""
    for attribute in node.attribute:
        yield from (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs)
