"""Values of narrow types, exact in the wider type that holds them: see operators/narrow.py."""

from __future__ import annotations

import tensorflow as tf
from tensorflow import Tensor

from maasdam.convert.operators.narrow import KINDS, Real, Whole
from maasdam.errors import Unsupported


def held(x: Tensor, number: int, saturate: bool) -> Tensor:
    """`x` cast to the narrow type of ONNX's `number`: floats to the nearest, halves to even; integers cut and wrapped."""
    kind = KINDS[number]
    if isinstance(kind, Real):
        return _rounded(x, kind, saturate)
    whole = tf.bitwise.bitwise_and(tf.cast(x, tf.int32), 2**kind.bits - 1)
    return tf.cast(tf.where(whole > kind.most, whole - 2**kind.bits, whole), holder(kind))


def holder(kind: Whole) -> tf.DType:
    """Of an integer type."""
    return tf.int8 if kind.is_signed else tf.uint8


def _rounded(x: Tensor, kind: Real, saturate: bool) -> Tensor:
    if x.dtype == tf.float64:
        raise Unsupported(f"a cast from float64 to {kind.name}, which rounds once")
    wide = tf.cast(x, tf.float32)
    if saturate:
        wide = tf.where(tf.math.is_nan(wide), wide, tf.clip_by_value(wide, -kind.largest, kind.largest))
    bits = tf.bitwise.bitwise_and(tf.bitcast(wide, tf.int32), 0x7FFFFFFF)
    exponent = tf.maximum(tf.bitwise.right_shift(bits, 23), kind.exponent + 127)
    step = tf.bitcast(tf.bitwise.left_shift(exponent - kind.digits, 23), tf.float32)  # between neighbours: a power of two
    out = tf.round(wide / step) * step
    out = tf.where(tf.abs(out) > kind.largest, tf.sign(out) * kind.beyond, out)
    if kind.beyond == kind.largest:
        out = tf.where(tf.math.is_nan(out), 0.0, out)  # a type without NaN
    return tf.cast(out, tf.float16)
