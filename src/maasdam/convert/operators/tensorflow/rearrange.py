"""Operators that move, pick and repeat elements."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow import Tensor

from maasdam.convert.operators.tensorflow import table
from maasdam.convert.operators.tensorflow.sizes import (
    Size,
    broadcast_sizes,
    dims,
    packed,
    product,
    rank,
    reshaped,
    scalar,
)
from maasdam.convert.operators.tensorflow.table import operator
from maasdam.errors import Unsupported

END = 2**31 - 1
"""Exporters write the largest integer for "to the end"."""


@operator("Reshape", shapes=("shape",))
def reshape(x: Tensor, shape: list[Any], allowzero: int = 0) -> Tensor:
    """ONNX Reshape: 0 keeps the axis unless `allowzero`, -1 takes what is left."""
    if not allowzero and 0 in shape:
        have = dims(x)
        shape = [have[i] if isinstance(size, int) and size == 0 else size for i, size in enumerate(shape)]
    return reshaped(x, shape)


@operator("Flatten")
def flatten(x: Tensor, axis: int = 1) -> Tensor:
    """ONNX Flatten: to two axes."""
    sizes = dims(x)
    axis = axis if axis >= 0 else axis + len(sizes)
    return reshaped(x, [product(sizes[:axis]), product(sizes[axis:])])


@operator("Transpose")
def transpose(x: Tensor, perm: list[int] | None = None) -> Tensor:
    """ONNX Transpose: reversed unless told."""
    return tf.transpose(x, perm)


@operator("Squeeze", shapes=("axes",))
def squeeze(x: Tensor, axes: Any = None) -> Tensor:
    """ONNX Squeeze. Without axes it takes those that are one long whatever the input; an open axis stays."""
    if axes is None:
        axes = [i for i, size in enumerate(x.shape.as_list()) if size == 1]
        return tf.squeeze(x, axes) if axes else x
    return tf.squeeze(x, axes)


@operator("Unsqueeze", shapes=("axes",))
def unsqueeze(x: Tensor, axes: Any) -> Tensor:
    """ONNX Unsqueeze: axes counted in the result."""
    axes = axes if isinstance(axes, list) else [axes]
    count = rank(x) + len(axes)
    for axis in sorted(a % count for a in axes):
        x = tf.expand_dims(x, axis)
    return x


@operator("Concat")
def concat(*values: Tensor, axis: int) -> Tensor:
    """ONNX Concat."""
    return tf.concat(values, axis)


@operator("Split", shapes=("split",))
def split(x: Tensor, split: Any = None, axis: int = 0, num_outputs: int = 0, outputs: int = 0) -> tuple[Tensor, ...]:
    """ONNX Split: by the sizes given, else evenly, the last part the smaller one."""
    if split is None:
        count, size = num_outputs or outputs, dims(x)[axis]
        part = (size + count - 1) // count
        split = [part] * (count - 1) + [size - part * (count - 1)]
    return tuple(tf.split(x, packed(split), axis, num=len(split)))


@operator("Slice", shapes=("starts", "ends", "axes", "steps"))
def slice_(x: Tensor, starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> Tensor:
    """ONNX Slice."""
    axes = axes if axes is not None else list(range(len(starts)))
    steps = steps if steps is not None else [1] * len(starts)
    if any(isinstance(v, Size) for v in (*starts, *ends)) and all(isinstance(v, int) and v > 0 for v in steps):
        return _slice_at_symbols(x, starts, ends, axes, steps)
    index = [slice(None)] * rank(x)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        begin, stop = _bound(start), _bound(end)
        if isinstance(step, int) and step < 0 and isinstance(end, int) and end <= -END:
            stop = None
        index[axis] = slice(begin, stop, _bound(step))
    return x[tuple(index)]


def _slice_at_symbols(x: Tensor, starts: Any, ends: Any, axes: Any, steps: Any) -> Tensor:
    """Every bound stated: what indexing leaves out becomes masks, which tf2onnx turns into arithmetic that hides the sizes."""
    sizes = dims(x)
    begin: list[Any] = [0] * len(sizes)
    end, stride, kept = list(sizes), [1] * len(sizes), list(x.shape.as_list())
    for first, last, axis, step in zip(starts, ends, axes, steps, strict=True):
        begin[axis], stride[axis], kept[axis] = first, step, None
        end[axis] = sizes[axis] if isinstance(last, int) and last >= END else last
    out = tf.strided_slice(x, packed(begin), packed(end), tf.constant(stride, tf.int64))
    out.set_shape(kept)
    return out


def _bound(value: Any) -> Any:
    """What tf's indexing takes; None for "to the end"."""
    if isinstance(value, Size):
        return value.tensor
    return None if value >= END else max(value, -END)


