"""Which constants of a graph are weights. Knows what operators say of their inputs; never a framework."""

from __future__ import annotations

from typing import TYPE_CHECKING

from maasdam.convert.operators.nodes import Graph
from maasdam.convert.operators.onnx import OPERATORS
from maasdam.convert.operators.table import ANY

if TYPE_CHECKING:
    from maasdam.core import type_array

MASK = 1e4
"""A constant that adds or multiplies numbers as large as this hides positions; nobody learned it."""
PASSED_ON = ("Cast", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
"""A weight stays one through these."""


def learned_names(graph: Graph) -> set[str]:
    """The constants that are weights: what layers multiply, add and look up."""
    origin = {name: name for name, array in graph.constants.items() if array.dtype.kind in "fV"}
    learned = set()
    for node in graph.nodes:
        if node.operator in PASSED_ON and node.inputs and node.inputs[0] in origin:
            origin[node.outputs[0]] = origin[node.inputs[0]]
        operator = OPERATORS.find(node.operator, graph.version)
        slots = operator.weights if operator is not None else ()
        found = {origin[n] for i, n in enumerate(node.inputs) if i in slots and n in origin}
        learned |= {name for name in found if slots != ANY or not _is_mask(graph.constants[name])}
    return {name for name in learned if graph.constants[name].size > 1}


def _is_mask(array: type_array) -> bool:
    numbers = array.astype("float32")
    return bool(array.size) and not bool(abs(numbers).max() < MASK)  # NaN too is no weight
