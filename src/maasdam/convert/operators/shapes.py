"""Arithmetic on shapes, the same for every framework.

Exported models compute shapes with tensors: Shape, Gather, Mul, Concat, then Reshape. Kept as tensors they would hide from
the framework which axes are known. So small integers stay numpy arrays here, of numbers where they are known and of the
framework's own symbols (dtype object) where they are not: an axis of a running batch.

Only integers and booleans live here. `NotHere` says that an operator has to run on tensors after all.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Small = NDArray[Any]
"""int64, int32 or bool numbers, or dtype object: int64 some of which are symbols."""
AXES = re.compile(r"(\d+\*)?s\d+( \+ (\d+\*)?s\d+)*")
"""Sizes of inputs' axes as torch.export writes them, added and multiplied; numbers taken from data are u0, u1 and so on."""
MOST = 4096
"""More numbers than this are data, not a shape."""


EXACT = 1 << 24
"""Below this every integer is a float32 too."""
INTEGERS = (6, 7)
"""ONNX's numbers of int32 and int64."""
FLOATS = (1, 11)
"""Of float32 and float64, which hold every size there is exactly."""
_ROUNDINGS = ("Floor", "Ceil", "Round")
OF_WHOLES = {
    "Cast",
    "Add",
    "Sub",
    "Mul",
    "Concat",
    "Gather",
    "Identity",
    "Reshape",
    "Slice",
    "Squeeze",
    "Unsqueeze",
    *_ROUNDINGS,
}
"""Operators that make whole numbers of whole numbers."""


class NotHere(Exception):
    """The operator has no meaning on shapes, or needs a number where there is a symbol."""


def is_small(value: object) -> bool:
    """Is it an array that belongs here?"""
    return isinstance(value, np.ndarray) and value.dtype.kind in "iubO" and value.ndim <= 2 and value.size <= MOST


def is_number(value: object) -> bool:
    """Is it known, and no symbol?"""
    return isinstance(value, int | float | bool | np.generic)


def tidy(values: Small) -> Small:
    """Numbers as int64 once no symbol is left."""
    if values.dtype == object and all(is_number(v) for v in values.flat):
        return np.array(values.tolist(), np.int64).reshape(values.shape)
    return values


def of_dims(dims: Sequence[Any]) -> Small:
    """A shape as an array of one axis."""
    out = np.empty(len(dims), object)
    out[:] = list(dims)
    return tidy(out)


def of_each(function: Callable[[Any], Any], values: Small) -> Small:
    """`function` of every symbol; numbers stay."""
    return tidy(np.array([v if is_number(v) else function(v) for v in values.flat], values.dtype).reshape(values.shape))


def compute(operator: str, inputs: Sequence[Small | None], attributes: dict[str, Any]) -> Small:
    """What the operator makes of small arrays. Raises NotHere."""
    function = _OPERATORS.get(operator)
    if function is None or any(v is None for v in inputs[:1]):
        raise NotHere
    try:
        return tidy(np.asarray(function(*inputs, **attributes)))
    except (TypeError, ValueError, IndexError) as error:
        raise NotHere from error


def whole_numbers(array: NDArray[Any] | None) -> Small | None:
    """A constant of floats as the integers that they are; None where they are none."""
    if array is None or array.dtype.kind != "f" or array.ndim > 1 or array.size > MOST:
        return None
    if not np.isfinite(array).all() or (array != np.floor(array)).any() or (np.abs(array) >= EXACT).any():
        return None
    return array.astype(np.int64)


def compute_wholes(operator: str, inputs: Sequence[Small], attributes: dict[str, Any]) -> Small:
    """As `compute`, of floats that are whole numbers. Raises NotHere."""
    if operator == "Cast":
        if attributes["to"] not in (*INTEGERS, *FLOATS):
            raise NotHere
        return compute("Identity", inputs, {})
    return compute("Identity" if operator in _ROUNDINGS else operator, inputs, attributes)


def _numbers(values: Small) -> list[int]:
    if values.dtype == object:
        raise NotHere
    return [int(v) for v in values.flat]


def _axes(values: Small | Sequence[int] | None, rank: int) -> list[int] | None:
    if values is None:
        return None
    return [axis % rank if rank else 0 for axis in _numbers(np.asarray(values))]


def _gather(data: Small, indices: Small, axis: int = 0) -> Small:
    return np.take(data, np.asarray(_numbers(indices)).reshape(indices.shape), axis)


def _concat(*parts: Small, axis: int) -> Small:
    return np.concatenate([np.atleast_1d(p) for p in parts], axis)


def _slice(
    data: Small,
    starts: Small | Sequence[int],
    ends: Small | Sequence[int],
    axes: Small | Sequence[int] | None = None,
    steps: Small | None = None,
) -> Small:
    begin, end = _numbers(np.asarray(starts)), _numbers(np.asarray(ends))
    step = _numbers(steps) if steps is not None else [1] * len(begin)
    where = _axes(axes, data.ndim)
    index = [slice(None)] * data.ndim
    for axis, first, stop, by in zip(range(len(begin)) if where is None else where, begin, end, step, strict=True):
        index[axis] = slice(first, None if by < 0 and stop < -data.shape[axis] else stop, by)
    return data[tuple(index)]


def _squeeze(data: Small, axes: Small | Sequence[int] | None = None) -> Small:
    if data.ndim != 1 or data.size != 1:
        raise NotHere
    return data.reshape(())


