"""Operators that move, pick and repeat elements."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from maasdam.convert.operators.pytorch import table
from maasdam.convert.operators.pytorch.table import operator
from maasdam.errors import Unsupported


@operator("Reshape", shapes=("shape",))
def reshape(x: Tensor, shape: list[Any], allowzero: int = 0) -> Tensor:
    """ONNX Reshape: 0 keeps the axis unless `allowzero`, -1 takes what is left."""
    if not allowzero:
        shape = [x.shape[i] if isinstance(size, int) and size == 0 else size for i, size in enumerate(shape)]
    return x.reshape(shape)


@operator("Flatten")
def flatten(x: Tensor, axis: int = 1) -> Tensor:
    """ONNX Flatten: to two axes."""
    axis = axis if axis >= 0 else axis + x.dim()
    rest = _product(x.shape[axis:])
    return x.reshape(_product(x.shape[:axis]), rest if isinstance(rest, int) else -1)


def _product(sizes: Any) -> Any:
    out: Any = 1
    for size in sizes:
        out = out * size
    return out


@operator("Transpose")
def transpose(x: Tensor, perm: list[int] | None = None) -> Tensor:
    """ONNX Transpose: reversed unless told."""
    found = x.permute(perm if perm is not None else list(range(x.dim()))[::-1])
    # [N, C, T] to [N, T, C] is copied: arithmetic on its strides would make torch.export exclude a length of one
    return found.contiguous() if x.dim() == 3 else found


@operator("Squeeze", shapes=("axes",))
def squeeze(x: Tensor, axes: Any = None) -> Tensor:
    """ONNX Squeeze."""
    if axes is None:
        return x.squeeze()
    return x.squeeze(tuple(axes)) if isinstance(axes, list) else x.squeeze(axes)


@operator("Unsqueeze", shapes=("axes",))
def unsqueeze(x: Tensor, axes: Any) -> Tensor:
    """ONNX Unsqueeze: axes counted in the result."""
    axes = axes if isinstance(axes, list) else [axes]
    rank = x.dim() + len(axes)
    for axis in sorted(a % rank for a in axes):
        x = x.unsqueeze(axis)
    return x


@operator("Concat")
def concat(*values: Tensor, axis: int) -> Tensor:
    """ONNX Concat."""
    return torch.cat(values, axis)


@operator("Split", shapes=("split",))
def split(x: Tensor, split: Any = None, axis: int = 0, num_outputs: int = 0, outputs: int = 0) -> tuple[Tensor, ...]:
    """ONNX Split: by the sizes given, else evenly, the last part the smaller one."""
    if split is None:
        count = num_outputs or outputs
        part = (x.shape[axis] + count - 1) // count
        split = [part] * (count - 1) + [x.shape[axis] - part * (count - 1)]
    return torch.split(x, split, axis)


@operator("Slice", shapes=("starts", "ends", "axes", "steps"))
def slice_(x: Tensor, starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> Tensor:
    """ONNX Slice."""
    axes = axes if axes is not None else list(range(len(starts)))
    steps = steps if steps is not None else [1] * len(starts)
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


@operator("Gather")
def gather(x: Tensor, indices: Tensor, axis: int = 0) -> Tensor:
    """ONNX Gather. The table of an embedding is looked up as PyTorch does it, so that it can be trained."""
    axis = axis % x.dim()
    if axis == 0 and x.dim() == 2 and isinstance(x, torch.nn.Parameter):
        return functional.embedding(_counted(indices, x.shape[0]), x)
    if indices.dim() == 0:
        return x.index_select(axis, _counted(indices, x.shape[axis]).reshape(1)).squeeze(axis)
    picked = x.index_select(axis, _counted(indices, x.shape[axis]).flatten())
    return picked.reshape([*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]])


def _counted(indices: Tensor, size: Any) -> Tensor:
    """Indices from the end counted from the start."""
    indices = indices.to(torch.int64)
    return torch.where(indices < 0, indices + size, indices)


@operator("GatherElements")
def gather_elements(x: Tensor, indices: Tensor, axis: int = 0) -> Tensor:
    """ONNX GatherElements."""
    return torch.gather(x, axis, _counted(indices, x.shape[axis]))


@operator("GatherND")
def gather_nd(x: Tensor, indices: Tensor, batch_dims: int = 0) -> Tensor:
    """ONNX GatherND: the last axis of `indices` holds coordinates."""
    leading = []
    for axis in range(batch_dims):
        shape = [1] * (indices.dim() - 1)
        shape[axis] = x.shape[axis]
        leading.append(torch.arange(x.shape[axis]).reshape(shape).expand(indices.shape[:-1]))
    coordinates = [_counted(part, x.shape[batch_dims + i]) for i, part in enumerate(indices.unbind(-1))]
    return x[tuple([*leading, *coordinates])]


_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@operator("ScatterElements", "Scatter")
def scatter_elements(x: Tensor, indices: Tensor, updates: Tensor, axis: int = 0, reduction: str = "none") -> Tensor:
    """ONNX ScatterElements, and Scatter as it was called before."""
    indices = _counted(indices, x.shape[axis])
    if reduction == "none":
        return x.scatter(axis, indices, updates)
    return x.scatter_reduce(axis, indices, updates, _REDUCTIONS[reduction])


@operator("ScatterND")
def scatter_nd(x: Tensor, indices: Tensor, updates: Tensor, reduction: str = "none") -> Tensor:
    """ONNX ScatterND: the last axis of `indices` holds coordinates."""
    depth = indices.shape[-1]
    place = torch.zeros(indices.shape[:-1], dtype=torch.int64)
    for axis in range(depth):
        place = place * x.shape[axis] + _counted(indices[..., axis], x.shape[axis])
    rows = x.reshape(_product(x.shape[:depth]), -1)
    spread = place.reshape(-1, 1).expand(-1, rows.shape[1])
    values = updates.reshape(-1, rows.shape[1])
    if reduction == "none":
        return rows.scatter(0, spread, values).reshape(x.shape)
    return rows.scatter_reduce(0, spread, values, _REDUCTIONS[reduction]).reshape(x.shape)


@operator("TensorScatter")
def tensor_scatter(cache: Tensor, update: Tensor, starts: Tensor | None = None, axis: int = -2, mode: str = "linear") -> Tensor:
    """ONNX TensorScatter: write `update` into `cache` along `axis`, from each item's own start."""
    axis = axis % cache.dim()
    length = update.shape[axis]
    begin = starts if starts is not None else torch.zeros(cache.shape[0], dtype=torch.int64)
    places = begin.reshape(-1, 1) + torch.arange(length)
    places = places % cache.shape[axis] if mode == "circular" else places
    shape = [1] * cache.dim()
    shape[0], shape[axis] = cache.shape[0], length
    return cache.scatter(axis, places.reshape(shape).expand(update.shape), update)


