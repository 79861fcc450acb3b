"""A framework's operators: name and version -> function. Knows how they are listed and found; never what they compute."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import numpy as np

Function = Callable[..., Any]
AnyFunction = TypeVar("AnyFunction", bound=Function)


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator as a function.

    `shapes`: parameters that take small integers (an int or a list), not tensors. A parameter `outputs` gets the number of
    outputs the node names.
    """

    name: str
    since: int
    function: Function
    shapes: frozenset[str]
    parameters: tuple[str, ...]
    takes_any_attribute: bool
    rest: str | None
    """The parameter that takes every further input (`*carried`)."""

    def parameter(self, position: int) -> str:
        """The name of the parameter that takes the input at `position`."""
        last = self.parameters.index(self.rest) if self.rest else len(self.parameters)
        return self.rest if self.rest and position >= last else self.parameters[position]

    def unknown(self, attributes: Iterable[str]) -> list[str]:
        """Which of these attributes the function does not take."""
        return [] if self.takes_any_attribute else [name for name in attributes if name not in self.parameters]


class Table:
    """Operators of the ONNX default domain, each found by the newest version not newer than the model's."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._operators: dict[str, list[Operator]] = {}

    def __call__(self, *names: str, since: int = 1, shapes: Iterable[str] = ()) -> Callable[[AnyFunction], AnyFunction]:
        """List the decorated function under `names`, from operator set `since` on."""

        def add(function: AnyFunction) -> AnyFunction:
            parameters = inspect.signature(function).parameters.values()
            takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
            rest = next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), None)
            for name in names:
                named = tuple(p.name for p in parameters)
                operator = Operator(name, since, function, frozenset(shapes), named, takes_any, rest)
                versions = self._operators.setdefault(name, [])
                versions.append(operator)
                versions.sort(key=lambda o: o.since)
            return function

        return add

    def adopt(self, other: Table, *first: Any) -> None:
        """List every operator of `other`, whose functions take `first` before an operator's inputs."""
        for operator in (o for versions in other._operators.values() for o in versions):
            self(operator.name, since=operator.since, shapes=operator.shapes)(functools.partial(operator.function, *first))

    def find(self, name: str, version: int) -> Operator | None:
        """The operator as operator set `version` defines it, or None."""
        fitting = [o for o in self._operators.get(name, ()) if o.since <= version]
        return fitting[-1] if fitting else None

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._operators))

    def __len__(self) -> int:
        return len(self._operators)


@dataclass(frozen=True, slots=True)
class Framework:
    """What the walk has to know of a framework, beside its operators."""

    table: Table
    tensor: Callable[[np.ndarray[Any, Any]], Any]
    """A tensor of a numpy array; one of dtype object holds integers some of which are symbols."""
    dims: Callable[[Any], list[Any]]
    """The sizes of a tensor's axes: numbers where known, else symbols."""
    small: Callable[[Any], list[Any]]
    """The integers in a tensor of at most one axis, as numbers or symbols. Raises ValueError where they can't be had."""