def _unsqueeze(data: Small, axes: Small | Sequence[int]) -> Small:
    where = _numbers(np.asarray(axes))
    if data.ndim or len(where) != 1:
        raise NotHere
    return data.reshape(1)


def _reshape(data: Small, shape: Small, allowzero: int = 0) -> Small:
    to = _numbers(shape)
    if len(to) > 2 or (len(to) == 2 and 0 in to):
        raise NotHere
    return data.reshape(to)


def _product(data: Small, axes: Small | Sequence[int] | None = None, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Small:
    if data.ndim != 1 or (axes is not None and _axes(axes, 1) != [0]):
        raise NotHere
    out = np.empty(1 if keepdims else (), object)
    out[...] = math.prod(data.tolist())
    return out


def _cast(data: Small, to: int, saturate: int = 1, round_mode: str = "up") -> Small:
    """int64 (7) and int32 (6) mean the same for a shape; other kinds are for numbers that are known."""
    if to in (6, 7):
        return data if data.dtype == object else data.astype({6: np.int32, 7: np.int64}[to])
    if to == 9 and data.dtype != object:
        return data.astype(np.bool_)
    raise NotHere


def _equal(a: Small, b: Small) -> Small:
    """A symbol is a size, so it equals no negative number; whether it equals another only the run can tell."""
    left, right = np.broadcast_arrays(a, b)
    found = [_is_equal(x, y) for x, y in zip(left.flat, right.flat, strict=True)]
    return np.array(found, np.bool_).reshape(left.shape)


def _is_equal(a: Any, b: Any) -> bool:
    if is_number(a) and is_number(b):
        return bool(a == b)
    if (is_number(a) and a < 0) or (is_number(b) and b < 0):
        return False
    raise NotHere


def _where(condition: Small, a: Small, b: Small) -> Small:
    if condition.dtype == object:
        raise NotHere
    return np.where(condition, a.astype(object), b.astype(object))


def _constant_of_shape(shape: Small, value: Small | None = None) -> Small:
    sizes = _numbers(shape)
    if len(sizes) > 1 or (value is not None and value.dtype.kind not in "iub"):
        raise NotHere
    if value is None:
        raise NotHere  # float zeros: data
    if math.prod(sizes) > MOST:
        raise NotHere
    return np.full(sizes, value.item(), value.dtype)


def _range(start: Small, limit: Small, delta: Small) -> Small:
    numbers = [_numbers(v)[0] for v in (start, limit, delta)]
    if len(range(*numbers)) > MOST:
        raise NotHere
    return np.arange(*numbers, dtype=start.dtype)


def _divide(a: Small, b: Small) -> Small:
    """ONNX cuts towards zero; sizes are not negative."""
    numbers = [v for v in (*a.flat, *b.flat) if is_number(v)]
    if any(v < 0 for v in numbers) or any(is_number(v) and v == 0 for v in b.flat):
        raise NotHere
    return a // b


def _remainder(a: Small, b: Small, fmod: int = 0) -> Small:
    """Of sizes, which are not negative: both of ONNX's ways agree."""
    numbers = [v for v in (*a.flat, *b.flat) if is_number(v)]
    if any(v < 0 for v in numbers) or any(is_number(v) and v == 0 for v in b.flat):
        raise NotHere
    return a % b


def _largest(*values: Small) -> Small:
    """An axis is at least one long, so it is the larger of itself and one, and so are axes together. Of two different symbols,
    or one that was computed and may be negative (an axis less five), only the run can tell."""
    whole = np.broadcast_arrays(*values)
    out = np.empty(whole[0].shape, object)
    for place in np.ndindex(out.shape):
        numbers = [int(v[place]) for v in whole if is_number(v[place])]
        symbols = {str(v[place]): v[place] for v in whole if not is_number(v[place])}
        if len(symbols) > 1 or (numbers and symbols and (max(numbers) > 1 or not all(map(AXES.fullmatch, symbols)))):
            raise NotHere
        out[place] = next(iter(symbols.values())) if symbols else max(numbers)
    return out if any(v.dtype == object for v in values) else out.astype(np.result_type(*values))


def _numbers_only(function: Callable[..., Any]) -> Callable[..., Any]:
    def checked(*inputs: Small, **attributes: Any) -> Any:
        if any(v.dtype == object for v in inputs):
            raise NotHere
        return function(*inputs, **attributes)

    return checked


_OPERATORS: dict[str, Callable[..., Any]] = {
    "Add": lambda a, b: a + b,
    "Cast": _cast,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Div": _divide,
    "Equal": _equal,
    "Gather": _gather,
    "Greater": _numbers_only(lambda a, b: a > b),
    "GreaterOrEqual": _numbers_only(lambda a, b: a >= b),
    "Identity": lambda a: a,
    "Less": _numbers_only(lambda a, b: a < b),
    "LessOrEqual": _numbers_only(lambda a, b: a <= b),
    "And": _numbers_only(lambda a, b: a & b),
    "Or": _numbers_only(lambda a, b: a | b),
    "Max": _largest,
    "Min": _numbers_only(lambda *a: np.minimum.reduce(np.broadcast_arrays(*a))),
    "Mod": _remainder,
    "Mul": lambda a, b: a * b,
    "Neg": lambda a: -a,
    "Not": _numbers_only(lambda a: ~a),
    "Range": _range,
    "ReduceProd": _product,
    "Reshape": _reshape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Sub": lambda a, b: a - b,
    "Transpose": lambda a, perm=None: np.transpose(a, perm),
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}