@operator("Expand", shapes=("shape",))
def expand(x: Tensor, shape: list[Any]) -> Tensor:
    """ONNX Expand: broadcast both ways; an axis of 1 in `shape` keeps x's."""
    rank = max(len(shape), x.dim())
    have = [1] * (rank - x.dim()) + list(x.shape)
    want = [1] * (rank - len(shape)) + list(shape)
    sizes = [h if isinstance(w, int) and w == 1 else w for h, w in zip(have, want, strict=True)]
    return x.expand(sizes)


@operator("Tile", shapes=("repeats",))
def tile(x: Tensor, repeats: list[Any]) -> Tensor:
    """ONNX Tile."""
    return x.repeat(repeats)


@operator("Pad", shapes=("pads", "axes"))
def pad(x: Tensor, pads: list[Any], value: Any = None, axes: Any = None, mode: str = "constant") -> Tensor:
    """ONNX Pad: all befores, then all afters; negative ones cut."""
    axes = [a % x.dim() for a in axes] if axes is not None else list(range(x.dim()))
    count = len(axes)
    around = {axis: (pads[i], pads[i + count]) for i, axis in enumerate(axes)}
    if mode != "constant":
        for axis, (before, after) in around.items():
            x = _mirrored(x, axis, before, after, mode)
        return x
    flat = [size for axis in reversed(range(x.dim())) for size in around.get(axis, (0, 0))]
    fill = 0 if value is None else value
    if not isinstance(fill, Tensor):
        return functional.pad(x, flat, value=fill)
    if x.dtype == torch.bool:
        return functional.pad(x.to(torch.uint8), flat).to(torch.bool) | (_outside(x, flat) & fill.reshape(()))
    padded = functional.pad(x, flat)
    return torch.where(_outside(x, flat), fill.reshape(()).to(x.dtype), padded)


def _outside(x: Tensor, flat: list[Any]) -> Tensor:
    return functional.pad(torch.zeros(x.shape, dtype=torch.uint8), flat, value=1).to(torch.bool)


def _mirrored(x: Tensor, axis: int, before: int, after: int, mode: str) -> Tensor:
    """By index: torch's own padding knows these modes for some ranks and the last axes only."""
    if isinstance(before, int) and isinstance(after, int) and before <= 0 and after <= 0:
        return x.narrow(axis, -before, x.shape[axis] + before + after)
    size = x.shape[axis]
    places = torch.arange(-before, size + after)
    if mode == "edge":
        places = places.clamp(0, size - 1)
    elif mode == "wrap":
        places = places % size
    else:
        places = places.abs()
        places = torch.where(places >= size, 2 * (size - 1) - places, places)
    return x.index_select(axis, places)


