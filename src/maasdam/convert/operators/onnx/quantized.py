"""Operators on integers that stand for real numbers: value = (integer - zero point) * scale."""

from __future__ import annotations

from typing import Any

from maasdam.convert.operators.arrays import Arrays, Tensor
from maasdam.convert.operators.narrow import KINDS, Real
from maasdam.convert.operators.onnx.layers import conv
from maasdam.convert.operators.onnx.narrow import held, holder
from maasdam.convert.operators.onnx.rearrange import slice_
from maasdam.convert.operators.table import operator


def _spread(xp: Arrays, parameter: Tensor, like: Tensor, axis: int, block_size: int) -> Tensor:
    """A scale or zero point as something that broadcasts: one for all, one a channel, or one a block."""
    if all(isinstance(size, int) and size == 1 for size in xp.dims(parameter)):
        return xp.reshape(parameter, [])
    if block_size:
        return slice_(xp, xp.repeat(parameter, block_size, axis), [0], [xp.dims(like)[axis]], [axis])
    shape = [1] * xp.rank(like)
    shape[axis] = -1
    return xp.reshape(parameter, shape)


@operator("DequantizeLinear", "com.microsoft.DequantizeLinear")
def dequantize(
    xp: Arrays, x: Tensor, scale: Tensor, zero: Tensor | None = None, axis: int = 1, block_size: int = 0, output_dtype: int = 0
) -> Tensor:
    """ONNX DequantizeLinear; com.microsoft's had 16 bits before ONNX had."""
    wide = x
    if zero is not None:
        wide = xp.cast(x, xp.int32) - _spread(xp, xp.cast(zero, xp.int32), x, axis, block_size)
    kind = xp.dtype(output_dtype) if output_dtype else scale.dtype
    return xp.cast(xp.cast(wide, scale.dtype) * _spread(xp, scale, x, axis, block_size), kind)


@operator("QuantizeLinear", "com.microsoft.QuantizeLinear")
def quantize(
    xp: Arrays,
    x: Tensor,
    scale: Tensor,
    zero: Tensor | None = None,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    precision: int = 0,
    saturate: int = 1,
) -> Tensor:
    """ONNX QuantizeLinear: halves to even, then cut to the range; com.microsoft's had 16 bits before ONNX had."""
    real = xp.cast(x, scale.dtype) / _spread(xp, scale, x, axis, block_size)
    narrow = KINDS.get(output_dtype)
    if isinstance(narrow, Real):
        return held(xp, real, output_dtype, bool(saturate))
    if narrow is not None:
        kind, least, most = holder(xp, narrow), narrow.least, narrow.most
    else:
        kind = zero.dtype if zero is not None else xp.dtype(output_dtype) if output_dtype else xp.uint8
        least, most = xp.limits(kind)
    out = xp.math.round(real)
    if zero is not None:
        out = out + _spread(xp, xp.cast(zero, scale.dtype), x, axis, block_size)
    return xp.cast(xp.clip(out, least, most), kind)


@operator("DynamicQuantizeLinear")
def dynamic_quantize(xp: Arrays, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """ONNX DynamicQuantizeLinear: to uint8, by the range of x with zero in it."""
    least, most = xp.extremes(x)
    low, high = xp.clip(least, None, 0), xp.clip(most, 0, None)
    scale = (high - low) / 255
    zero = xp.clip(xp.math.round(-low / scale), 0, 255)
    return xp.cast(xp.clip(xp.math.round(x / scale) + zero, 0, 255), xp.uint8), scale, xp.cast(zero, xp.uint8)


@operator("MatMulInteger")
def matmul_integer(xp: Arrays, a: Tensor, b: Tensor, a_zero: Tensor | None = None, b_zero: Tensor | None = None) -> Tensor:
    """ONNX MatMulInteger: int32 sums, exact."""
    wide_a, wide_b = xp.cast(a, xp.int32), xp.cast(b, xp.int32)
    if a_zero is not None:
        zero = xp.cast(a_zero, xp.int32)
        wide_a = wide_a - (zero[..., None] if xp.rank(zero) else zero)
    if b_zero is not None:
        wide_b = wide_b - xp.cast(b_zero, xp.int32)
    return xp.matmul(wide_a, wide_b)


@operator("ConvInteger")
def conv_integer(
    xp: Arrays, x: Tensor, weight: Tensor, x_zero: Tensor | None = None, weight_zero: Tensor | None = None, **attributes: Any
) -> Tensor:
    """ONNX ConvInteger: in float64, where sums of int8 products are exact, given as int32."""
    wide, kernel = xp.cast(x, xp.float64), xp.cast(weight, xp.float64)
    if x_zero is not None:
        wide = wide - xp.cast(x_zero, xp.float64)
    if weight_zero is not None:
        kernel = kernel - _spread(xp, xp.cast(weight_zero, xp.float64), weight, 0, 0)
    return xp.cast(conv(xp, wide, kernel, None, **attributes), xp.int32)


@operator("QLinearMatMul")
def quantized_matmul(
    xp: Arrays,
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor,
    scale: Tensor,
    zero: Tensor,
) -> Tensor:
    """ONNX QLinearMatMul."""
    out = xp.matmul(dequantize(xp, a, a_scale, a_zero, axis=-2), dequantize(xp, b, b_scale, b_zero, axis=-1))
    return quantize(xp, out, xp.cast(scale, out.dtype), zero)


@operator("QLinearConv")
def quantized_conv(
    xp: Arrays,
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
    own = dequantize(xp, weight, weight_scale, weight_zero, axis=0)
    real_bias = None if bias is None else xp.cast(bias, xp.float32) * x_scale * weight_scale
    return quantize(xp, conv(xp, dequantize(xp, x, x_scale, x_zero), own, real_bias, **attributes), scale, zero)
