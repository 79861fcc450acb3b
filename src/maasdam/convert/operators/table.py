"""ONNX's operators: name and version -> function. Knows how they are listed and found; never what they compute."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args, get_type_hints

AnyFunction = TypeVar("AnyFunction", bound=Callable[..., Any])
On = Literal["tensors", "lists", "values"]
"""What an operator works on: tensors; sequences of them too; or values as the walk has them, small arrays and None included."""
ANY: tuple[int, ...] = tuple(range(64))
"""Weights may be at any input: what is added or multiplied, unless it is a mask."""


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator as a function of a framework's `Arrays`, the operator's inputs in order, and its attributes by name.

    A parameter `outputs` gets the number of outputs the node names; `**given: Unpack[Group]` takes what a TypedDict names.
    """

    name: str
    since: int
    function: Callable[..., Any]
    shapes: frozenset[str]
    """Parameters that take small integers (an int or a list), not tensors."""
    stated: frozenset[str]
    """Parameters that take numbers where the model states them, and tensors where only the run knows them."""
    weights: tuple[int, ...]
    """The inputs that are learned."""
    on: On
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
    """Operators, each found by the newest version not newer than the model's. Those of another domain than ONNX's own have
    it before their name."""

    def __init__(self) -> None:
        self._operators: dict[str, list[Operator]] = {}

    def __call__(
        self,
        *names: str,
        since: int = 1,
        shapes: Iterable[str] = (),
        stated: Iterable[str] = (),
        weights: tuple[int, ...] = (),
        on: On = "tensors",
    ) -> Callable[[AnyFunction], AnyFunction]:
        """List the decorated function under `names`, from operator set `since` on; the rest is as `Operator` has it."""

        def add(function: AnyFunction) -> AnyFunction:
            _, *parameters = inspect.signature(function).parameters.values()
            others = [get_type_hints(function)[p.name] for p in parameters if p.kind is p.VAR_KEYWORD]
            grouped = [name for kind in others for group in get_args(kind) for name in group.__annotations__]
            takes_any = bool(others) and not grouped
            rest = next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), None)
            named = (*(p.name for p in parameters), *grouped)
            for name in names:
                versions = self._operators.setdefault(name, [])
                versions.append(
                    Operator(name, since, function, frozenset(shapes), frozenset(stated), weights, on, named, takes_any, rest)
                )
                versions.sort(key=lambda o: o.since)
            return function

        return add

    def find(self, name: str, version: int) -> Operator | None:
        """The operator as operator set `version` defines it, or None."""
        fitting = [o for o in self._operators.get(name, ()) if o.since <= version]
        return fitting[-1] if fitting else None

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._operators))


operator = Table()
"""The table, and the decorator that lists a function in it. `onnx.OPERATORS` is the table when all are listed."""
