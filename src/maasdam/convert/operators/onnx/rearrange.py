"""Operators that move, pick and repeat elements."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from maasdam.convert.operators.arrays import Arrays, Tensor
from maasdam.convert.operators.table import ANY, operator
from maasdam.errors import Unsupported


def positive(xp: Arrays, x: Tensor, axis: int) -> int:
    """An axis counted from the first one."""
    return axis if axis >= 0 else axis + xp.rank(x)


def along(xp: Arrays, values: Tensor, axis: int, rank: int) -> Tensor:
    """Values of one axis as something that broadcasts over the others of a tensor."""
    return xp.reshape(values, [-1 if i == axis else 1 for i in range(rank)])


@operator("Reshape", shapes=("shape",))
def reshape(xp: Arrays, x: Tensor, shape: list[Any], allowzero: int = 0) -> Tensor:
    """ONNX Reshape: 0 keeps the axis unless `allowzero`, -1 takes what is left."""
    if not allowzero:
        shape = [xp.dims(x)[i] if isinstance(size, int) and size == 0 else size for i, size in enumerate(shape)]
    return xp.reshape(x, shape)


@operator("Flatten")
def flatten(xp: Arrays, x: Tensor, axis: int = 1) -> Tensor:
    """ONNX Flatten: to two axes."""
    sizes, axis = xp.dims(x), positive(xp, x, axis)
    rest = math.prod(sizes[axis:])
    return xp.reshape(x, [math.prod(sizes[:axis]), rest if isinstance(rest, int) else -1])


@operator("Transpose")
def transpose(xp: Arrays, x: Tensor, perm: list[int] | None = None) -> Tensor:
    """ONNX Transpose: reversed unless told."""
    return xp.transpose(x, perm)


@operator("Squeeze", shapes=("axes",))
def squeeze(xp: Arrays, x: Tensor, axes: Any = None) -> Tensor:
    """ONNX Squeeze. Without axes it takes those that are one long whatever the input; an open axis stays."""
    if axes is None:
        axes = [i for i, size in enumerate(xp.dims(x)) if isinstance(size, int) and size == 1]
    return xp.squeeze(x, axes if isinstance(axes, list) else [axes])


@operator("Unsqueeze", shapes=("axes",))
def unsqueeze(xp: Arrays, x: Tensor, axes: Any) -> Tensor:
    """ONNX Unsqueeze: axes counted in the result."""
    axes = axes if isinstance(axes, list) else [axes]
    count = xp.rank(x) + len(axes)
    for axis in sorted(a % count for a in axes):
        x = xp.unsqueeze(x, axis)
    return x


@operator("Concat", weights=ANY)
def concat(xp: Arrays, *values: Tensor, axis: int) -> Tensor:
    """ONNX Concat."""
    return xp.concat(*values, axis=axis)


@operator("Split", shapes=("split",))
def split(
    xp: Arrays, x: Tensor, split: Any = None, axis: int = 0, num_outputs: int = 0, outputs: int = 0
) -> tuple[Tensor, ...]:
    """ONNX Split: by the sizes given, else evenly, the last part the smaller one."""
    if split is None:
        count, size = num_outputs or outputs, xp.dims(x)[axis]
        part = (size + count - 1) // count
        split = [part] * (count - 1) + [size - part * (count - 1)]
    return tuple(xp.split(x, split, axis))


@operator("Slice", shapes=("starts", "ends", "axes", "steps"))
def slice_(xp: Arrays, x: Tensor, starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> Tensor:
    """ONNX Slice."""
    axes = axes if axes is not None else list(range(len(starts)))
    return xp.rearrange.slice_(x, starts, ends, axes, steps if steps is not None else [1] * len(starts))


@operator("Gather", weights=(0,))
def gather(xp: Arrays, x: Tensor, indices: Tensor, axis: int = 0) -> Tensor:
    """ONNX Gather."""
    axis = positive(xp, x, axis)
    return xp.rearrange.gather(x, xp.rearrange.counted(indices, xp.dims(x)[axis]), axis)


@operator("GatherElements")
def gather_elements(xp: Arrays, x: Tensor, indices: Tensor, axis: int = 0) -> Tensor:
    """ONNX GatherElements."""
    axis = positive(xp, x, axis)
    return xp.rearrange.gather_elements(x, xp.rearrange.counted(indices, xp.dims(x)[axis]), axis)


@operator("GatherND")
def gather_nd(xp: Arrays, x: Tensor, indices: Tensor, batch_dims: int = 0) -> Tensor:
    """ONNX GatherND: the last axis of `indices` holds coordinates."""
    return xp.rearrange.gather_nd(x, indices, batch_dims)


@operator("ScatterElements", "Scatter")
def scatter_elements(xp: Arrays, x: Tensor, indices: Tensor, updates: Tensor, axis: int = 0, reduction: str = "none") -> Tensor:
    """ONNX ScatterElements, and Scatter as it was called before."""
    axis = positive(xp, x, axis)
    return xp.rearrange.scatter_elements(x, xp.rearrange.counted(indices, xp.dims(x)[axis]), updates, axis, reduction)


@operator("ScatterND")
def scatter_nd(xp: Arrays, x: Tensor, indices: Tensor, updates: Tensor, reduction: str = "none") -> Tensor:
    """ONNX ScatterND: the last axis of `indices` holds coordinates."""
    return xp.rearrange.scatter_nd(x, indices, updates, reduction)


@operator("TensorScatter")
def tensor_scatter(
    xp: Arrays, cache: Tensor, update: Tensor, starts: Tensor | None = None, axis: int = -2, mode: str = "linear"
) -> Tensor:
    """ONNX TensorScatter: write `update` into `cache` along `axis`, from each item's own start."""
    axis, sizes = positive(xp, cache, axis), xp.dims(update)
    begin = xp.full(sizes[:1], 0, xp.int64) if starts is None else starts
    places = xp.reshape(begin, [-1, 1]) + xp.arange(sizes[axis])
    places = places % xp.number(xp.dims(cache)[axis]) if mode == "circular" else places
    shape = [sizes[i] if i in (0, axis) else 1 for i in range(len(sizes))]
    return scatter_elements(xp, cache, xp.broadcast(xp.reshape(places, shape), sizes), update, axis)


