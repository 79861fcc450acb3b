"""Sizes of axes: numbers where the traced graph knows them, else symbols. Knows tensors' shapes; never an operator."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow import Tensor

from maasdam.errors import Unsupported


class Size:
    """A size only the run knows: a scalar int64 tensor that numpy leaves alone, so that it can stand in arrays of objects."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __add__(self, other: Any) -> Size:
        return _both(tf.add, self, other)

    def __radd__(self, other: Any) -> Size:
        return _both(tf.add, other, self)

    def __sub__(self, other: Any) -> Size:
        return _both(tf.subtract, self, other)

    def __rsub__(self, other: Any) -> Size:
        return _both(tf.subtract, other, self)

    def __mul__(self, other: Any) -> Any:
        return self if isinstance(other, int) and other == 1 else _both(tf.multiply, self, other)

    __rmul__ = __mul__

    def __floordiv__(self, other: Any) -> Any:
        return self if isinstance(other, int) and other == 1 else _both(tf.math.floordiv, self, other)

    def __rfloordiv__(self, other: Any) -> Size:
        return _both(tf.math.floordiv, other, self)

    def __mod__(self, other: Any) -> Size:
        return _both(tf.math.floormod, self, other)

    def __neg__(self) -> Size:
        return Size(-self.tensor)


def _both(function: Callable[[Tensor, Tensor], Tensor], a: Any, b: Any) -> Size:
    return Size(function(scalar(a), scalar(b)))


def scalar(value: Any) -> Tensor:
    """A number or symbol as an int64 tensor."""
    return value.tensor if isinstance(value, Size) else tf.constant(int(value), tf.int64)


def dims(x: Tensor) -> list[Any]:
    """The sizes of a tensor's axes. Raises Unsupported where even their number is unknown."""
    if x.shape.rank is None:
        raise Unsupported("TensorFlow can't tell how many axes a value of the model has")
    found: list[Any] = x.shape.as_list()
    if None in found:
        running = tf.shape(x, out_type=tf.int64)
        found = [Size(running[i]) if size is None else size for i, size in enumerate(found)]
    return found


def rank(x: Tensor) -> int:
    """The number of axes."""
    if x.shape.rank is None:
        raise Unsupported("TensorFlow can't tell how many axes a value of the model has")
    return int(x.shape.rank)


def packed(sizes: Iterable[Any]) -> Tensor:
    """Sizes as one int64 tensor."""
    listed = list(sizes)
    if not any(isinstance(v, Size) for v in listed):
        return tf.constant([int(v) for v in listed], tf.int64)
    return tf.stack([scalar(v) for v in listed])


def reshaped(x: Tensor, sizes: Sequence[Any]) -> Tensor:
    """tf.reshape; one symbol alone becomes -1, which keeps more known of the shape."""
    symbols = [i for i, v in enumerate(sizes) if isinstance(v, Size)]
    known = [v for v in sizes if not isinstance(v, Size)]
    if len(symbols) == 1 and all(v > 0 for v in known):
        return tf.reshape(x, [-1 if isinstance(v, Size) else int(v) for v in sizes])
    return tf.reshape(x, packed(sizes))


def broadcast_sizes(*shapes: Sequence[Any]) -> list[Any]:
    """What shapes of the same rank broadcast to."""
    out = []
    for column in zip(*shapes, strict=True):
        known = [v for v in column if isinstance(v, int) and v != 1]
        symbols = [v for v in column if isinstance(v, Size)]
        size: Any = known[0] if known else 1
        if not known and symbols:
            size = symbols[0]
            for other in symbols[1:]:
                size = Size(tf.maximum(size.tensor, other.tensor))
        out.append(size)
    return out


def tensor(array: np.ndarray[Any, Any]) -> Tensor:
    """A tensor of a numpy array; one of dtype object holds integers and symbols."""
    if array.dtype == object:
        return tf.reshape(packed(array.flat), array.shape)
    if array.dtype.kind not in "iufbcV" or array.dtype.name.startswith(("float8", "float4", "int4", "uint4", "int2", "uint2")):
        raise Unsupported(f"TensorFlow has no tensors of {array.dtype} here")
    return tf.constant(array)


def small(x: Tensor) -> Any:
    """The numbers or symbols in a tensor of at most one axis. Raises ValueError where their number is not known."""
    known = tf.get_static_value(x)
    if known is not None:
        return known.tolist()
    if x.dtype not in (tf.int64, tf.int32) or x.shape.rank not in (0, 1):
        raise ValueError("not known before the run")
    wide = tf.cast(x, tf.int64)
    if x.shape.rank == 0:
        return Size(wide)
    if x.shape[0] is None:
        raise ValueError("its length is not known")
    parts = tf.unstack(wide)
    found = [tf.get_static_value(part) for part in parts]
    return [Size(p) if f is None else int(f) for p, f in zip(parts, found, strict=True)]
