"""Element types that no framework computes on: integers of less than a byte, and floats of 8 bits and less.

Their values are held in wider types that have them all: integers in (u)int8, floats in float16. `hold` rewrites a graph so,
and says which operators read such values and are not known to keep them right. Never a framework.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from maasdam.convert.operators.nodes import Graph, Node
    from maasdam.core import type_array


@dataclass(frozen=True, slots=True)
class Whole:
    """An integer type."""

    name: str
    bits: int
    is_signed: bool

    @property
    def least(self) -> int:
        return -(1 << (self.bits - 1)) if self.is_signed else 0

    @property
    def most(self) -> int:
        return self.least + (1 << self.bits) - 1


@dataclass(frozen=True, slots=True)
class Real:
    """A float type: bits behind the point, the exponent of its smallest normal number, its largest number."""

    name: str
    digits: int
    exponent: int
    largest: float
    beyond: float
    """What is over the largest, unless a cast saturates."""


KINDS: dict[int, Whole | Real] = {
    17: Real("float8_e4m3fn", 3, -6, 448.0, float("nan")),
    18: Real("float8_e4m3fnuz", 3, -7, 240.0, float("nan")),
    19: Real("float8_e5m2", 2, -14, 57344.0, float("inf")),
    20: Real("float8_e5m2fnuz", 2, -15, 57344.0, float("nan")),
    21: Whole("uint4", 4, False),
    22: Whole("int4", 4, True),
    23: Real("float4_e2m1fn", 1, 0, 6.0, 6.0),
    25: Whole("uint2", 2, False),
    26: Whole("int2", 2, True),
}
"""By ONNX's number of the type."""
NUMBERS = {kind.name: number for number, kind in KINDS.items()}
MOVERS = (
    "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Reshape", "Slice",
    "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
)  # fmt: skip
"""Operators whose outputs have the type of their first input, and its values."""
READERS = ("Cast", "CastLike", "DequantizeLinear", "Shape", "Size", "com.microsoft.DequantizeLinear")
"""Operators that read such values for what they are."""


def held(array: type_array) -> type_array:
    """A numpy array in the type that holds it."""
    kind = KINDS.get(NUMBERS.get(array.dtype.name, 0))
    if kind is None:
        return array
    return array.astype(np.float16 if isinstance(kind, Real) else np.int8 if kind.is_signed else np.uint8)


def hold(graph: Graph, types: dict[str, int]) -> tuple[Graph, list[str]]:
    """`graph` with narrow values held in wider ones, and which operators can't be.

    `types`: ONNX's numbers of the inputs' and outputs' element types.
    """
    kinds = {name: NUMBERS[array.dtype.name] for name, array in graph.constants.items() if array.dtype.name in NUMBERS}
    kinds |= {name: number for name, number in types.items() if number in KINDS and name in graph.inputs}
    nodes, refused = [], set()
    for node in graph.nodes:
        node = _explicit(node, kinds)
        read = {kinds[name] for name in node.inputs if name in kinds} | _read_inside(node, kinds)
        gives = node.attributes.get("output_dtype" if node.operator == "QuantizeLinear" else "to", 0)
        if node.operator in MOVERS and read:
            kinds.update((name, kinds[node.inputs[0]]) for name in node.outputs if node.inputs[0] in kinds)
        elif node.operator in ("Cast", "QuantizeLinear") and gives in KINDS:
            kinds[node.outputs[0]] = gives
        elif read and node.operator not in READERS:
            refused |= {f"{node.operator} of {KINDS[number].name}" for number in read}
        nodes.append(node)
    constants = {name: held(array) for name, array in graph.constants.items()}
    outside = {name: number for name, number in types.items() if number in KINDS}
    return replace(graph, nodes=tuple(nodes), constants=constants, narrow=outside), sorted(refused)


def _explicit(node: Node, kinds: dict[str, int]) -> Node:
    """With the narrow type it gives as an attribute, where an input says it."""
    says = [kinds.get(name, 0) for name in node.inputs]
    if node.operator == "CastLike" and says[1]:
        return replace(node, operator="Cast", inputs=node.inputs[:1], attributes=node.attributes | {"to": says[1]})
    if node.operator in ("QuantizeLinear", "com.microsoft.QuantizeLinear") and len(says) > 2 and says[2]:
        inputs = node.inputs[: 2 if isinstance(KINDS[says[2]], Real) else 3]
        attributes = node.attributes | {"output_dtype": says[2]}
        return replace(node, operator="QuantizeLinear", inputs=inputs, attributes=attributes)
    if node.operator == "DequantizeLinear" and says[0] and isinstance(KINDS[says[0]], Real):
        return replace(node, inputs=node.inputs[:2])  # a float's zero point is zero
    return node


def _read_inside(node: Node, kinds: dict[str, int]) -> set[int]:
    found: set[int] = set()
    for inner in (value for value in node.attributes.values() if hasattr(value, "walk")):
        found |= {NUMBERS[a.dtype.name] for a in inner.constants.values() if a.dtype.name in NUMBERS}
        names: Any = [name for each in inner.walk() for name in each.inputs] + list(inner.outputs)
        found |= {kinds[name] for name in names if name in kinds}
    return found
