"""Kernels of operators that move, pick and repeat elements."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import tensorflow as tf
from tensorflow import Tensor

from maasdam.convert.operators.tensorflow.sizes import Size, dims, packed, rank, scalar
from maasdam.errors import Unsupported

END = 2**31 - 1
"""Exporters write the largest integer for "to the end"."""


def slice_(x: Tensor, starts: Any, ends: Any, axes: Any, steps: Any) -> Tensor:
    """All axes at once."""
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


def counted(indices: Tensor, size: Any) -> Tensor:
    """Indices from the end counted from the start."""
    indices = tf.cast(indices, tf.int64)
    known = tf.get_static_value(indices)
    if known is not None and (known >= 0).all():
        return indices
    return tf.where(indices < 0, indices + scalar(size), indices)


def gather(x: Tensor, indices: Tensor, axis: int) -> Tensor:
    """Indices counted from 0."""
    return tf.gather(x, indices, axis=axis)


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


def gather_elements(x: Tensor, indices: Tensor, axis: int) -> Tensor:
    """Indices counted from 0."""
    return tf.gather_nd(x, _every(indices, axis, indices))


def gather_nd(x: Tensor, indices: Tensor, batch_dims: int) -> Tensor:
    """Coordinates from the end counted from the start."""
    return tf.gather_nd(x, _coordinates(x, indices, batch_dims), batch_dims)


def _coordinates(x: Tensor, indices: Tensor, skip: int = 0) -> Tensor:
    depth = indices.shape[-1]
    if depth is None:
        raise Unsupported("GatherND or ScatterND whose number of coordinates is not known")
    wide = tf.cast(indices, tf.int64)
    return tf.where(wide < 0, wide + packed(dims(x)[skip : skip + depth]), wide) if depth else counted(indices, 0)


_SCATTERS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "none": tf.tensor_scatter_nd_update,
    "add": tf.tensor_scatter_nd_add,
    "max": tf.tensor_scatter_nd_max,
    "min": tf.tensor_scatter_nd_min,
}


def _scatter(x: Tensor, places: Tensor, updates: Tensor, reduction: str) -> Tensor:
    return (_multiplied if reduction == "mul" else _SCATTERS[reduction])(x, places, updates)


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
    factors = tf.math.unsorted_segment_prod(rows, tf.reshape(flat, [-1]), scalar(math.prod(sizes[:depth])))
    return x * tf.reshape(factors, packed(sizes))


def scatter_elements(x: Tensor, indices: Tensor, updates: Tensor, axis: int, reduction: str) -> Tensor:
    """Indices counted from 0."""
    return _scatter(x, _every(indices, axis, indices), updates, reduction)


def scatter_nd(x: Tensor, indices: Tensor, updates: Tensor, reduction: str) -> Tensor:
    """Coordinates from the end counted from the start."""
    return _scatter(x, _coordinates(x, indices), updates, reduction)


def pad(x: Tensor, around: list[tuple[Any, Any]], value: Any = None) -> Tensor:
    """(before, after) each axis; negative ones cut, which TensorFlow does not."""
    cut = [tuple(-v if isinstance(v, int) and v < 0 else 0 for v in pair) for pair in around]
    if any(before or after for before, after in cut):
        x = x[tuple(slice(before, -after if after else None) for before, after in cut)]
    pairs = [v if isinstance(v, Size) else max(v, 0) for pair in around for v in pair]
    if not any(isinstance(v, Size) or v for v in pairs):
        return x
    fill = tf.zeros([], x.dtype) if value is None else tf.reshape(tf.cast(value, x.dtype), [])
    amounts = tf.reshape(packed(pairs), [-1, 2])
    if x.dtype == tf.bool:
        return tf.cast(tf.pad(tf.cast(x, tf.uint8), amounts, constant_values=tf.cast(fill, tf.uint8)), tf.bool)
    return tf.pad(x, amounts, constant_values=fill)


def range_(start: Tensor, limit: Any, delta: Any) -> Tensor:
    """Of tensors, numbers and symbols, in a type that TensorFlow counts in."""
    wide = tf.int32 if start.dtype == tf.int16 else tf.float32 if start.dtype in (tf.float16, tf.bfloat16) else start.dtype
    given = (v.tensor if isinstance(v, Size) else v for v in (start, limit, delta))
    return tf.cast(tf.range(*(tf.reshape(tf.cast(v, wide), []) for v in given)), start.dtype)


def triangle(x: Tensor, diagonal: Any, is_upper: bool) -> Tensor:
    """tf.linalg.band_part counts from the middle diagonal alone."""
    rows, columns = (tf.range(scalar(size), dtype=tf.int64) for size in dims(x)[-2:])
    ahead = columns - tf.expand_dims(rows, 1)
    return tf.where(ahead >= scalar(diagonal) if is_upper else ahead <= scalar(diagonal), x, tf.zeros([], x.dtype))


def reverse_sequence(x: Tensor, lengths: Tensor, batch_axis: int, time_axis: int) -> Tensor:
    """TensorFlow's own."""
    return tf.reverse_sequence(x, lengths, seq_axis=time_axis, batch_axis=batch_axis)
