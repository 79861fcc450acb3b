"""Operators on integers that stand for real numbers: value = (integer - zero point) * scale."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
from tensorflow import Tensor

from maasdam.pipeline.convert.operators.narrow import KINDS, Real
from maasdam.pipeline.convert.operators.tensorflow.layers import conv
from maasdam.pipeline.convert.operators.tensorflow.narrow import held, holder
from maasdam.pipeline.convert.operators.tensorflow.rearrange import slice_
from maasdam.pipeline.convert.operators.tensorflow.sizes import dims, rank
from maasdam.pipeline.convert.operators.tensorflow.table import dtype as named
from maasdam.pipeline.convert.operators.tensorflow.table import known, operator


def _spread(parameter: Tensor, like: Tensor, axis: int, block_size: int) -> Tensor:
    """A scale or zero point as something that broadcasts: one for all, one a channel, or one a block."""
    if rank(parameter) == 0 or parameter.shape.num_elements() == 1:
        return tf.reshape(parameter, [])
    if block_size:
        return slice_(tf.repeat(parameter, block_size, axis), [0], [dims(like)[axis]], [axis])
    shape = [1] * rank(like)
    shape[axis] = -1
    return tf.reshape(parameter, shape)


@operator("DequantizeLinear")
def dequantize(
    x: Tensor, scale: Tensor, zero: Tensor | None = None, axis: int = 1, block_size: int = 0, output_dtype: int = 0
) -> Tensor:
    """ONNX DequantizeLinear."""
    known(x.dtype)
    wide = tf.cast(x, tf.int32) if zero is not None else x
    if zero is not None:
        wide = wide - _spread(tf.cast(zero, tf.int32), x, axis, block_size)
    kind = named(output_dtype) if output_dtype else scale.dtype
    return tf.cast(tf.cast(wide, scale.dtype) * _spread(scale, x, axis, block_size), kind)


@operator("QuantizeLinear")
def quantize(
    x: Tensor,
    scale: Tensor,
    zero: Tensor | None = None,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    precision: int = 0,
    saturate: int = 1,
) -> Tensor:
    """ONNX QuantizeLinear: halves to even, then cut to the range."""
    real = tf.cast(x, scale.dtype) / _spread(scale, x, axis, block_size)
    narrow = KINDS.get(output_dtype)
    if isinstance(narrow, Real):
        return held(real, output_dtype, bool(saturate))
    if narrow is not None:
        kind, least, most = holder(narrow), narrow.least, narrow.most
    else:
        kind = zero.dtype if zero is not None else named(output_dtype) if output_dtype else tf.uint8
        known(kind)
        least, most = kind.min, kind.max
    out = tf.round(real)
    if zero is not None:
        out = out + _spread(tf.cast(zero, scale.dtype), x, axis, block_size)
    return tf.cast(tf.clip_by_value(out, least, most), kind)


@operator("DynamicQuantizeLinear")
def dynamic_quantize(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """ONNX DynamicQuantizeLinear: to uint8, by the range of x with zero in it."""
    low, high = tf.minimum(tf.reduce_min(x), 0), tf.maximum(tf.reduce_max(x), 0)
    scale = (high - low) / 255
    zero = tf.clip_by_value(tf.round(-low / scale), 0, 255)
    return tf.cast(tf.clip_by_value(tf.round(x / scale) + zero, 0, 255), tf.uint8), scale, tf.cast(zero, tf.uint8)


@operator("MatMulInteger")
def matmul_integer(a: Tensor, b: Tensor, a_zero: Tensor | None = None, b_zero: Tensor | None = None) -> Tensor:
    """ONNX MatMulInteger: int32 sums, exact."""
    wide_a, wide_b = tf.cast(a, tf.int32), tf.cast(b, tf.int32)
    if a_zero is not None:
        zero = tf.cast(a_zero, tf.int32)
        wide_a = wide_a - (tf.expand_dims(zero, -1) if rank(zero) else zero)
    if b_zero is not None:
        wide_b = wide_b - tf.cast(b_zero, tf.int32)
    return tf.matmul(wide_a, wide_b)


@operator("ConvInteger")
def conv_integer(
    x: Tensor, weight: Tensor, x_zero: Tensor | None = None, weight_zero: Tensor | None = None, **attributes: Any
) -> Tensor:
    """ONNX ConvInteger: in float64, where sums of int8 products are exact, given as int32."""
    wide, kernel = tf.cast(x, tf.float64), tf.cast(weight, tf.float64)
    if x_zero is not None:
        wide = wide - tf.cast(x_zero, tf.float64)
    if weight_zero is not None:
        kernel = kernel - _spread(tf.cast(weight_zero, tf.float64), weight, 0, 0)
    return tf.cast(conv(wide, kernel, None, **attributes), tf.int32)


@operator("QLinearMatMul")
def quantized_matmul(
    a: Tensor, a_scale: Tensor, a_zero: Tensor, b: Tensor, b_scale: Tensor, b_zero: Tensor, scale: Tensor, zero: Tensor
) -> Tensor:
    """ONNX QLinearMatMul."""
    out = tf.matmul(dequantize(a, a_scale, a_zero, axis=-2), dequantize(b, b_scale, b_zero, axis=-1))
    return quantize(out, tf.cast(scale, out.dtype), zero)


@operator("QLinearConv")
def quantized_conv(
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    weight_zero: Tensor,
    scale: Tensor,
    zero: Tensor,
    bias: Tensor | None = None,
    **attributes: Any,
) -> Tensor:
    """ONNX QLinearConv."""
    real_bias = None if bias is None else tf.cast(bias, tf.float32) * x_scale * weight_scale
    real = conv(dequantize(x, x_scale, x_zero), dequantize(weight, weight_scale, weight_zero, axis=0), real_bias, **attributes)
    return quantize(real, scale, zero)
