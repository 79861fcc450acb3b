"""Kernels of operators along axes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

log_sum_exp = torch.logsumexp


def product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    """torch multiplies along one axis at a time."""
    for axis in sorted((a % max(x.dim(), 1) for a in axes), reverse=True):
        x = x.prod(axis, keepdim=keep) if x.dim() else x
    return x


def _extreme(function: Callable[..., Tensor], is_least: bool, x: Tensor, axes: list[int], keep: bool) -> Tensor:
    is_bool = x.dtype == torch.bool
    if any(isinstance(x.shape[axis], int) and x.shape[axis] == 0 for axis in axes):  # of nothing, which torch refuses
        return torch.full_like(x.sum(axes, keepdim=keep), _neutral(x.dtype, is_least), dtype=x.dtype)
    return function(x.to(torch.uint8) if is_bool else x, dim=axes, keepdim=keep)


largest, least = functools.partial(_extreme, torch.amax, False), functools.partial(_extreme, torch.amin, True)


def _neutral(kind: torch.dtype, is_least: bool) -> Any:
    """What the least, or the largest, of nothing is: the other end of the type."""
    if kind == torch.bool:
        return is_least
    if kind.is_floating_point:
        return float("inf") if is_least else float("-inf")
    return torch.iinfo(kind).max if is_least else torch.iinfo(kind).min


def _cumulative(function: Callable[..., Tensor], first: int, x: Tensor, axis: int, exclusive: bool, reverse: bool) -> Tensor:
    x = x.flip(axis) if reverse else x
    if exclusive:
        head = torch.full_like(x.narrow(axis, 0, 1), first)
        x = torch.cat([head, x.narrow(axis, 0, x.shape[axis] - 1)], axis)
    out = function(x, axis).to(x.dtype)
    return out.flip(axis) if reverse else out


cumulative_sum = functools.partial(_cumulative, torch.cumsum, 0)
cumulative_product = functools.partial(_cumulative, torch.cumprod, 1)


def norm(x: Tensor, p: int, axis: int) -> Tensor:
    """The axis is kept with size 1."""
    found: Tensor = torch.linalg.vector_norm(x, p, axis, keepdim=True)
    return found


def top_k(x: Tensor, count: Any, axis: int, is_largest: bool) -> tuple[Tensor, Tensor]:
    """Stable, which torch's own is not."""
    order = torch.argsort(x, dim=axis, descending=is_largest, stable=True).narrow(axis, 0, count)
    return torch.gather(x, axis, order), order


def unique(x: Tensor, axis: int, is_sorted: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """torch's own is always sorted, and does not say which are the first places."""
    values, inverse, counts = torch.unique(x, return_inverse=True, return_counts=True, dim=axis)
    first = torch.full((counts.numel(),), inverse.numel(), dtype=torch.int64)
    first = first.scatter_reduce(0, inverse, torch.arange(inverse.numel()), "amin")
    if not is_sorted:
        order = torch.argsort(first)
        values = values.index_select(axis, order)
        first, counts, inverse = first[order], counts[order], torch.argsort(order)[inverse]
    return values, first, inverse, counts