@operator("CenterCropPad", shapes=("shape",))
def center_crop_pad(x: Tensor, shape: list[int], axes: list[int] | None = None) -> Tensor:
    """ONNX CenterCropPad."""
    for axis, size in zip(axes if axes is not None else range(x.dim()), shape, strict=True):
        have = x.shape[axis]
        if size < have:
            x = x.narrow(axis, (have - size) // 2, size)
        elif size > have:
            before = (size - have) // 2
            x = pad(x, [before, size - have - before], axes=[axis])
    return x


@operator("ConstantOfShape", shapes=("shape",))
def constant_of_shape(shape: Any, value: np.ndarray[Any, Any] | None = None) -> Tensor:
    """ONNX ConstantOfShape: zeros of float32 unless told."""
    one = torch.zeros(1) if value is None else torch.from_numpy(value.copy())
    return torch.full(shape if isinstance(shape, list) else [shape], one.item(), dtype=one.dtype)


@operator("Range", shapes=("limit", "delta"))
def range_(start: Tensor, limit: Any, delta: Any, stash_type: int = 1) -> Tensor:
    """ONNX Range. Its limit is mostly a size: as a symbol it stays tied to the axis it came from."""
    limit, delta = (v[0] if isinstance(v, list) else v for v in (limit, delta))
    return torch.arange(start.item(), limit, delta, dtype=start.dtype)


@operator("OneHot", shapes=("depth",))
def one_hot(indices: Tensor, depth: Any, values: Tensor, axis: int = -1) -> Tensor:
    """ONNX OneHot: an index outside gives all "off"."""
    count = depth[0] if isinstance(depth, list) else depth
    count = int(count) if isinstance(count, float) else count
    axis = axis if axis >= 0 else axis + indices.dim() + 1
    wanted = _counted(indices, count).unsqueeze(axis)
    shape = [1] * (indices.dim() + 1)
    shape[axis] = count
    return torch.where(wanted == torch.arange(count).reshape(shape), values[1], values[0])


@operator("Trilu", shapes=("k",))
def trilu(x: Tensor, k: Any = 0, upper: int = 1) -> Tensor:
    """ONNX Trilu: the upper or lower triangle."""
    diagonal = k[0] if isinstance(k, list) else k or 0
    return torch.triu(x, diagonal) if upper else torch.tril(x, diagonal)


@operator("EyeLike")
def eye_like(x: Tensor, dtype: int | None = None, k: int = 0) -> Tensor:
    """ONNX EyeLike."""
    rows, columns = torch.arange(x.shape[0]).reshape(-1, 1), torch.arange(x.shape[1])
    return (columns - rows == k).to(table.dtype(dtype) if dtype is not None else x.dtype)


@operator("NonZero")
def non_zero(x: Tensor) -> Tensor:
    """ONNX NonZero: coordinates of what is not zero, one row an axis."""
    return torch.nonzero(x).t()


@operator("Compress")
def compress(x: Tensor, condition: Tensor, axis: int | None = None) -> Tensor:
    """ONNX Compress: where `condition` holds, of an axis or of all elements."""
    x, axis = (x.flatten(), 0) if axis is None else (x, axis)
    return x.index_select(axis, torch.nonzero(condition).flatten())


@operator("DepthToSpace")
def depth_to_space(x: Tensor, blocksize: int, mode: str = "DCR") -> Tensor:
    """ONNX DepthToSpace, channels first."""
    n, c, h, w = x.shape
    b, rest = blocksize, c // blocksize**2
    if mode == "DCR":
        return x.reshape(n, b, b, rest, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, rest, h * b, w * b)
    return x.reshape(n, rest, b, b, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, rest, h * b, w * b)


@operator("SpaceToDepth")
def space_to_depth(x: Tensor, blocksize: int, mode: str = "DCR") -> Tensor:
    """ONNX SpaceToDepth, channels first."""
    n, c, h, w = x.shape
    b = blocksize
    tiles = x.reshape(n, c, h // b, b, w // b, b)
    order = (0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4)
    return tiles.permute(order).reshape(n, c * b * b, h // b, w // b)


@operator("ReverseSequence")
def reverse_sequence(x: Tensor, lengths: Tensor, batch_axis: int = 1, time_axis: int = 0) -> Tensor:
    """ONNX ReverseSequence: the first `lengths` of each item backwards, the rest as it is."""
    if {batch_axis, time_axis} != {0, 1}:
        raise Unsupported("ReverseSequence over other axes than the first two")
    steps = torch.arange(x.shape[time_axis]).unsqueeze(0)
    limit = lengths.to(torch.int64).unsqueeze(1)
    places = torch.where(steps < limit, limit - 1 - steps, steps)
    places = places if time_axis == 1 else places.t()
    return torch.gather(x, time_axis, places.reshape([*places.shape, *[1] * (x.dim() - 2)]).expand(x.shape))