@operator("Gather")
def gather(x: Tensor, indices: Tensor, axis: int = 0) -> Tensor:
    """ONNX Gather."""
    axis = axis % rank(x)
    return tf.gather(x, _counted(indices, dims(x)[axis]), axis=axis)


def _counted(indices: Tensor, size: Any) -> Tensor:
    """Indices from the end counted from the start."""
    indices = tf.cast(indices, tf.int64)
    known = tf.get_static_value(indices)
    if known is not None and (known >= 0).all():
        return indices
    return tf.where(indices < 0, indices + scalar(size), indices)


def _every(places: Tensor, axis: int, at: Tensor) -> Tensor:
    """For each element of `places`, its coordinates [..., rank] with `at` along `axis`."""
    sizes = dims(places)
    columns = []
    for i, size in enumerate(sizes):
        shape = [1] * len(sizes)
        shape[i] = -1
        own = tf.reshape(tf.range(scalar(size), dtype=tf.int64), shape)
        columns.append(at if i == axis else tf.broadcast_to(own, packed(sizes)))
    return tf.stack(columns, -1)


@operator("GatherElements")
def gather_elements(x: Tensor, indices: Tensor, axis: int = 0) -> Tensor:
    """ONNX GatherElements."""
    axis = axis % rank(x)
    return tf.gather_nd(x, _every(indices, axis, _counted(indices, dims(x)[axis])))


@operator("GatherND")
def gather_nd(x: Tensor, indices: Tensor, batch_dims: int = 0) -> Tensor:
    """ONNX GatherND: the last axis of `indices` holds coordinates."""
    return tf.gather_nd(x, _coordinates(x, indices, batch_dims), batch_dims)


def _coordinates(x: Tensor, indices: Tensor, skip: int = 0) -> Tensor:
    depth = indices.shape[-1]
    if depth is None:
        raise Unsupported("GatherND or ScatterND whose number of coordinates is not known")
    return _counted(indices, 0) if not depth else tf.where(
        indices < 0, tf.cast(indices, tf.int64) + packed(dims(x)[skip : skip + depth]), tf.cast(indices, tf.int64)
    )  # fmt: skip


_SCATTERS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "none": tf.tensor_scatter_nd_update,
    "add": tf.tensor_scatter_nd_add,
    "max": tf.tensor_scatter_nd_max,
    "min": tf.tensor_scatter_nd_min,
}


def _scatter(x: Tensor, places: Tensor, updates: Tensor, reduction: str) -> Tensor:
    if reduction == "mul":
        return _multiplied(x, places, updates)
    return _SCATTERS[reduction](x, places, updates)


def _multiplied(x: Tensor, places: Tensor, updates: Tensor) -> Tensor:
    """TensorFlow does not scatter by multiplying: the product of what goes to each place, one where nothing does."""
    depth = places.shape[-1]
    if depth is None:
        raise Unsupported("scattering by 'mul' with a number of coordinates that is not known")
    sizes = dims(x)
    flat = tf.zeros(tf.shape(places)[:-1], tf.int64)
    for axis in range(depth):
        flat = flat * scalar(sizes[axis]) + places[..., axis]
    rows = tf.reshape(updates, packed([-1, *sizes[depth:]]))
    factors = tf.math.unsorted_segment_prod(rows, tf.reshape(flat, [-1]), scalar(product(sizes[:depth])))
    return x * tf.reshape(factors, packed(sizes))


@operator("ScatterElements", "Scatter")
def scatter_elements(x: Tensor, indices: Tensor, updates: Tensor, axis: int = 0, reduction: str = "none") -> Tensor:
    """ONNX ScatterElements, and Scatter as it was called before."""
    axis = axis % rank(x)
    return _scatter(x, _every(indices, axis, _counted(indices, dims(x)[axis])), updates, reduction)


@operator("ScatterND")
def scatter_nd(x: Tensor, indices: Tensor, updates: Tensor, reduction: str = "none") -> Tensor:
    """ONNX ScatterND: the last axis of `indices` holds coordinates."""
    return _scatter(x, _coordinates(x, indices), updates, reduction)