@operator("Expand", shapes=("shape",), weights=(0,))
def expand(xp: Arrays, x: Tensor, shape: list[Any]) -> Tensor:
    """ONNX Expand: broadcast both ways; an axis of 1 in `shape` keeps x's."""
    have = xp.dims(x)
    rank = max(len(shape), len(have))
    return xp.broadcast(x, xp.broadcast_sizes([1] * (rank - len(have)) + have, [1] * (rank - len(shape)) + list(shape)))


@operator("Tile", shapes=("repeats",))
def tile(xp: Arrays, x: Tensor, repeats: list[Any]) -> Tensor:
    """ONNX Tile."""
    return xp.tile(x, repeats)


@operator("Pad", shapes=("pads", "axes"))
def pad(xp: Arrays, x: Tensor, pads: list[Any], value: Any = None, axes: Any = None, mode: str = "constant") -> Tensor:
    """ONNX Pad: all befores, then all afters; negative ones cut."""
    rank = xp.rank(x)
    axes = [a % rank for a in axes] if axes is not None else list(range(rank))
    around = {axis: (pads[i], pads[i + len(axes)]) for i, axis in enumerate(axes)}
    if mode == "constant":
        return xp.rearrange.pad(x, [around.get(axis, (0, 0)) for axis in range(rank)], value)
    for axis, (before, after) in around.items():
        x = _mirrored(xp, x, axis, before, after, mode)
    return x


def _mirrored(xp: Arrays, x: Tensor, axis: int, before: Any, after: Any, mode: str) -> Tensor:
    """By index: frameworks' own padding knows these modes for some ranks and axes only, if at all."""
    if isinstance(before, int) and isinstance(after, int) and before == after == 0:
        return x
    have = xp.dims(x)[axis]
    places, size = xp.arange(-before, have + after), xp.number(have)
    if mode == "edge":
        places = xp.clip(places, 0, size - 1)
    elif mode == "wrap":
        places = places % size
    else:
        places = xp.math.abs(places)
        places = xp.where(places >= size, 2 * (size - 1) - places, places)
    return xp.take(x, places, axis)


