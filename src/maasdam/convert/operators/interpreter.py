"""Walk a graph's nodes, calling the table. Knows values and when they die; never a framework."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from maasdam.convert.operators import shapes
from maasdam.convert.operators.arrays import Arrays
from maasdam.convert.operators.nodes import Graph, Node
from maasdam.convert.operators.onnx import OPERATORS
from maasdam.convert.operators.table import Operator
from maasdam.errors import Unsupported


def run(graph: Graph, xp: Arrays, values: Mapping[str, Any]) -> list[Any]:
    """The outputs of `graph`. `values`: the inputs as tensors, and the constants as tensors or small numpy arrays."""
    walk = _Walk(graph, xp, dict(values))
    uses = Counter(name for node in graph.nodes for name in node.inputs)
    uses.update(graph.outputs)
    for name in _used_inside(graph):
        uses[name] += 1  # never dies: inner graphs read it by name
    for node in graph.nodes:
        walk.step(node)
        for name in node.inputs:
            uses[name] -= 1
            if not uses[name]:
                walk.known.pop(name, None)
    return [_as_tensor(walk.known[name], xp) for name in graph.outputs]


def _used_inside(graph: Graph) -> set[str]:
    inner = [v for node in graph.nodes for v in node.attributes.values() if isinstance(v, Graph)]
    return {name for g in inner for node in g.walk() for name in node.inputs} | {name for g in inner for name in g.outputs}


@dataclass(frozen=True, slots=True)
class _Walk:
    """One way through a graph."""

    graph: Graph
    xp: Arrays
    known: dict[str, Any]
    """Values by name."""
    wholes: dict[str, shapes.Small] = field(default_factory=dict)
    """The integers that floats are which come from a shape, beside the tensors, for operators that ask for a size."""

    def step(self, node: Node) -> None:
        """Compute what a node gives."""
        whole = self._whole(node)
        if whole is not None and node.operator == "Cast" and node.attributes["to"] in shapes.INTEGERS:
            found: tuple[Any, ...] = (whole,)
        else:
            found = self._call(node)
            if whole is not None and not isinstance(found[0], np.ndarray):
                self.wholes[node.outputs[0]] = whole
        self.known.update((name, value) for name, value in zip(node.outputs, found, strict=False) if name)

    def _whole(self, node: Node) -> shapes.Small | None:
        """The integers that a node's floats are: a size cast to float, and what is added to it."""
        if node.operator not in shapes.OF_WHOLES or not node.inputs:
            return None
        inputs = []
        for name in node.inputs:
            found = self.wholes.get(name) if name in self.wholes else self.known.get(name)
            if not isinstance(found, np.ndarray):
                found = shapes.whole_numbers(self.graph.constants.get(name))
            if found is None or not shapes.is_small(found):
                return None
            inputs.append(found)
        if node.operator != "Cast" and not any(name in self.wholes for name in node.inputs):
            return None
        try:
            return shapes.compute_wholes(node.operator, inputs, node.attributes)
        except shapes.NotHere:
            return None

    def _call(self, node: Node) -> tuple[Any, ...]:
        inputs, xp = [self.known[name] if name else None for name in node.inputs], self.xp
        operator = OPERATORS.find(node.operator, self.graph.version)
        assert operator is not None, node.operator  # reading the graph made sure
        if operator.on == "values":
            return _outputs(operator.function(xp, *inputs, **node.attributes))
        if inputs and all(v is None or shapes.is_small(v) for v in inputs):
            try:
                found = shapes.compute(node.operator, inputs, node.attributes)
                if xp.counted is not None and node.operator in ("Div", "Mod"):
                    found = shapes.of_each(xp.counted, found)
                return (found,)
            except shapes.NotHere:
                pass  # on tensors then
        if operator.on == "tensors" and any(isinstance(v, list) for v in inputs):
            raise Unsupported(f"{node.operator} '{node.name}' of a sequence")
        arguments = [self._argument(value, operator, i, node) for i, value in enumerate(inputs)]
        attributes = {name: _inner(v, xp, self.known) for name, v in node.attributes.items()}
        if "outputs" in operator.parameters:
            attributes["outputs"] = len(node.outputs)
        return _outputs(operator.function(xp, *arguments, **attributes))

    def _argument(self, value: Any, operator: Operator, position: int, node: Node) -> Any:
        if value is None:
            return None
        parameter = operator.parameter(position)
        if parameter not in operator.shapes | operator.stated:
            return _as_tensor(value, self.xp)
        # numbers that are known, though they are no integers (the scales of Resize)
        stated = self.graph.constants.get(node.inputs[position], self.wholes.get(node.inputs[position], value))
        if isinstance(stated, np.ndarray):
            return stated.tolist()
        if parameter in operator.stated:
            return value
        try:
            return self.xp.small(value)
        except ValueError as error:
            raise Unsupported(
                f"{node.operator} '{node.name}' takes its {parameter} from data, whose length is not known"
            ) from error


def _outputs(found: Any) -> tuple[Any, ...]:
    return found if isinstance(found, tuple) else (found,)


@dataclass(frozen=True, slots=True)
class Body:
    """An inner graph as a function of its inputs; it sees the values around it."""

    graph: Graph
    xp: Arrays
    outer: Mapping[str, Any]
    """What it reads of the values around it, and its own constants, by name."""

    def __call__(self, *inputs: Any) -> list[Any]:
        return run(self.graph, self.xp, {**self.outer, **dict(zip(self.graph.inputs, inputs, strict=True))})


def _inner(value: Any, xp: Arrays, known: dict[str, Any]) -> Any:
    if not isinstance(value, Graph):
        return value
    read = {name for node in value.walk() for name in node.inputs} | set(value.outputs) | _used_inside(value)
    constants = {name: small_or_tensor(array, xp) for name, array in value.constants.items()}
    return Body(value, xp, {name: known[name] for name in read if name in known} | constants)


def _as_tensor(value: Any, xp: Arrays) -> Any:
    if isinstance(value, list):
        return [_as_tensor(each, xp) for each in value]
    return xp.tensor(value) if isinstance(value, np.ndarray) else value


def small_or_tensor(array: np.ndarray[Any, Any], xp: Arrays) -> Any:
    """A constant as the walk wants it: integers that may belong to a shape as they are, anything else as a tensor."""
    return array if shapes.is_small(array) and array.ndim < 2 and array.dtype.kind in "iub" else xp.tensor(array)
