"""Operators on values as the walk has them: shapes and small integers as numpy arrays, sequences as lists, and None.

Exporters write sequences where a model splits a tensor and picks parts. How many parts there are, and which one is picked, has
to follow from the model.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from maasdam.convert.operators import shapes
from maasdam.convert.operators.arrays import Arrays
from maasdam.convert.operators.onnx.rearrange import concat, squeeze, unsqueeze
from maasdam.convert.operators.onnx.rearrange import split as split_
from maasdam.convert.operators.table import operator
from maasdam.errors import Unsupported


@operator("Shape", on="values")
def shape(xp: Arrays, x: Any, start: int = 0, end: int | None = None) -> shapes.Small:
    """ONNX Shape, or part of it."""
    return shapes.of_dims(_dims(xp, x)[start:end])


@operator("Size", on="values")
def size(xp: Arrays, x: Any) -> shapes.Small:
    """ONNX Size: how many elements."""
    return shapes.compute("ReduceProd", [shapes.of_dims(_dims(xp, x))], {"keepdims": 0})


def _dims(xp: Arrays, x: Any) -> list[Any]:
    return list(x.shape) if isinstance(x, np.ndarray) else xp.dims(x)


@operator("Identity", on="values")
def identity(xp: Arrays, x: Any) -> Any:
    """ONNX Identity: of a tensor, a sequence or None."""
    return x


def _numbers(value: Any, what: str, xp: Arrays) -> list[int]:
    """Integers that the model states. Raises Unsupported."""
    try:
        found = value.tolist() if isinstance(value, np.ndarray) else xp.small(value)
    except (ValueError, RuntimeError) as error:  # data, and torch's own kinds while it traces
        raise Unsupported(f"{what} depends on the data") from error
    listed = found if isinstance(found, list) else [found]
    if not all(isinstance(v, int) for v in listed):
        raise Unsupported(f"{what} depends on the data")
    return listed


@operator("SequenceConstruct", on="values")
def construct(xp: Arrays, *values: Any) -> list[Any]:
    """ONNX SequenceConstruct: a sequence of these values."""
    return list(values)


@operator("SequenceEmpty", on="values")
def empty(xp: Arrays, dtype: int = 1) -> list[Any]:
    """ONNX SequenceEmpty: a sequence of nothing."""
    return []


@operator("SequenceInsert", shapes=("position",), on="values")
def insert(xp: Arrays, sequence: list[Any], value: Any, position: Any = None) -> list[Any]:
    """ONNX SequenceInsert: a value at a place, or at the end."""
    at = len(sequence) if position is None else _numbers(position, "the place in a sequence", xp)[0]
    at = at if at >= 0 else at + len(sequence)
    return [*sequence[:at], value, *sequence[at:]]


@operator("SequenceErase", shapes=("position",), on="values")
def erase(xp: Arrays, sequence: list[Any], position: Any = None) -> list[Any]:
    """ONNX SequenceErase: without the value at a place, or the last one."""
    at = (-1 if position is None else _numbers(position, "the place in a sequence", xp)[0]) % len(sequence)
    return [*sequence[:at], *sequence[at + 1 :]]


@operator("SequenceAt", shapes=("position",), on="values")
def at(xp: Arrays, sequence: list[Any], position: Any) -> Any:
    """ONNX SequenceAt: the value at a place."""
    return sequence[_numbers(position, "the place in a sequence", xp)[0]]


@operator("SequenceLength", on="values")
def length(xp: Arrays, sequence: list[Any]) -> Any:
    """ONNX SequenceLength: how many values."""
    return np.array(len(sequence), np.int64)


@operator("ConcatFromSequence", on="values")
def concat_parts(xp: Arrays, sequence: list[Any], axis: int, new_axis: int = 0) -> Any:
    """ONNX ConcatFromSequence: its tensors along an axis, or along a new one."""
    tensors = [xp.tensor(v) if isinstance(v, np.ndarray) else v for v in sequence]
    return concat(xp, *([unsqueeze(xp, v, [axis]) for v in tensors] if new_axis else tensors), axis=axis)


@operator("SplitToSequence", shapes=("split",), on="values")
def split_up(xp: Arrays, value: Any, split: Any = None, axis: int = 0, keepdims: int = 1) -> list[Any]:
    """ONNX SplitToSequence: parts of a tensor, of these sizes or of one each."""
    size = _dims(xp, value)[axis]
    sizes = [1] if split is None else _numbers(split, "the sizes of a sequence's parts", xp)
    if split is None or not _dims(xp, split):
        if not isinstance(size, int):
            raise Unsupported("a sequence with as many parts as an axis whose size is not fixed")
        sizes = [min(sizes[0], size - start) for start in range(0, size, sizes[0])]
    if isinstance(value, np.ndarray):
        parts: list[Any] = np.split(value, np.cumsum(sizes)[:-1], axis)
    else:
        parts = list(split_(xp, value, sizes, axis=axis))
    if split is not None or keepdims:
        return parts
    return [p.reshape(()) if isinstance(p, np.ndarray) else squeeze(xp, p, [axis]) for p in parts]


@operator("Optional", on="values")
def optional(xp: Arrays, value: Any = None, type: Any = None) -> Any:
    """ONNX Optional: a value, or None."""
    return value


@operator("OptionalHasElement", on="values")
def has_element(xp: Arrays, value: Any = None) -> Any:
    """ONNX OptionalHasElement: is there a value?"""
    return np.array(value is not None)


@operator("OptionalGetElement", on="values")
def element(xp: Arrays, value: Any) -> Any:
    """ONNX OptionalGetElement: the value that there is."""
    if value is None:
        raise Unsupported("the model reads an optional value that is not there")
    return value
