"""Operators along axes: sums, extremes, softmax, order."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from maasdam.convert.operators.arrays import Arrays, Tensor
from maasdam.convert.operators.onnx.rearrange import along, positive
from maasdam.convert.operators.table import operator

Reduction = Callable[[Arrays, Tensor, list[int], bool], Tensor]
"""Of a tensor along axes, each kept with size 1 or not."""


def _list_reduction(name: str, function: Reduction, of_each: Callable[[Arrays, Tensor], Tensor]) -> None:
    """`of_each`: the reduction over no axis."""

    @operator(name, shapes=("axes",))
    def call(xp: Arrays, x: Tensor, axes: Any = None, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
        axes = [axes] if isinstance(axes, int) else axes
        if not axes:
            axes = [] if noop_with_empty_axes else list(range(xp.rank(x)))
        if not axes and xp.rank(x):
            return of_each(xp, x)
        return xp.cast(function(xp, x, axes, bool(keepdims)), x.dtype)


def _real(xp: Arrays, x: Tensor) -> Tensor:
    return x if xp.is_float(x) else xp.cast(x, xp.float64)


def _square(xp: Arrays, x: Tensor) -> Tensor:
    return x * x


def _same(xp: Arrays, x: Tensor) -> Tensor:
    return x


def _size(xp: Arrays, x: Tensor) -> Tensor:
    return xp.math.abs(x)


_REDUCTIONS: dict[str, tuple[Reduction, Callable[[Arrays, Tensor], Tensor]]] = {
    "ReduceL1": (lambda xp, x, axes, keep: xp.sum(xp.math.abs(x), axes, keep), _size),
    "ReduceL2": (lambda xp, x, axes, keep: xp.math.sqrt(xp.sum(xp.math.square(_real(xp, x)), axes, keep)), _size),
    "ReduceLogSum": (
        lambda xp, x, axes, keep: xp.math.log(xp.sum(_real(xp, x), axes, keep)),
        lambda xp, x: xp.math.log(x),
    ),
    "ReduceLogSumExp": (lambda xp, x, axes, keep: xp.reduce.log_sum_exp(_real(xp, x), axes, keep), _same),
    "ReduceMax": (lambda xp, x, axes, keep: xp.reduce.largest(x, axes, keep), _same),
    "ReduceMean": (lambda xp, x, axes, keep: xp.mean(_real(xp, x), axes, keep), _same),
    "ReduceMin": (lambda xp, x, axes, keep: xp.reduce.least(x, axes, keep), _same),
    "ReduceProd": (lambda xp, x, axes, keep: xp.reduce.product(x, axes, keep), _same),
    "ReduceSum": (lambda xp, x, axes, keep: xp.sum(x, axes, keep), _same),
    "ReduceSumSquare": (lambda xp, x, axes, keep: xp.sum(xp.math.square(x), axes, keep), _square),
}
for _name, _functions in _REDUCTIONS.items():
    _list_reduction(_name, *_functions)


@operator("ArgMax")
def argmax(xp: Arrays, x: Tensor, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    """ONNX ArgMax."""
    return _place(xp, xp.math.argmax, x, axis, keepdims, select_last_index)


@operator("ArgMin")
def argmin(xp: Arrays, x: Tensor, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    """ONNX ArgMin."""
    return _place(xp, xp.math.argmin, x, axis, keepdims, select_last_index)


def _place(xp: Arrays, function: Callable[..., Tensor], x: Tensor, axis: int, keepdims: int, last: int) -> Tensor:
    axis = positive(xp, x, axis)
    found = function(xp.flip(x, axis) if last else x, axis)
    if last:
        found = xp.number(xp.dims(x)[axis] - 1) - found
    return xp.unsqueeze(found, axis) if keepdims else found


@operator("CumSum", shapes=("axis",))
def cumulative_sum(xp: Arrays, x: Tensor, axis: Any, exclusive: int = 0, reverse: int = 0) -> Tensor:
    """ONNX CumSum."""
    return xp.reduce.cumulative_sum(x, axis[0] if isinstance(axis, list) else axis, bool(exclusive), bool(reverse))


@operator("CumProd", shapes=("axis",))
def cumulative_product(xp: Arrays, x: Tensor, axis: Any, exclusive: int = 0, reverse: int = 0) -> Tensor:
    """ONNX CumProd."""
    return xp.reduce.cumulative_product(x, axis[0] if isinstance(axis, list) else axis, bool(exclusive), bool(reverse))


@operator("Softmax", since=13)
def softmax(xp: Arrays, x: Tensor, axis: int = -1) -> Tensor:
    """ONNX Softmax."""
    return xp.math.softmax(x, axis)


@operator("LogSoftmax", since=13)
def log_softmax(xp: Arrays, x: Tensor, axis: int = -1) -> Tensor:
    """ONNX LogSoftmax."""
    return xp.math.log_softmax(x, axis)


@operator("Hardmax", since=13)
def hardmax(xp: Arrays, x: Tensor, axis: int = -1) -> Tensor:
    """ONNX Hardmax: one at the first largest element, else zero."""
    places = along(xp, xp.arange(xp.dims(x)[axis]), positive(xp, x, axis), xp.rank(x))
    return xp.cast(xp.equal(argmax(xp, x, axis), places), x.dtype)


@operator("Softmax")
def softmax_flat(xp: Arrays, x: Tensor, axis: int = 1) -> Tensor:
    """ONNX Softmax before 13: over all axes from `axis` on."""
    return _flat(xp, softmax, x, axis)


@operator("LogSoftmax")
def log_softmax_flat(xp: Arrays, x: Tensor, axis: int = 1) -> Tensor:
    """ONNX LogSoftmax before 13: over all axes from `axis` on."""
    return _flat(xp, log_softmax, x, axis)


@operator("Hardmax")
def hardmax_flat(xp: Arrays, x: Tensor, axis: int = 1) -> Tensor:
    """ONNX Hardmax before 13: over all axes from `axis` on."""
    return _flat(xp, hardmax, x, axis)


def _flat(xp: Arrays, function: Callable[[Arrays, Tensor, int], Tensor], x: Tensor, axis: int) -> Tensor:
    sizes, axis = xp.dims(x), positive(xp, x, axis)
    if axis == len(sizes) - 1:
        return function(xp, x, -1)
    return xp.reshape(function(xp, xp.reshape(x, [*sizes[:axis], math.prod(sizes[axis:])]), -1), sizes)


@operator("LpNormalization")
def lp_normalization(xp: Arrays, x: Tensor, axis: int = -1, p: int = 2) -> Tensor:
    """ONNX LpNormalization; a vector of zeros stays zero."""
    norm = xp.reduce.norm(x, p, axis)
    return xp.where(norm == 0, xp.zeros_like(x), x / norm)


@operator("TopK", shapes=("k",))
def top_k(xp: Arrays, x: Tensor, k: Any, axis: int = -1, largest: int = 1, sorted: int = 1) -> tuple[Tensor, Tensor]:
    """ONNX TopK: of equal values the first one wins."""
    found: tuple[Tensor, Tensor] = xp.reduce.top_k(x, k[0] if isinstance(k, list) else k, positive(xp, x, axis), bool(largest))
    return found


@operator("Unique")
def unique(xp: Arrays, x: Tensor, axis: int | None = None, sorted: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """ONNX Unique: values, their first places, each element's place among them, their counts."""
    flat = xp.reshape(x, [-1]) if axis is None else x
    found: tuple[Tensor, Tensor, Tensor, Tensor] = xp.reduce.unique(flat, positive(xp, flat, axis or 0), bool(sorted))
    return found