@operator("TensorScatter")
def tensor_scatter(cache: Tensor, update: Tensor, starts: Tensor | None = None, axis: int = -2, mode: str = "linear") -> Tensor:
    """ONNX TensorScatter: write `update` into `cache` along `axis`, from each item's own start."""
    axis, sizes = axis % rank(cache), dims(update)
    begin = tf.cast(starts, tf.int64) if starts is not None else tf.zeros([1], tf.int64)
    places = tf.reshape(begin, [-1, 1]) + tf.range(scalar(sizes[axis]), dtype=tf.int64)
    places = places % scalar(dims(cache)[axis]) if mode == "circular" else places
    shape: list[Any] = [1] * len(sizes)
    shape[0], shape[axis] = -1, sizes[axis]
    spread = tf.broadcast_to(tf.reshape(places, packed(shape)), packed(sizes))
    return scatter_elements(cache, spread, update, axis)


@operator("Expand", shapes=("shape",))
def expand(x: Tensor, shape: list[Any]) -> Tensor:
    """ONNX Expand: broadcast both ways."""
    have = dims(x)
    count = max(len(shape), len(have))
    sizes = broadcast_sizes([1] * (count - len(have)) + have, [1] * (count - len(shape)) + list(shape))
    return tf.broadcast_to(x, packed(sizes))


@operator("Tile", shapes=("repeats",))
def tile(x: Tensor, repeats: list[Any]) -> Tensor:
    """ONNX Tile."""
    return tf.tile(x, packed(repeats))


@operator("Pad", shapes=("pads", "axes"))
def pad(x: Tensor, pads: list[Any], value: Any = None, axes: Any = None, mode: str = "constant") -> Tensor:
    """ONNX Pad: all befores, then all afters; negative ones cut."""
    axes = [a % rank(x) for a in axes] if axes is not None else list(range(rank(x)))
    around = {axis: (pads[i], pads[i + len(axes)]) for i, axis in enumerate(axes)}
    if mode != "constant":
        for axis, (before, after) in around.items():
            x = _mirrored(x, axis, before, after, mode)
        return x
    cut = [tuple(-v if isinstance(v, int) and v < 0 else 0 for v in around.get(axis, (0, 0))) for axis in range(rank(x))]
    if any(before or after for before, after in cut):
        x = x[tuple(slice(before, -after if after else None) for before, after in cut)]
    pairs = [v if isinstance(v, Size) else max(v, 0) for axis in range(rank(x)) for v in around.get(axis, (0, 0))]
    if not any(isinstance(v, Size) or v for v in pairs):
        return x
    fill = tf.zeros([], x.dtype) if value is None else tf.reshape(tf.cast(value, x.dtype), [])
    amounts = tf.reshape(packed(pairs), [-1, 2])
    if x.dtype == tf.bool:
        return tf.cast(tf.pad(tf.cast(x, tf.uint8), amounts, constant_values=tf.cast(fill, tf.uint8)), tf.bool)
    return tf.pad(x, amounts, constant_values=fill)


def _mirrored(x: Tensor, axis: int, before: Any, after: Any, mode: str) -> Tensor:
    """By index: tf.pad knows neither "edge" nor "wrap"."""
    if isinstance(before, int) and isinstance(after, int) and before == after == 0:
        return x
    size = scalar(dims(x)[axis])
    places = tf.range(-scalar(before), size + scalar(after), dtype=tf.int64)
    if mode == "edge":
        places = tf.clip_by_value(places, 0, size - 1)
    elif mode == "wrap":
        places = places % size
    else:
        places = tf.abs(places)
        places = tf.where(places >= size, 2 * (size - 1) - places, places)
    return tf.gather(x, places, axis=axis)


