"""Kernels of elementwise operators."""

from __future__ import annotations

import tensorflow as tf
from tensorflow import Tensor

is_infinite, is_nan, softplus, softsign = tf.math.is_inf, tf.math.is_nan, tf.math.softplus, tf.nn.softsign


def hard_swish(x: Tensor) -> Tensor:
    """x times a line from 0 at -3 to 1 at 3."""
    return x * tf.clip_by_value(x / 6 + 0.5, 0, 1)


def mish(x: Tensor) -> Tensor:
    """x times the tanh of its softplus."""
    return x * tf.tanh(tf.math.softplus(x))


def divide(a: Tensor, b: Tensor) -> Tensor:
    """Integers are cut towards zero, in a type that TensorFlow does that in."""
    if not a.dtype.is_integer:
        return tf.divide(a, b)
    wide = tf.int64 if a.dtype.size >= 4 else tf.int32
    return tf.cast(tf.truncatediv(tf.cast(a, wide), tf.cast(b, wide)), a.dtype)


def fmod(a: Tensor, b: Tensor) -> Tensor:
    """With the sign of the dividend."""
    return tf.cast(tf.truncatemod(*_wide(a, b)), a.dtype)


def remainder(a: Tensor, b: Tensor) -> Tensor:
    """With the sign of the divisor."""
    return tf.cast(tf.math.floormod(*_wide(a, b)), a.dtype)


def _wide(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    wide = tf.int64 if a.dtype.is_integer else tf.float32 if a.dtype.size < 4 else a.dtype
    return tf.cast(a, wide), tf.cast(b, wide)


def power(a: Tensor, b: Tensor) -> Tensor:
    """Integers to a real power in float64."""
    wide = a.dtype
    if a.dtype.is_integer:
        wide = tf.int64 if b.dtype.is_integer else tf.float64
    return tf.pow(tf.cast(a, wide), tf.cast(b, wide))


def bit_shift(a: Tensor, b: Tensor, is_left: bool) -> Tensor:
    """TensorFlow leaves open what a shift by a negative number, or beyond the width, gives."""
    wide = tf.uint64 if a.dtype == tf.uint64 else tf.int64
    value, by = tf.cast(a, wide), tf.cast(b, tf.int64)
    is_inside = (by >= 0) & (by < 64)
    inside = tf.cast(tf.where(is_inside, by, 0), wide)
    if is_left:
        return tf.where(is_inside, tf.bitwise.left_shift(value, inside), tf.zeros([], wide))
    sign = tf.zeros([], wide) if wide == tf.uint64 else tf.bitwise.right_shift(value, tf.constant(63, wide))
    return tf.where(is_inside, tf.bitwise.right_shift(value, inside), sign)


def bit_cast(x: Tensor, kind: tf.DType) -> Tensor:
    """The same bits as another type of their width; booleans are bytes."""
    bits = tf.cast(x, tf.uint8) if x.dtype == tf.bool else x
    return tf.cast(tf.bitcast(bits, tf.uint8), tf.bool) if kind == tf.bool else tf.bitcast(bits, kind)
