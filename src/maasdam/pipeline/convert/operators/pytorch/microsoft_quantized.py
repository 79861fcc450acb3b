"""Operators of ONNX Runtime's own domain (com.microsoft) that its quantisers write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from maasdam.errors import Unsupported
from maasdam.pipeline.convert.operators.pytorch.layers import average_pool, gemm
from maasdam.pipeline.convert.operators.pytorch.microsoft import embed_layer_normalization
from maasdam.pipeline.convert.operators.pytorch.quantized import dequantize, dynamic_quantize, matmul_integer, quantize
from maasdam.pipeline.convert.operators.pytorch.rearrange import gather
from maasdam.pipeline.convert.operators.pytorch.reduce import softmax_flat
from maasdam.pipeline.convert.operators.pytorch.table import operator


@operator("com.microsoft.QuantizeLinear")
def quantize_linear(x: Tensor, scale: Tensor, zero: Tensor | None = None, axis: int = 1) -> Tensor:
    """com.microsoft QuantizeLinear: to 16 bits before ONNX had that."""
    return quantize(x, scale, zero, axis)


@operator("com.microsoft.DequantizeLinear")
def dequantize_linear(x: Tensor, scale: Tensor, zero: Tensor | None = None, axis: int = 1) -> Tensor:
    """com.microsoft DequantizeLinear: from 16 bits before ONNX had that."""
    return dequantize(x, scale, zero, axis)


def unpacked(packed: Tensor, bits: int) -> Tensor:
    """Bytes as the numbers in them along the last axis, low bits first."""
    if bits == 8:
        return packed
    if bits not in (2, 4):
        raise Unsupported(f"weights of {bits} bits")
    shifts = torch.arange(0, 8, bits, dtype=torch.int32)
    parts: Tensor = torch.bitwise_right_shift(packed.to(torch.int32).unsqueeze(-1), shifts) & (2**bits - 1)
    return parts.flatten(-2).to(torch.uint8)


@operator("com.microsoft.MatMulNBits")
def matmul_n_bits(
    a: Tensor,
    packed: Tensor,
    scales: Tensor,
    zeros: Tensor | None = None,
    groups: Tensor | None = None,
    bias: Tensor | None = None,
    K: int = 0,
    N: int = 0,
    bits: int = 4,
    block_size: int = 32,
    accuracy_level: int = 0,
    weight_prepacked: int = 0,
) -> Tensor:
    """com.microsoft MatMulNBits: weights [N, blocks, bytes] of a few bits, one scale and zero point a block of K."""
    if groups is not None or weight_prepacked:
        raise Unsupported("MatMulNBits with g_idx, or packed for a GPU")
    blocks = (K + block_size - 1) // block_size
    whole = unpacked(packed.reshape(N, blocks, -1), bits).to(scales.dtype)
    if zeros is None:
        zero: Any = float(2 ** (bits - 1))
    elif zeros.dtype == torch.uint8:
        zero = unpacked(zeros.reshape(N, -1), bits)[:, :blocks].to(scales.dtype).unsqueeze(-1)
    else:
        zero = zeros.reshape(N, blocks, 1)
    weight = ((whole - zero) * scales.reshape(N, blocks, 1)).reshape(N, -1)[:, :K]
    return functional.linear(a, weight.to(a.dtype), bias)


@operator("com.microsoft.GatherBlockQuantized")
def gather_block_quantized(
    data: Tensor,
    indices: Tensor,
    scales: Tensor,
    zeros: Tensor | None = None,
    bits: int = 4,
    block_size: int = 128,
    gather_axis: int = 0,
    quantize_axis: int = 1,
) -> Tensor:
    """com.microsoft GatherBlockQuantized: rows of a table of a few bits, looked up, then made real. Bytes are packed."""
    is_packed = data.dtype == torch.uint8 and scales.shape[quantize_axis] * block_size > data.shape[quantize_axis]
    if not is_packed or gather_axis % data.dim() or quantize_axis % data.dim() != data.dim() - 1:
        raise Unsupported("GatherBlockQuantized of other than rows of packed bytes")
    own = scales.shape[-1]
    rows: Tensor = unpacked(gather(data, indices), bits).to(scales.dtype)
    factor = gather(scales, indices).repeat_interleave(block_size, -1)[..., : rows.shape[-1]]
    zero: Any = float(2 ** (bits - 1))
    if zeros is not None:
        zero = unpacked(gather(zeros, indices), bits)[..., :own].to(scales.dtype)
        zero = zero.repeat_interleave(block_size, -1)[..., : rows.shape[-1]]
    real: Tensor = (rows - zero) * factor
    return real


@operator("com.microsoft.MatMulIntegerToFloat")
def matmul_integer_to_float(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    a_zero: Tensor | None = None,
    b_zero: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """com.microsoft MatMulIntegerToFloat: MatMulInteger, made real."""
    out = matmul_integer(a, b, a_zero, b_zero).to(a_scale.dtype) * (a_scale * b_scale)
    return out if bias is None else out + bias


@operator("com.microsoft.DynamicQuantizeMatMul")
def dynamic_quantize_matmul(
    a: Tensor, b: Tensor, b_scale: Tensor, b_zero: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """com.microsoft DynamicQuantizeMatMul: `a` quantised by its range."""
    whole, scale, zero = dynamic_quantize(a)
    return matmul_integer_to_float(whole, b, scale, b_scale, zero, b_zero, bias)


@operator("com.microsoft.QGemm")
def quantized_gemm(
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor,
    c: Tensor | None = None,
    scale: Tensor | None = None,
    zero: Tensor | None = None,
    alpha: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    """com.microsoft QGemm: `c` counts in steps of alpha * a_scale * b_scale; real where no output scale is given."""
    real, own = dequantize(a, a_scale, a_zero), dequantize(b, b_scale, b_zero, axis=0 if transB else 1)
    out = gemm(real, own, None, alpha=alpha, transA=transA, transB=transB)
    if c is not None:
        out = out + c.to(out.dtype) * (alpha * a_scale * b_scale)
    return out if scale is None else quantize(out, scale, zero)


def _quantized_binary(name: str, function: Callable[[Tensor, Tensor], Tensor]) -> None:
    @operator(f"com.microsoft.{name}")
    def call(
        a: Tensor,
        a_scale: Tensor,
        a_zero: Tensor | None,
        b: Tensor,
        b_scale: Tensor,
        b_zero: Tensor | None,
        scale: Tensor,
        zero: Tensor | None = None,
    ) -> Tensor:
        return _back(function(dequantize(a, a_scale, a_zero), dequantize(b, b_scale, b_zero)), scale, zero, a)


def _back(real: Tensor, scale: Tensor, zero: Tensor | None, like: Tensor) -> Tensor:
    return quantize(real, scale, torch.zeros((), dtype=like.dtype) if zero is None else zero)


_quantized_binary("QLinearAdd", torch.add)
_quantized_binary("QLinearMul", torch.mul)


@operator("com.microsoft.QLinearSigmoid")
def quantized_sigmoid(x: Tensor, x_scale: Tensor, x_zero: Tensor | None, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """com.microsoft QLinearSigmoid."""
    return _back(torch.sigmoid(dequantize(x, x_scale, x_zero)), scale, zero, x)


@operator("com.microsoft.QLinearLeakyRelu")
def quantized_leaky_relu(
    x: Tensor, x_scale: Tensor, x_zero: Tensor | None, scale: Tensor, zero: Tensor | None = None, alpha: float = 0.01
) -> Tensor:
    """com.microsoft QLinearLeakyRelu."""
    return _back(functional.leaky_relu(dequantize(x, x_scale, x_zero), alpha), scale, zero, x)


@operator("com.microsoft.QLinearSoftmax")
def quantized_softmax(
    x: Tensor, x_scale: Tensor, x_zero: Tensor | None, scale: Tensor, zero: Tensor, axis: int = -1, opset: int = 13
) -> Tensor:
    """com.microsoft QLinearSoftmax, over an axis, or before 13 over all from it on."""
    real = dequantize(x, x_scale, x_zero)
    return _back(torch.softmax(real, axis) if opset >= 13 else softmax_flat(real, axis), scale, zero, x)


@operator("com.microsoft.QLinearConcat")
def quantized_concat(scale: Tensor, zero: Tensor, *parts: Tensor, axis: int) -> Tensor:
    """com.microsoft QLinearConcat: each part with a scale and a zero point of its own."""
    real = [dequantize(parts[i], parts[i + 1], parts[i + 2]) for i in range(0, len(parts), 3)]
    return quantize(torch.cat(real, axis), scale, zero)


@operator("com.microsoft.QLinearWhere")
def quantized_where(
    condition: Tensor,
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor,
    scale: Tensor,
    zero: Tensor,
) -> Tensor:
    """com.microsoft QLinearWhere."""
    return quantize(torch.where(condition, dequantize(a, a_scale, a_zero), dequantize(b, b_scale, b_zero)), scale, zero)


@operator("com.microsoft.QLinearAveragePool")
def quantized_average_pool(
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor | None,
    scale: Tensor,
    zero: Tensor | None = None,
    channels_last: int = 0,
    **attributes: Any,
) -> Tensor:
    """com.microsoft QLinearAveragePool, channels first."""
    if channels_last:
        raise Unsupported("QLinearAveragePool with the channels last")
    return _back(average_pool(dequantize(x, x_scale, x_zero), **attributes), scale, zero, x)


@operator("com.microsoft.QLinearGlobalAveragePool")
def quantized_global_average_pool(
    x: Tensor, x_scale: Tensor, x_zero: Tensor, scale: Tensor, zero: Tensor, channels_last: int = 0
) -> Tensor:
    """com.microsoft QLinearGlobalAveragePool, channels first."""
    if channels_last:
        raise Unsupported("QLinearGlobalAveragePool with the channels last")
    return _back(dequantize(x, x_scale, x_zero).mean(list(range(2, x.dim())), keepdim=True), scale, zero, x)


@operator("com.microsoft.QEmbedLayerNormalization")
def quantized_embed_layer_normalization(
    ids: Tensor,
    segments: Tensor | None,
    words: Tensor,
    positions: Tensor,
    kinds: Tensor | None,
    gamma: Tensor,
    beta: Tensor,
    mask: Tensor | None,
    *parameters: Tensor | None,
    epsilon: float = 1e-12,
) -> tuple[Tensor, ...]:
    """com.microsoft QEmbedLayerNormalization: tables and weights quantised; `parameters` are their scales, then zero points."""
    tables = (words, positions, kinds, gamma, beta)
    real: list[Any] = [
        None if value is None or scale is None else dequantize(value, scale, zero)
        for value, scale, zero in zip(tables, parameters[:5], parameters[5:], strict=True)
    ]
    words, positions, kinds, gamma, beta = real
    return embed_layer_normalization(ids, segments, words, positions, kinds, gamma, beta, mask, epsilon=epsilon)[:2]
