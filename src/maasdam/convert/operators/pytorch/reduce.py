"""Operators along axes: sums, extremes, softmax, order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from maasdam.convert.operators.pytorch.table import operator


def _list_reduction(name: str, function: Callable[[Tensor, list[int], bool], Tensor]) -> None:
    @operator(name, shapes=("axes",))
    def call(x: Tensor, axes: Any = None, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
        if not axes and noop_with_empty_axes:
            axes = []
        elif not axes:
            axes = list(range(x.dim()))
        if not axes and x.dim():
            return _elementwise(name, x)
        return function(x, axes, bool(keepdims)).to(x.dtype)


def _elementwise(name: str, x: Tensor) -> Tensor:
    """A reduction over no axis: each element by itself."""
    if name in ("ReduceL1", "ReduceL2"):
        return x.abs()
    if name == "ReduceSumSquare":
        return x * x
    return torch.log(x) if name == "ReduceLogSum" else x


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((a % max(x.dim(), 1) for a in axes), reverse=True):
        x = x.prod(axis, keepdim=keep) if x.dim() else x
    return x


def _extreme(function: Callable[..., Tensor], is_least: bool) -> Callable[[Tensor, list[int], bool], Tensor]:
    def reduce(x: Tensor, axes: list[int], keep: bool) -> Tensor:
        is_bool = x.dtype == torch.bool
        if any(isinstance(x.shape[axis], int) and x.shape[axis] == 0 for axis in axes):  # of nothing, which torch refuses
            return torch.full_like(x.sum(axes, keepdim=keep), _neutral(x.dtype, is_least), dtype=x.dtype)
        return function(x.to(torch.uint8) if is_bool else x, dim=axes, keepdim=keep)

    return reduce


def _neutral(kind: torch.dtype, is_least: bool) -> Any:
    """What the least, or the largest, of nothing is: the other end of the type."""
    if kind == torch.bool:
        return is_least
    if kind.is_floating_point:
        return float("inf") if is_least else float("-inf")
    return torch.iinfo(kind).max if is_least else torch.iinfo(kind).min


def _mean(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return (x if x.is_floating_point() else x.to(torch.float64)).mean(axes, keepdim=keep)


_REDUCTIONS: dict[str, Callable[[Tensor, list[int], bool], Tensor]] = {
    "ReduceL1": lambda x, axes, keep: x.abs().sum(axes, keepdim=keep),
    "ReduceL2": lambda x, axes, keep: (x.double() if not x.is_floating_point() else x).square().sum(axes, keepdim=keep).sqrt(),
    "ReduceLogSum": lambda x, axes, keep: x.sum(axes, keepdim=keep).log(),
    "ReduceLogSumExp": lambda x, axes, keep: torch.logsumexp(x, axes, keepdim=keep),
    "ReduceMax": _extreme(torch.amax, False),
    "ReduceMean": _mean,
    "ReduceMin": _extreme(torch.amin, True),
    "ReduceProd": _product,
    "ReduceSum": lambda x, axes, keep: x.sum(axes, keepdim=keep),
    "ReduceSumSquare": lambda x, axes, keep: x.square().sum(axes, keepdim=keep),
}
for _name, _reduction in _REDUCTIONS.items():
    _list_reduction(_name, _reduction)


@operator("ArgMax")
def argmax(x: Tensor, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    """ONNX ArgMax."""
    if not select_last_index:
        return torch.argmax(x, axis, keepdim=bool(keepdims))
    return x.shape[axis] - 1 - torch.argmax(x.flip(axis), axis, keepdim=bool(keepdims))


@operator("ArgMin")
def argmin(x: Tensor, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    """ONNX ArgMin."""
    if not select_last_index:
        return torch.argmin(x, axis, keepdim=bool(keepdims))
    return x.shape[axis] - 1 - torch.argmin(x.flip(axis), axis, keepdim=bool(keepdims))


@operator("CumSum", shapes=("axis",))
def cumulative_sum(x: Tensor, axis: Any, exclusive: int = 0, reverse: int = 0) -> Tensor:
    """ONNX CumSum."""
    return _cumulative(torch.cumsum, 0, x, axis, exclusive, reverse)


@operator("CumProd", shapes=("axis",))
def cumulative_product(x: Tensor, axis: Any, exclusive: int = 0, reverse: int = 0) -> Tensor:
    """ONNX CumProd."""
    return _cumulative(torch.cumprod, 1, x, axis, exclusive, reverse)


def _cumulative(function: Callable[..., Tensor], first: int, x: Tensor, axis: Any, exclusive: int, reverse: int) -> Tensor:
    axis = axis[0] if isinstance(axis, list) else axis
    x = x.flip(axis) if reverse else x
    if exclusive:
        head = torch.full_like(x.narrow(axis, 0, 1), first)
        x = torch.cat([head, x.narrow(axis, 0, x.shape[axis] - 1)], axis)
    out = function(x, axis).to(x.dtype)
    return out.flip(axis) if reverse else out


@operator("Softmax", since=13)
def softmax(x: Tensor, axis: int = -1) -> Tensor:
    """ONNX Softmax."""
    return torch.softmax(x, axis)


@operator("LogSoftmax", since=13)
def log_softmax(x: Tensor, axis: int = -1) -> Tensor:
    """ONNX LogSoftmax."""
    return torch.log_softmax(x, axis)


@operator("Hardmax", since=13)
def hardmax(x: Tensor, axis: int = -1) -> Tensor:
    """ONNX Hardmax: one at the first largest element, else zero."""
    return torch.zeros_like(x).scatter(axis, torch.argmax(x, axis, keepdim=True), 1)


@operator("Softmax")
def softmax_flat(x: Tensor, axis: int = 1) -> Tensor:
    """ONNX Softmax before 13: over all axes from `axis` on."""
    return torch.softmax(x.flatten(axis), -1).reshape(x.shape)


@operator("LogSoftmax")
def log_softmax_flat(x: Tensor, axis: int = 1) -> Tensor:
    """ONNX LogSoftmax before 13: over all axes from `axis` on."""
    return torch.log_softmax(x.flatten(axis), -1).reshape(x.shape)


@operator("Hardmax")
def hardmax_flat(x: Tensor, axis: int = 1) -> Tensor:
    """ONNX Hardmax before 13: over all axes from `axis` on."""
    return hardmax(x.flatten(axis), -1).reshape(x.shape)


@operator("LpNormalization")
def lp_normalization(x: Tensor, axis: int = -1, p: int = 2) -> Tensor:
    """ONNX LpNormalization; a vector of zeros stays zero."""
    norm = torch.linalg.vector_norm(x, p, axis, keepdim=True)
    return torch.where(norm == 0, torch.zeros_like(x), x / norm)


@operator("TopK", shapes=("k",))
def top_k(x: Tensor, k: Any, axis: int = -1, largest: int = 1, sorted: int = 1) -> tuple[Tensor, Tensor]:
    """ONNX TopK: of equal values the first one wins."""
    count = k[0] if isinstance(k, list) else k
    order = torch.argsort(x, dim=axis, descending=bool(largest), stable=True).narrow(axis, 0, count)
    return torch.gather(x, axis, order), order


@operator("Unique")
def unique(x: Tensor, axis: int | None = None, sorted: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """ONNX Unique: values, their first places, each element's place among them, their counts."""
    values, inverse, counts = torch.unique(x, return_inverse=True, return_counts=True, dim=axis)
    places = torch.arange(inverse.numel())
    first = torch.full((counts.numel(),), inverse.numel(), dtype=torch.int64)
    first = first.scatter_reduce(0, inverse.flatten(), places, "amin")
    if not sorted:
        order = torch.argsort(first)
        back = torch.argsort(order)
        values = values.index_select(axis or 0, order)
        first, counts, inverse = first[order], counts[order], back[inverse]
    return values, first, inverse.flatten(), counts
