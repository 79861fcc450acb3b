"""Operators with weights or windows: products, convolutions, poolings, normalisations."""

from __future__ import annotations

from typing import Any, Unpack

from maasdam.convert.operators import windows
from maasdam.convert.operators.arrays import Arrays, Tensor
from maasdam.convert.operators.onnx.rearrange import positive
from maasdam.convert.operators.table import operator
from maasdam.errors import Unsupported


@operator("MatMul", weights=(0, 1))
def matmul(xp: Arrays, a: Tensor, b: Tensor) -> Tensor:
    """ONNX MatMul."""
    return xp.matmul(a, b)


@operator("Gemm", weights=(0, 1, 2))
def gemm(
    xp: Arrays,
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    """ONNX Gemm: a linear layer where it can be one."""
    return xp.layers.gemm(a, b, c, alpha, beta, bool(transA), bool(transB))


@operator("Einsum", weights=(0, 1))
def einsum(xp: Arrays, *values: Tensor, equation: str) -> Tensor:
    """ONNX Einsum."""
    return xp.einsum(equation.replace(" ", ""), *values)


@operator("Conv", weights=(1, 2))
def conv(
    xp: Arrays,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    group: int = 1,
    **given: Unpack[windows.WindowAttributes],
) -> Tensor:
    """ONNX Conv, of one to three spatial axes."""
    how = windows.windows_of(xp.dims(weight)[2:], given)
    around = windows.paddings(xp.dims(x)[2:], how, given)
    return xp.layers.conv(x, weight, bias, around, how.strides, how.dilations, group)


@operator("ConvTranspose", weights=(1, 2))
def conv_transpose(
    xp: Arrays,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    group: int = 1,
    output_padding: list[int] | None = None,
    output_shape: list[int] | None = None,
    **given: Unpack[windows.WindowAttributes],
) -> Tensor:
    """ONNX ConvTranspose: the full result, cut to the padding."""
    how = windows.windows_of(xp.dims(weight)[2:], given)
    extra = output_padding or [0] * len(how.kernel)
    cut = windows.transposed(xp.dims(x)[2:], how, given, extra, output_shape)
    return xp.layers.conv_transpose(x, weight, bias, cut, how.strides, how.dilations, extra, group)


def _windows(
    xp: Arrays, x: Tensor, ceil_mode: int, given: windows.WindowAttributes
) -> tuple[windows.WindowShape, windows.Pads, windows.Pads]:
    """Of a pooling: its windows; the padding; and what it grows to in "ceil mode"."""
    how, sizes = windows.windows_of(given["kernel_shape"], given), xp.dims(x)[2:]
    around = windows.paddings(sizes, how, given)
    return how, around, xp.layers.rounded_up(sizes, how, around) if ceil_mode else around


@operator("MaxPool")
def max_pool(
    xp: Arrays,
    x: Tensor,
    ceil_mode: int = 0,
    storage_order: int = 0,
    outputs: int = 1,
    **given: Unpack[windows.WindowAttributes],
) -> Any:
    """ONNX MaxPool; its second output are places in the whole flattened input."""
    how, _, around = _windows(xp, x, ceil_mode, given)
    if outputs == 1:
        return xp.layers.max_pool(x, around, *how)
    return xp.layers.max_pool_with_places(x, around, *how, bool(storage_order))


@operator("MaxUnpool", shapes=("output_shape",))
def max_unpool(
    xp: Arrays,
    x: Tensor,
    places: Tensor,
    output_shape: list[int] | None = None,
    **given: Unpack[windows.WindowAttributes],
) -> Tensor:
    """ONNX MaxUnpool: each value back to its place, zeros elsewhere."""
    how, sizes = windows.windows_of(given["kernel_shape"], given), xp.dims(x)
    around = windows.paddings(sizes[2:], how, given)
    natural = [(n - 1) * s + k - sum(pair) for n, s, k, pair in zip(sizes[2:], how.strides, how.kernel, around, strict=True)]
    wanted = [*sizes[:2], *(output_shape[2:] if output_shape else natural)]
    left, place, step = xp.cast(places, xp.int64), xp.full([], 0, xp.int64), 1
    for own, size in zip(reversed([*sizes[:2], *natural]), reversed(wanted), strict=True):
        place = place + left % xp.number(own) * xp.number(step)  # places are counted in the natural shape
        left, step = left // xp.number(own), step * size
    flat = xp.full([step], 0, x.dtype)
    return xp.reshape(xp.rearrange.scatter_elements(flat, xp.reshape(place, [-1]), xp.reshape(x, [-1]), 0, "none"), wanted)


@operator("AveragePool")
def average_pool(
    xp: Arrays, x: Tensor, ceil_mode: int = 0, count_include_pad: int = 0, **given: Unpack[windows.WindowAttributes]
) -> Tensor:
    """ONNX AveragePool: the mean of what each window holds, padding counted only with `count_include_pad`."""
    how, around, grown = _windows(xp, x, ceil_mode, given)
    padded = xp.layers.padded(x, grown, 0)
    if not ceil_mode and (count_include_pad or all(isinstance(v, int) and v == 0 for pair in around for v in pair)):
        return xp.layers.average(padded, None, *how)
    counted = xp.layers.padded(xp.full([1, 1, *xp.dims(x)[2:]], 1, x.dtype), around, 1 if count_include_pad else 0)
    beyond = [(0, g - a) for (_, g), (_, a) in zip(grown, around, strict=True)]
    return xp.layers.average(padded, xp.layers.padded(counted, beyond, 0), *how)


@operator("LpPool")
def lp_pool(xp: Arrays, x: Tensor, ceil_mode: int = 0, p: int = 2, **given: Unpack[windows.WindowAttributes]) -> Tensor:
    """ONNX LpPool."""
    how, _, around = _windows(xp, x, ceil_mode, given)
    return xp.layers.window_sum(xp.layers.padded(xp.math.abs(x) ** p, around, 0), *how) ** (1 / p)


def _spatial(xp: Arrays, x: Tensor) -> list[int]:
    return list(range(2, xp.rank(x)))


@operator("GlobalAveragePool")
def global_average_pool(xp: Arrays, x: Tensor) -> Tensor:
    """ONNX GlobalAveragePool."""
    return xp.mean(x, _spatial(xp, x), True)


@operator("GlobalMaxPool")
def global_max_pool(xp: Arrays, x: Tensor) -> Tensor:
    """ONNX GlobalMaxPool."""
    return xp.reduce.largest(x, _spatial(xp, x), True)


@operator("GlobalLpPool")
def global_lp_pool(xp: Arrays, x: Tensor, p: int = 2) -> Tensor:
    """ONNX GlobalLpPool."""
    return xp.sum(xp.math.abs(x) ** p, _spatial(xp, x), True) ** (1 / p)


@operator("BatchNormalization", weights=(1, 2))
def batch_normalization(
    xp: Arrays,
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
    spatial: int = 1,
) -> Any:
    """ONNX BatchNormalization, with running statistics, or those of the batch in training mode."""
    if not training_mode:
        return xp.layers.batch_normalization(x, mean, variance, scale, bias, epsilon)
    now_mean, now_variance = xp.moments(x, [axis for axis in range(xp.rank(x)) if axis != 1], False)
    out = xp.layers.batch_normalization(x, now_mean, now_variance, scale, bias, epsilon)
    keep = momentum
    return out, mean * keep + now_mean * (1 - keep), variance * keep + now_variance * (1 - keep)


@operator("InstanceNormalization", weights=(1, 2))
def instance_normalization(xp: Arrays, x: Tensor, scale: Tensor, bias: Tensor, epsilon: float = 1e-5) -> Tensor:
    """ONNX InstanceNormalization."""
    return xp.layers.instance_normalization(x, scale, bias, epsilon)


@operator("GroupNormalization", weights=(1, 2))
def group_normalization(
    xp: Arrays, x: Tensor, scale: Tensor, bias: Tensor, num_groups: int, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    """ONNX GroupNormalization; before operator set 21 scale and bias were one a group."""
    channels = xp.dims(x)[1]
    if xp.dims(scale)[0] == num_groups != channels:
        scale, bias = (xp.repeat(v, channels // num_groups, 0) for v in (scale, bias))
    return xp.layers.group_normalization(x, num_groups, scale, bias, epsilon)


@operator("LayerNormalization", weights=(1, 2))
def layer_normalization(
    xp: Arrays,
    x: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
    outputs: int = 1,
) -> Any:
    """ONNX LayerNormalization; its other outputs are the mean and the inverse deviation."""
    found: tuple[Tensor, ...] = xp.layers.layer_normalization(x, scale, bias, positive(xp, x, axis), epsilon, outputs)
    return found[0] if outputs == 1 else found[:outputs]


@operator("RMSNormalization", weights=(1,))
def rms_normalization(
    xp: Arrays, x: Tensor, scale: Tensor, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    """ONNX RMSNormalization, computed in float32 and returned as the scale's type."""
    wide = xp.cast(x, xp.float32) if x.dtype in (xp.dtype(10), xp.dtype(16)) else x
    mean = xp.mean(xp.math.square(wide), list(range(positive(xp, x, axis), xp.rank(x))), True)
    return xp.cast(wide * xp.math.rsqrt(mean + epsilon), scale.dtype) * scale


@operator("MeanVarianceNormalization")
def mean_variance_normalization(xp: Arrays, x: Tensor, axes: list[int] | None = None) -> Tensor:
    """ONNX MeanVarianceNormalization."""
    mean, variance = xp.moments(x, axes if axes is not None else [0, 2, 3], True)
    return (x - mean) / (xp.math.sqrt(variance) + 1e-9)


@operator("LRN")
def local_response_normalization(
    xp: Arrays, x: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0
) -> Tensor:
    """ONNX LRN: over `size` neighbouring channels."""
    summed = xp.layers.neighbours_sum(xp.math.square(x), (size - 1) // 2, size)
    return x / (bias + alpha / size * summed) ** beta


@operator("Dropout", shapes=("training_mode",), stated=("ratio",))
def dropout(
    xp: Arrays, x: Tensor, ratio: Any = None, training_mode: Any = False, seed: int | None = None, outputs: int = 1
) -> Any:
    """ONNX Dropout: nothing is dropped in inference."""
    ratio = ratio[0] if isinstance(ratio, list) else ratio
    if training_mode and ratio is not None and xp.known(ratio) != 0:
        raise Unsupported("the model drops values at random (Dropout in training mode); export it for inference")
    return (x, xp.full(xp.dims(x), True, xp.dtype(9))) if outputs > 1 else x
