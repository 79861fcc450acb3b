"""What a graph tells of the inputs that matter: numbers it compares with, whether it asks for infinity.

Knows ONNX graphs, whose files say it; of other layouts it knows nothing. Refuses to run anything.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import onnx
from onnx import external_data_helper, numpy_helper

from maasdam.convert.onnx_files import graphs_of, nodes_of, read_onnx
from maasdam.core import Artifact

MOST = 12
"""Numbers that are kept of each kind."""
COMPARING = {
    "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal", "Clip", "Max", "Min", "Where", "Mod",
    "Div", "Sub", "Add", "Mul",
}  # fmt: skip
"""Operators whose constants are where answers turn."""
TURNING = COMPARING - {"Div", "Sub", "Add", "Mul"}


@dataclass(frozen=True, slots=True)
class Clues:
    """Numbers worth trying, and what the graph asks of them."""

    floats: tuple[float, ...] = ()
    """What the graph compares with, clips at or adds: first what answers turn at."""
    integers: tuple[int, ...] = ()
    asks_for_infinity: bool = False


def clues_of(source: Artifact) -> Clues:
    """What the file tells; nothing where the layout tells nothing."""
    if source.layout != "onnx":
        return Clues()
    graph = read_onnx(source.path / "model.onnx").graph
    operators = {node.op_type for node in nodes_of(graph)}
    floats: dict[float, None] = {}
    integers: dict[int, None] = {}
    for kinds in (TURNING, COMPARING):
        for value in _constants(graph, kinds):
            if isinstance(value, int):
                integers.setdefault(value)
            else:
                floats.setdefault(value)
    return Clues(tuple(floats)[:MOST], tuple(integers)[:MOST], "IsInf" in operators)


def _constants(graph: onnx.GraphProto, kinds: set[str]) -> Iterator[float | int]:
    """Single numbers that operators of these kinds read."""
    stated = {}
    for each in graphs_of(graph):
        for weight in each.initializer:
            stated[weight.name] = weight
        for node in each.node:
            if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
                stated[node.output[0]] = node.attribute[0].t
    for node in nodes_of(graph):
        if node.op_type not in kinds:
            continue
        for name in node.input:
            tensor = stated.get(name)
            if tensor is None or external_data_helper.uses_external_data(tensor) or math.prod(tensor.dims) != 1:
                continue
            array = numpy_helper.to_array(tensor).reshape(())
            if array.dtype.kind in "iu":
                yield int(array)
            elif array.dtype.kind == "f" and math.isfinite(float(array)) and abs(float(array)) < 1e6:
                yield float(array)
