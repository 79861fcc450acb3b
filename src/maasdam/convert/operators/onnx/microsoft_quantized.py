"""Operators of ONNX Runtime's own domain (com.microsoft) that its quantisers write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack

from maasdam.convert.operators.arrays import Arrays, Tensor
from maasdam.convert.operators.onnx.elementwise import leaky_relu
from maasdam.convert.operators.onnx.layers import average_pool, gemm, global_average_pool
from maasdam.convert.operators.onnx.microsoft import embed_layer_normalization
from maasdam.convert.operators.onnx.quantized import dequantize, dynamic_quantize, matmul_integer, quantize
from maasdam.convert.operators.onnx.rearrange import gather
from maasdam.convert.operators.onnx.recurrent import RecurrentAttributes, RecurrentInputs, States, long_short
from maasdam.convert.operators.onnx.reduce import softmax, softmax_flat
from maasdam.convert.operators.table import operator
from maasdam.errors import Unsupported


def unpacked(xp: Arrays, packed: Tensor, bits: int) -> Tensor:
    """Bytes as the numbers in them along the last axis, low bits first."""
    if bits == 8:
        return packed
    if bits not in (2, 4):
        raise Unsupported(f"weights of {bits} bits")
    *sizes, width = xp.dims(packed)
    shifts = xp.cast(xp.arange(8 // bits) * bits, xp.int32)
    parts = xp.shifted(xp.cast(packed, xp.int32)[..., None], shifts) & (2**bits - 1)
    return xp.cast(xp.reshape(parts, [*sizes, width * (8 // bits)]), xp.uint8)


@operator("com.microsoft.MatMulNBits")
def matmul_n_bits(
    xp: Arrays,
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
    whole = xp.cast(unpacked(xp, xp.reshape(packed, [N, blocks, block_size * bits // 8]), bits), scales.dtype)
    if zeros is None:
        zero: Any = float(2 ** (bits - 1))
    elif zeros.dtype == xp.uint8:
        packed_zeros = xp.reshape(zeros, [N, (blocks * bits + 7) // 8])
        zero = xp.cast(unpacked(xp, packed_zeros, bits)[:, :blocks], scales.dtype)[..., None]
    else:
        zero = xp.reshape(zeros, [N, blocks, 1])
    real = (whole - zero) * xp.reshape(scales, [N, blocks, 1])
    return xp.linear(a, xp.cast(xp.reshape(real, [N, blocks * block_size])[:, :K], a.dtype), bias)


@operator("com.microsoft.GatherBlockQuantized")
def gather_block_quantized(
    xp: Arrays,
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
    is_packed = data.dtype == xp.uint8 and scales.shape[quantize_axis] * block_size > data.shape[quantize_axis]
    rank = xp.rank(data)
    if not is_packed or gather_axis % rank or quantize_axis % rank != rank - 1:
        raise Unsupported("GatherBlockQuantized of other than rows of packed bytes")
    rows = xp.cast(unpacked(xp, gather(xp, data, indices), bits), scales.dtype)
    factor = xp.repeat(gather(xp, scales, indices), block_size, -1)[..., : rows.shape[-1]]
    zero: Any = float(2 ** (bits - 1))
    if zeros is not None:
        own = unpacked(xp, gather(xp, zeros, indices), bits)[..., : scales.shape[-1]]
        zero = xp.repeat(xp.cast(own, scales.dtype), block_size, -1)[..., : rows.shape[-1]]
    return (rows - zero) * factor


@operator("com.microsoft.MatMulIntegerToFloat")
def matmul_integer_to_float(
    xp: Arrays,
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    a_zero: Tensor | None = None,
    b_zero: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """com.microsoft MatMulIntegerToFloat: MatMulInteger, made real."""
    out = xp.cast(matmul_integer(xp, a, b, a_zero, b_zero), a_scale.dtype) * (a_scale * b_scale)
    return out if bias is None else out + bias


@operator("com.microsoft.DynamicQuantizeMatMul")
def dynamic_quantize_matmul(
    xp: Arrays, a: Tensor, b: Tensor, b_scale: Tensor, b_zero: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """com.microsoft DynamicQuantizeMatMul: `a` quantised by its range."""
    whole, scale, zero = dynamic_quantize(xp, a)
    return matmul_integer_to_float(xp, whole, b, scale, b_scale, zero, b_zero, bias)


@operator("com.microsoft.DynamicQuantizeLSTM")
def dynamic_quantize_lstm(
    xp: Arrays,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None,
    lengths: Tensor | None,
    h: Tensor | None,
    c: Tensor | None,
    p: Tensor | None,
    w_scale: Tensor,
    w_zero: Tensor,
    r_scale: Tensor,
    r_zero: Tensor,
    **given: Unpack[RecurrentAttributes],
) -> States:
    """com.microsoft DynamicQuantizeLSTM: weights [directions, inputs, gates] in bytes, by steps of a direction or of each gate.

    What a product takes is quantised by its range: the whole of `x`, and the hidden state of a batch in each step.
    """

    def real(weight: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        directions = [xp.dims(weight)[0], 1, -1]
        whole = xp.cast(weight, scale.dtype) - xp.reshape(xp.cast(zero, scale.dtype), directions)
        return xp.transpose(whole * xp.reshape(scale, directions), [0, 2, 1])

    def near(state: Tensor) -> Tensor:
        return dequantize(xp, *dynamic_quantize(xp, state))

    named = RecurrentInputs(near(x), real(w, w_scale, w_zero), real(r, r_scale, r_zero), b, lengths, h, c, p)
    return long_short(xp, named, given, near)


@operator("com.microsoft.QGemm")
def quantized_gemm(
    xp: Arrays,
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
    real, own = dequantize(xp, a, a_scale, a_zero), dequantize(xp, b, b_scale, b_zero, axis=0 if transB else 1)
    out = gemm(xp, real, own, None, alpha=alpha, transA=transA, transB=transB)
    if c is not None:
        out = out + xp.cast(c, out.dtype) * (alpha * a_scale * b_scale)
    return out if scale is None else quantize(xp, out, scale, zero)


def _list_quantized(name: str, function: Callable[..., Tensor], count: int = 1) -> None:
    """`function` of the first `count` inputs made real by scales and zero points, its answer rounded by the last two."""

    @operator(f"com.microsoft.{name}")
    def call(xp: Arrays, *inputs: Tensor, **attributes: Any) -> Tensor:
        if attributes.pop("channels_last", 0):
            raise Unsupported(f"{name} with the channels last")
        real = [dequantize(xp, *inputs[at : at + 3]) for at in range(0, 3 * count, 3)]
        scale, zero = (*inputs[3 * count :], None)[:2]
        zero = xp.full([], 0, inputs[0].dtype) if zero is None else zero
        return quantize(xp, function(xp, *real, **attributes), scale, zero)


def _softmax(xp: Arrays, x: Tensor, axis: int = -1, opset: int = 13) -> Tensor:
    """Over an axis, or before 13 over all from it on."""
    return softmax(xp, x, axis) if opset >= 13 else softmax_flat(xp, x, axis)


_list_quantized("QLinearAdd", lambda xp, a, b: a + b, 2)
_list_quantized("QLinearMul", lambda xp, a, b: a * b, 2)
_list_quantized("QLinearSigmoid", lambda xp, x: xp.math.sigmoid(x))
_list_quantized("QLinearLeakyRelu", leaky_relu)
_list_quantized("QLinearSoftmax", _softmax)
_list_quantized("QLinearAveragePool", average_pool)
_list_quantized("QLinearGlobalAveragePool", global_average_pool)


@operator("com.microsoft.QLinearConcat")
def quantized_concat(xp: Arrays, scale: Tensor, zero: Tensor, *parts: Tensor, axis: int) -> Tensor:
    """com.microsoft QLinearConcat: each part with a scale and a zero point of its own."""
    real = [dequantize(xp, *parts[at : at + 3]) for at in range(0, len(parts), 3)]
    return quantize(xp, xp.concat(*real, axis=axis), scale, zero)


@operator("com.microsoft.QLinearWhere")
def quantized_where(xp: Arrays, condition: Tensor, *parts: Tensor) -> Tensor:
    """com.microsoft QLinearWhere: two values and the answer, each with a scale and a zero point."""
    return quantize(xp, xp.where(condition, dequantize(xp, *parts[:3]), dequantize(xp, *parts[3:6])), *parts[6:])


@operator("com.microsoft.QEmbedLayerNormalization")
def quantized_embed_layer_normalization(
    xp: Arrays,
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
        None if value is None or scale is None else dequantize(xp, value, scale, zero)
        for value, scale, zero in zip(tables, parameters[:5], parameters[5:], strict=True)
    ]
    words, positions, kinds, gamma, beta = real
    return embed_layer_normalization(xp, ids, segments, words, positions, kinds, gamma, beta, mask, epsilon=epsilon)[:2]
