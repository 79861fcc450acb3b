"""Sequences and optional values: Python lists and None while a graph is walked, the same for every framework.

Exporters write them where a model splits a tensor and picks parts. How many parts there are, and which one is picked, has to
follow from the model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from maasdam.errors import Unsupported

if TYPE_CHECKING:
    from maasdam.convert.operators.table import Framework

VERSION = 13
"""Of the operator set whose Split, Squeeze, Unsqueeze and Concat are used."""

STATED = {"SequenceAt": (1,), "SequenceErase": (1,), "SequenceInsert": (2,), "SplitToSequence": (1,)}
"""Which inputs have to be known before the run."""


def call(operator: str, inputs: list[Any], attributes: dict[str, Any], framework: Framework) -> Any:
    """What one of OPERATORS makes of tensors, small arrays, lists of them and None."""
    return OPERATORS[operator](framework, *inputs, **attributes)


def _numbers(value: Any, what: str, framework: Framework) -> list[int]:
    """Integers that the model states. Raises Unsupported."""
    try:
        found = value.tolist() if isinstance(value, np.ndarray) else framework.small(value)
    except (ValueError, RuntimeError) as error:  # data, and torch's own kinds while it traces
        raise Unsupported(f"{what} depends on the data") from error
    listed = found if isinstance(found, list) else [found]
    if not all(isinstance(v, int) for v in listed):
        raise Unsupported(f"{what} depends on the data")
    return listed


def _run(operator: str, framework: Framework, *inputs: Any, **attributes: Any) -> Any:
    found = framework.table.find(operator, VERSION)
    assert found is not None, operator
    return found.function(*(framework.tensor(v) if isinstance(v, np.ndarray) else v for v in inputs), **attributes)


def _construct(framework: Framework, *values: Any) -> list[Any]:
    return list(values)


def _empty(framework: Framework, dtype: int = 1) -> list[Any]:
    return []


def _insert(framework: Framework, sequence: list[Any], value: Any, position: Any = None) -> list[Any]:
    at = len(sequence) if position is None else _numbers(position, "the place in a sequence", framework)[0]
    at = at if at >= 0 else at + len(sequence)
    return [*sequence[:at], value, *sequence[at:]]


def _erase(framework: Framework, sequence: list[Any], position: Any = None) -> list[Any]:
    at = (-1 if position is None else _numbers(position, "the place in a sequence", framework)[0]) % len(sequence)
    return [*sequence[:at], *sequence[at + 1 :]]


def _at(framework: Framework, sequence: list[Any], position: Any) -> Any:
    return sequence[_numbers(position, "the place in a sequence", framework)[0]]


def _length(framework: Framework, sequence: list[Any]) -> Any:
    return np.array(len(sequence), np.int64)


def _concat(framework: Framework, sequence: list[Any], axis: int, new_axis: int = 0) -> Any:
    parts = [_run("Unsqueeze", framework, value, [axis]) for value in sequence] if new_axis else sequence
    return _run("Concat", framework, *parts, axis=axis)


def _split(framework: Framework, value: Any, split: Any = None, axis: int = 0, keepdims: int = 1) -> list[Any]:
    size = (list(value.shape) if isinstance(value, np.ndarray) else framework.dims(value))[axis]
    sizes = [1] if split is None else _numbers(split, "the sizes of a sequence's parts", framework)
    if split is None or (split.ndim if isinstance(split, np.ndarray) else len(framework.dims(split))) == 0:
        if not isinstance(size, int):
            raise Unsupported("a sequence with as many parts as an axis whose size is not fixed")
        sizes = [min(sizes[0], size - start) for start in range(0, size, sizes[0])]
    if isinstance(value, np.ndarray):
        parts: list[Any] = np.split(value, np.cumsum(sizes)[:-1], axis)
    else:
        parts = list(_run("Split", framework, value, sizes, axis=axis))
    if split is not None or keepdims:
        return parts
    return [p.reshape(()) if isinstance(p, np.ndarray) else _run("Squeeze", framework, p, [axis]) for p in parts]


def _optional(framework: Framework, value: Any = None, type: Any = None) -> Any:
    return value


def _has_element(framework: Framework, value: Any = None) -> Any:
    return np.array(value is not None)


def _element(framework: Framework, value: Any) -> Any:
    if value is None:
        raise Unsupported("the model reads an optional value that is not there")
    return value


OPERATORS: dict[str, Callable[..., Any]] = {
    "ConcatFromSequence": _concat,
    "Optional": _optional,
    "OptionalGetElement": _element,
    "OptionalHasElement": _has_element,
    "SequenceAt": _at,
    "SequenceConstruct": _construct,
    "SequenceEmpty": _empty,
    "SequenceErase": _erase,
    "SequenceInsert": _insert,
    "SequenceLength": _length,
    "SplitToSequence": _split,
}
