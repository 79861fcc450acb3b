"""Kernels of operators that move, pick and repeat elements."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from maasdam.errors import Unsupported


def triangle(x: Tensor, diagonal: int, is_upper: bool) -> Tensor:
    """The upper or the lower one."""
    return torch.triu(x, diagonal) if is_upper else torch.tril(x, diagonal)


def transpose(x: Tensor, perm: Any) -> Tensor:
    """Reversed unless told."""
    found = x.permute(perm if perm is not None else list(range(x.dim()))[::-1])
    # [N, C, T] to [N, T, C] is copied: arithmetic on its strides would make torch.export exclude a length of one
    return found.contiguous() if x.dim() == 3 else found


def slice_(x: Tensor, starts: Any, ends: Any, axes: Any, steps: Any) -> Tensor:
    """Axis by axis."""
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if isinstance(step, int) and step < 0:
            x = _backwards(x, start, end, axis, step)
        else:
            index: list[Any] = [slice(None)] * x.dim()
            index[axis] = slice(start, None if _is_beyond(end) else end, step)
            x = x[tuple(index)]
    return x


def _is_beyond(end: Any) -> bool:
    """Exporters write the largest integer for "to the end"."""
    return isinstance(end, int) and end >= 2**31 - 1


def _is_before(end: Any) -> bool:
    """Exporters write the smallest integer for "to the beginning"."""
    return isinstance(end, int) and end <= -(2**31) + 1


def _backwards(x: Tensor, start: int, end: int, axis: int, step: int) -> Tensor:
    """torch slices forwards only: of the mirrored axis, then."""
    size = x.shape[axis]
    start = min(start + size if start < 0 else start, size - 1)
    skipped = size - 1 - start
    stop = None if _is_before(end) else size - 1 - max(end + size if end < 0 else end, -1)
    index: list[Any] = [slice(None)] * x.dim()
    index[axis] = slice(skipped, stop, -step)
    return x.flip(axis)[tuple(index)]


def counted(indices: Tensor, size: Any) -> Tensor:
    """Indices from the end counted from the start."""
    indices = indices.to(torch.int64)
    return torch.where(indices < 0, indices + size, indices)


def gather(x: Tensor, indices: Tensor, axis: int) -> Tensor:
    """The table of an embedding is looked up as PyTorch does it, so that it can be trained."""
    if axis == 0 and x.dim() == 2 and isinstance(x, torch.nn.Parameter):
        return functional.embedding(indices, x)
    if indices.dim() == 0:
        return x.index_select(axis, indices.reshape(1)).squeeze(axis)
    picked = x.index_select(axis, indices.flatten())
    return picked.reshape([*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]])


def gather_elements(x: Tensor, indices: Tensor, axis: int) -> Tensor:
    """Indices counted from 0."""
    return torch.gather(x, axis, indices)


def gather_nd(x: Tensor, indices: Tensor, batch_dims: int) -> Tensor:
    """By indexing, the batch axes by their own places."""
    leading = []
    for axis in range(batch_dims):
        shape = [1] * (indices.dim() - 1)
        shape[axis] = x.shape[axis]
        leading.append(torch.arange(x.shape[axis]).reshape(shape).expand(indices.shape[:-1]))
    coordinates = [counted(part, x.shape[batch_dims + i]) for i, part in enumerate(indices.unbind(-1))]
    return x[tuple([*leading, *coordinates])]


_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def scatter_elements(x: Tensor, indices: Tensor, updates: Tensor, axis: int, reduction: str) -> Tensor:
    """Indices counted from 0."""
    if reduction == "none":
        return x.scatter(axis, indices, updates)
    return x.scatter_reduce(axis, indices, updates, _REDUCTIONS[reduction])


def scatter_nd(x: Tensor, indices: Tensor, updates: Tensor, reduction: str) -> Tensor:
    """As rows of a flattened tensor."""
    depth = indices.shape[-1]
    place = torch.zeros(indices.shape[:-1], dtype=torch.int64)
    for axis in range(depth):
        place = place * x.shape[axis] + counted(indices[..., axis], x.shape[axis])
    rows = x.reshape(math.prod(x.shape[:depth]), -1)
    spread = place.reshape(-1, 1).expand(-1, rows.shape[1])
    return scatter_elements(rows, spread, updates.reshape(-1, rows.shape[1]), 0, reduction).reshape(x.shape)


def pad(x: Tensor, around: list[tuple[Any, Any]], value: Any) -> Tensor:
    """(before, after) each axis; negative ones cut. A value may be a tensor."""
    flat = [size for pair in reversed(around) for size in pair]
    fill = 0 if value is None else value
    if not isinstance(fill, Tensor):
        return functional.pad(x, flat, value=fill)
    if x.dtype == torch.bool:
        return functional.pad(x.to(torch.uint8), flat).to(torch.bool) | (_outside(x, flat) & fill.reshape(()))
    padded = functional.pad(x, flat)
    return torch.where(_outside(x, flat), fill.reshape(()).to(x.dtype), padded)


def _outside(x: Tensor, flat: list[Any]) -> Tensor:
    return functional.pad(torch.zeros(x.shape, dtype=torch.uint8), flat, value=1).to(torch.bool)


def range_(start: Tensor, limit: Any, delta: Any) -> Tensor:
    """Of numbers, which torch asks for."""
    limit, delta = (v.item() if isinstance(v, Tensor) else v for v in (limit, delta))
    return torch.arange(start.item(), limit, delta, dtype=start.dtype)


def reverse_sequence(x: Tensor, lengths: Tensor, batch_axis: int, time_axis: int) -> Tensor:
    """By places; torch has nothing of its own."""
    if {batch_axis, time_axis} != {0, 1}:
        raise Unsupported("ReverseSequence over other axes than the first two")
    steps = torch.arange(x.shape[time_axis]).unsqueeze(0)
    limit = lengths.to(torch.int64).unsqueeze(1)
    places = torch.where(steps < limit, limit - 1 - steps, steps)
    places = places if time_axis == 1 else places.t()
    return torch.gather(x, time_axis, places.reshape([*places.shape, *[1] * (x.dim() - 2)]).expand(x.shape))
