"""A graph as plain nodes. Knows names, attributes and constants; never a file, nor what an operator computes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maasdam.core import type_array


@dataclass(frozen=True, slots=True)
class Node:
    """One operator call. "" stands for an input or output that is left out."""

    name: str
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    """Numbers, strings, lists of them, numpy arrays, `Graph`s."""


@dataclass(frozen=True, slots=True)
class Graph:
    """Nodes in the order they run, with the constants they read."""

    version: int
    """Of the ONNX operator set."""
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    constants: dict[str, type_array] = field(default_factory=dict)
    narrow: dict[str, int] = field(default_factory=dict)
    """Inputs and outputs of a type that is held in a wider one, and ONNX's number of it."""

    def walk(self) -> Iterator[Node]:
        """Every node, those of inner graphs included."""
        for node in self.nodes:
            yield node
            for value in node.attributes.values():
                if isinstance(value, Graph):
                    yield from value.walk()
