"""Operators on integers that stand for real numbers: value = (integer - zero point) * scale."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from maasdam.pipeline.convert.operators.narrow import KINDS, Real
from maasdam.pipeline.convert.operators.pytorch.layers import conv
from maasdam.pipeline.convert.operators.pytorch.narrow import held, holder
from maasdam.pipeline.convert.operators.pytorch.table import dtype as named
from maasdam.pipeline.convert.operators.pytorch.table import operator


def _spread(parameter: Tensor, like: Tensor, axis: int, block_size: int) -> Tensor:
    """A scale or zero point as something that broadcasts: one for all, one a channel, or one a block."""
    if parameter.dim() == 0 or parameter.numel() == 1:
        return parameter.reshape(())
    if block_size:
        return parameter.repeat_interleave(block_size, axis).narrow(axis, 0, like.shape[axis])
    shape = [1] * like.dim()
    shape[axis] = -1
    return parameter.reshape(shape)


@operator("DequantizeLinear")
def dequantize(
    x: Tensor, scale: Tensor, zero: Tensor | None = None, axis: int = 1, block_size: int = 0, output_dtype: int = 0
) -> Tensor:
    """ONNX DequantizeLinear."""
    wide = x.to(torch.int32) if zero is not None else x
    if zero is not None:
        wide = wide - _spread(zero.to(torch.int32), x, axis, block_size)
    kind = named(output_dtype) if output_dtype else scale.dtype
    return (wide.to(scale.dtype) * _spread(scale, x, axis, block_size)).to(kind)


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
    real = x.to(scale.dtype) / _spread(scale, x, axis, block_size)
    narrow = KINDS.get(output_dtype)
    if isinstance(narrow, Real):
        return held(real, output_dtype, bool(saturate))
    if narrow is not None:
        kind, least, most = holder(narrow), narrow.least, narrow.most
    else:
        kind = zero.dtype if zero is not None else named(output_dtype) if output_dtype else torch.uint8
        least, most = torch.iinfo(kind).min, torch.iinfo(kind).max
    out = torch.round(real)
    if zero is not None:
        out = out + _spread(zero.to(scale.dtype), x, axis, block_size)
    return torch.clamp(out, least, most).to(kind)


@operator("DynamicQuantizeLinear")
def dynamic_quantize(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """ONNX DynamicQuantizeLinear: to uint8, by the range of x with zero in it."""
    nothing = torch.zeros((), dtype=x.dtype)
    low, high = torch.minimum(x.min(), nothing), torch.maximum(x.max(), nothing)
    scale = (high - low) / 255
    zero = torch.clamp(torch.round(-low / scale), 0, 255)
    return torch.clamp(torch.round(x / scale) + zero, 0, 255).to(torch.uint8), scale, zero.to(torch.uint8)


@operator("MatMulInteger")
def matmul_integer(a: Tensor, b: Tensor, a_zero: Tensor | None = None, b_zero: Tensor | None = None) -> Tensor:
    """ONNX MatMulInteger: int32 sums, exact."""
    wide_a, wide_b = a.to(torch.int32), b.to(torch.int32)
    if a_zero is not None:
        wide_a = wide_a - (a_zero.to(torch.int32).unsqueeze(-1) if a_zero.dim() else a_zero.to(torch.int32))
    if b_zero is not None:
        wide_b = wide_b - b_zero.to(torch.int32)
    return torch.matmul(wide_a, wide_b)


@operator("ConvInteger")
def conv_integer(
    x: Tensor, weight: Tensor, x_zero: Tensor | None = None, weight_zero: Tensor | None = None, **attributes: Any
) -> Tensor:
    """ONNX ConvInteger: in float64, where sums of int8 products are exact, given as int32."""
    wide = x.double() if x_zero is None else x.double() - x_zero.double()
    kernel = weight.double() if weight_zero is None else weight.double() - _spread(weight_zero.double(), weight, 0, 0)
    return conv(wide, kernel, None, **attributes).to(torch.int32)


@operator("QLinearMatMul")
def quantized_matmul(
    a: Tensor, a_scale: Tensor, a_zero: Tensor, b: Tensor, b_scale: Tensor, b_zero: Tensor, scale: Tensor, zero: Tensor
) -> Tensor:
    """ONNX QLinearMatMul."""
    out = torch.matmul(dequantize(a, a_scale, a_zero, axis=-2), dequantize(b, b_scale, b_zero, axis=-1))
    return quantize(out, scale.to(out.dtype), zero)


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
    real_bias = None if bias is None else bias.to(torch.float32) * x_scale * weight_scale
    real = conv(dequantize(x, x_scale, x_zero), dequantize(weight, weight_scale, weight_zero, axis=0), real_bias, **attributes)
    return quantize(real, scale, zero)