@operator("CenterCropPad", shapes=("shape",))
def center_crop_pad(x: Tensor, shape: list[int], axes: list[int] | None = None) -> Tensor:
    """ONNX CenterCropPad."""
    for axis, size in zip(axes if axes is not None else range(rank(x)), shape, strict=True):
        have = dims(x)[axis]
        if not isinstance(have, int) or not isinstance(size, int):
            raise Unsupported("CenterCropPad of an axis whose size is not fixed")
        if size < have:
            x = slice_(x, [(have - size) // 2], [(have - size) // 2 + size], [axis])
        elif size > have:
            before = (size - have) // 2
            x = pad(x, [before, size - have - before], axes=[axis])
    return x


@operator("ConstantOfShape", shapes=("shape",))
def constant_of_shape(shape: Any, value: np.ndarray[Any, Any] | None = None) -> Tensor:
    """ONNX ConstantOfShape: zeros of float32 unless told."""
    one = np.zeros([], np.float32) if value is None else value.reshape(())
    return tf.fill(packed(shape if isinstance(shape, list) else [shape]), tf.constant(one))


@operator("Range")
def range_(start: Tensor, limit: Tensor, delta: Tensor, stash_type: int = 1) -> Tensor:
    """ONNX Range."""
    start, limit, delta = (tf.reshape(v, []) for v in (start, limit, delta))
    wide = tf.int32 if start.dtype == tf.int16 else tf.float32 if start.dtype in (tf.float16, tf.bfloat16) else start.dtype
    return tf.cast(tf.range(tf.cast(start, wide), tf.cast(limit, wide), tf.cast(delta, wide)), start.dtype)


@operator("OneHot", shapes=("depth",))
def one_hot(indices: Tensor, depth: Any, values: Tensor, axis: int = -1) -> Tensor:
    """ONNX OneHot: an index outside gives all "off"."""
    count = depth[0] if isinstance(depth, list) else depth
    axis = axis if axis >= 0 else axis + rank(indices) + 1
    wanted = tf.expand_dims(_counted(indices, count), axis)
    shape = [1] * (rank(indices) + 1)
    shape[axis] = -1
    places = tf.reshape(tf.range(scalar(count), dtype=tf.int64), shape)
    return tf.where(tf.equal(wanted, places), values[1], values[0])


@operator("Trilu", shapes=("k",))
def trilu(x: Tensor, k: Any = 0, upper: int = 1) -> Tensor:
    """ONNX Trilu: the upper or lower triangle."""
    diagonal = scalar(k[0] if isinstance(k, list) else k or 0)
    rows, columns = (tf.range(scalar(size), dtype=tf.int64) for size in dims(x)[-2:])
    ahead = columns - tf.expand_dims(rows, 1)
    return tf.where(ahead >= diagonal if upper else ahead <= diagonal, x, tf.zeros([], x.dtype))


@operator("EyeLike")
def eye_like(x: Tensor, dtype: int | None = None, k: int = 0) -> Tensor:
    """ONNX EyeLike."""
    rows, columns = (tf.range(scalar(size), dtype=tf.int64) for size in dims(x))
    return tf.cast(tf.equal(columns - tf.expand_dims(rows, 1), k), table.dtype(dtype) if dtype is not None else x.dtype)


@operator("NonZero")
def non_zero(x: Tensor) -> Tensor:
    """ONNX NonZero: coordinates of what is not zero, one row an axis."""
    return tf.transpose(tf.where(x))


@operator("Compress")
def compress(x: Tensor, condition: Tensor, axis: int | None = None) -> Tensor:
    """ONNX Compress: where `condition` holds, of an axis or of all elements."""
    x, axis = (tf.reshape(x, [-1]), 0) if axis is None else (x, axis)
    return tf.gather(x, tf.reshape(tf.where(condition), [-1]), axis=axis)


@operator("DepthToSpace")
def depth_to_space(x: Tensor, blocksize: int, mode: str = "DCR") -> Tensor:
    """ONNX DepthToSpace, channels first."""
    n, c, h, w = dims(x)
    b, rest = blocksize, c // blocksize**2
    if mode == "DCR":
        moved = tf.transpose(reshaped(x, [n, b, b, rest, h, w]), [0, 3, 4, 1, 5, 2])
    else:
        moved = tf.transpose(reshaped(x, [n, rest, b, b, h, w]), [0, 1, 4, 2, 5, 3])
    return reshaped(moved, [n, rest, h * b, w * b])


@operator("SpaceToDepth")
def space_to_depth(x: Tensor, blocksize: int, mode: str = "DCR") -> Tensor:
    """ONNX SpaceToDepth, channels first."""
    n, c, h, w = dims(x)
    b = blocksize
    tiles = reshaped(x, [n, c, h // b, b, w // b, b])
    moved = tf.transpose(tiles, [0, 3, 5, 1, 2, 4] if mode == "DCR" else [0, 1, 3, 5, 2, 4])
    return reshaped(moved, [n, c * b * b, h // b, w // b])


@operator("ReverseSequence")
def reverse_sequence(x: Tensor, lengths: Tensor, batch_axis: int = 1, time_axis: int = 0) -> Tensor:
    """ONNX ReverseSequence: the first `lengths` of each item backwards, the rest as it is."""
    return tf.reverse_sequence(x, lengths, seq_axis=time_axis, batch_axis=batch_axis)