@operator("CenterCropPad", shapes=("shape",))
def center_crop_pad(xp: Arrays, x: Tensor, shape: list[int], axes: list[int] | None = None) -> Tensor:
    """ONNX CenterCropPad."""
    for axis, size in zip(axes if axes is not None else range(xp.rank(x)), shape, strict=True):
        have = xp.dims(x)[axis]
        if not isinstance(have, int) or not isinstance(size, int):
            raise Unsupported("CenterCropPad of an axis whose size is not fixed")
        if size < have:
            x = slice_(xp, x, [(have - size) // 2], [(have - size) // 2 + size], [axis])
        elif size > have:
            before = (size - have) // 2
            x = pad(xp, x, [before, size - have - before], axes=[axis])
    return x


@operator("ConstantOfShape", shapes=("shape",))
def constant_of_shape(xp: Arrays, shape: Any, value: np.ndarray[Any, Any] | None = None) -> Tensor:
    """ONNX ConstantOfShape: zeros of float32 unless told."""
    one = np.zeros(1, np.float32) if value is None else value
    return xp.full(shape if isinstance(shape, list) else [shape], one.item(), xp.tensor(one).dtype)


@operator("Range", stated=("limit", "delta"))
def range_(xp: Arrays, start: Tensor, limit: Any, delta: Any, stash_type: int = 1) -> Tensor:
    """ONNX Range. Its limit is mostly a size: as a symbol it stays tied to the axis it came from."""
    limit, delta = (v[0] if isinstance(v, list) else v for v in (limit, delta))
    return xp.rearrange.range_(start, limit, delta)


@operator("OneHot", shapes=("depth",))
def one_hot(xp: Arrays, indices: Tensor, depth: Any, values: Tensor, axis: int = -1) -> Tensor:
    """ONNX OneHot: an index outside gives all "off"."""
    count = depth[0] if isinstance(depth, list) else depth
    count = int(count) if isinstance(count, float) else count
    axis = axis if axis >= 0 else axis + xp.rank(indices) + 1
    wanted = xp.unsqueeze(xp.rearrange.counted(indices, count), axis)
    return xp.where(xp.equal(wanted, along(xp, xp.arange(count), axis, xp.rank(wanted))), values[1], values[0])


@operator("Trilu", shapes=("k",))
def trilu(xp: Arrays, x: Tensor, k: Any = 0, upper: int = 1) -> Tensor:
    """ONNX Trilu: the upper or lower triangle."""
    return xp.rearrange.triangle(x, k[0] if isinstance(k, list) else k or 0, bool(upper))


@operator("EyeLike")
def eye_like(xp: Arrays, x: Tensor, dtype: int | None = None, k: int = 0) -> Tensor:
    """ONNX EyeLike."""
    rows, columns = (xp.arange(size) for size in xp.dims(x))
    return xp.cast(xp.equal(columns, xp.unsqueeze(rows, 1) + k), xp.dtype(dtype) if dtype is not None else x.dtype)


@operator("NonZero")
def non_zero(xp: Arrays, x: Tensor) -> Tensor:
    """ONNX NonZero: coordinates of what is not zero, one row an axis."""
    return xp.transpose(xp.nonzero(x), [1, 0])


@operator("Compress")
def compress(xp: Arrays, x: Tensor, condition: Tensor, axis: int | None = None) -> Tensor:
    """ONNX Compress: where `condition` holds, of an axis or of all elements."""
    x, axis = (xp.reshape(x, [-1]), 0) if axis is None else (x, axis)
    return xp.take(x, xp.reshape(xp.nonzero(condition), [-1]), axis)


@operator("DepthToSpace")
def depth_to_space(xp: Arrays, x: Tensor, blocksize: int, mode: str = "DCR") -> Tensor:
    """ONNX DepthToSpace, channels first."""
    n, c, h, w = xp.dims(x)
    b, rest = blocksize, c // blocksize**2
    if mode == "DCR":
        moved = xp.transpose(xp.reshape(x, [n, b, b, rest, h, w]), [0, 3, 4, 1, 5, 2])
    else:
        moved = xp.transpose(xp.reshape(x, [n, rest, b, b, h, w]), [0, 1, 4, 2, 5, 3])
    return xp.reshape(moved, [n, rest, h * b, w * b])


@operator("SpaceToDepth")
def space_to_depth(xp: Arrays, x: Tensor, blocksize: int, mode: str = "DCR") -> Tensor:
    """ONNX SpaceToDepth, channels first."""
    n, c, h, w = xp.dims(x)
    b = blocksize
    tiles = xp.reshape(x, [n, c, h // b, b, w // b, b])
    moved = xp.transpose(tiles, [0, 3, 5, 1, 2, 4] if mode == "DCR" else [0, 1, 3, 5, 2, 4])
    return xp.reshape(moved, [n, c * b * b, h // b, w // b])


@operator("ReverseSequence")
def reverse_sequence(xp: Arrays, x: Tensor, lengths: Tensor, batch_axis: int = 1, time_axis: int = 0) -> Tensor:
    """ONNX ReverseSequence: the first `lengths` of each item backwards, the rest as it is."""
    return xp.rearrange.reverse_sequence(x, lengths, batch_axis, time_axis)
