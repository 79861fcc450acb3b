"""Resize of an axis whose size only the run knows: the weights of resampling.py, computed on tensors."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
from tensorflow import Tensor

from maasdam.convert.operators.resampling import Sampling
from maasdam.convert.operators.tensorflow.sizes import Size, rank, scalar
from maasdam.errors import Unsupported

KNOWN = ("half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners", "tf_half_pixel_for_nn")


def scaled(size: Size, factor: float) -> Size:
    """floor(size x factor), of a symbol."""
    if factor == int(factor):
        scaled_size: Size = size * int(factor)
        return scaled_size
    return Size(tf.cast(tf.floor(tf.cast(size.tensor, tf.float64) * factor), tf.int64))


def resized(x: Tensor, axis: int, size: Any, target: Any, scale: float | None, how: Sampling) -> Tensor:
    """`x` with `target` samples along `axis`. Raises Unsupported for what needs the size beforehand."""
    if how.antialias or how.coordinate_transformation_mode not in KNOWN:
        which = "with antialias" if how.antialias else how.coordinate_transformation_mode
        raise Unsupported(f"Resize {which} of an axis whose size is not fixed; fix the image size of the model")
    own, count = scalar(size), scalar(target)
    length = tf.cast(own, tf.float32)
    index = tf.cast(tf.range(count), tf.float32)
    place = _places(index, length, tf.cast(count, tf.float32), scale, how.coordinate_transformation_mode)

    def inside(indices: Tensor) -> Tensor:
        return tf.clip_by_value(tf.cast(indices, tf.int64), tf.constant(0, tf.int64), own - 1)

    if how.mode == "nearest":
        return _known(tf.gather(x, inside(_nearest(place, how.nearest_mode)), axis=axis), x, axis, target)
    radius = 1 if how.mode == "linear" else 2
    first = tf.floor(place - radius) + 1
    indices = [first + k for k in range(2 * radius)]
    weights = [_weight(each - place, how) for each in indices]
    if how.exclude_outside:
        weights = [w * tf.cast((i >= 0) & (i < length), w.dtype) for w, i in zip(weights, indices, strict=True)]
    whole = tf.add_n(weights)
    shape = [1] * axis + [-1] + [1] * (rank(x) - axis - 1)
    wide = x if x.dtype.is_floating else tf.cast(x, tf.float32)
    parts = [
        tf.gather(wide, inside(i), axis=axis) * tf.reshape(tf.cast(w / whole, wide.dtype), shape)
        for i, w in zip(indices, weights, strict=True)
    ]
    return _known(tf.cast(tf.add_n(parts), x.dtype), x, axis, target)


def _known(out: Tensor, x: Tensor, axis: int, target: Any) -> Tensor:
    """With the sizes that tracing knows."""
    sizes = x.shape.as_list()
    sizes[axis] = None if isinstance(target, Size) else int(target)
    return tf.ensure_shape(out, sizes)


def _places(x: Tensor, size: Tensor, target: Tensor, scale: float | None, mode: str) -> Tensor:
    factor = target / size if scale is None else tf.constant(scale, tf.float32)
    if mode == "asymmetric":
        return x / factor
    if mode == "align_corners":
        return x * (size - 1) / tf.maximum(size * factor - 1, 1)
    if mode == "tf_half_pixel_for_nn":
        return (x + 0.5) / factor
    place = (x + 0.5) / factor - 0.5
    return place * tf.cast(target > 1, place.dtype) if mode == "pytorch_half_pixel" else place


def _nearest(place: Tensor, mode: str) -> Tensor:
    if mode == "floor":
        return tf.floor(place)
    if mode == "ceil":
        return tf.math.ceil(place)
    return tf.math.ceil(place - 0.5) if mode == "round_prefer_floor" else tf.floor(place + 0.5)


def _weight(distance: Tensor, how: Sampling) -> Tensor:
    d, a = tf.abs(distance), how.cubic_coeff_a
    if how.mode == "linear":
        return tf.maximum(1 - d, 0)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return tf.where(d <= 1, near, tf.where(d < 2, far, tf.zeros_like(d)))
