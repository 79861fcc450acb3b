"""Operators with weights or windows: products, convolutions, poolings, normalisations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from maasdam.convert.operators import windows
from maasdam.convert.operators.pytorch.table import operator
from maasdam.errors import Unsupported

_CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_CONV_TRANSPOSE = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}
_MAX_POOL = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}


@operator("MatMul")
def matmul(a: Tensor, b: Tensor) -> Tensor:
    """ONNX MatMul."""
    return torch.matmul(a, b)


@operator("Gemm")
def gemm(
    a: Tensor, b: Tensor, c: Tensor | None = None, alpha: float = 1.0, beta: float = 1.0, transA: int = 0, transB: int = 0
) -> Tensor:
    """ONNX Gemm: a linear layer where it can be one."""
    a = a.t() if transA else a
    if transB and alpha == 1 and (c is None or (c.dim() == 1 and beta == 1)):
        return functional.linear(a, b, c)
    out = torch.matmul(a, b.t() if transB else b)
    out = out if alpha == 1 else (out * alpha).to(a.dtype)
    return out if c is None else out + (c if beta == 1 else (c * beta).to(a.dtype))


@operator("Einsum")
def einsum(*values: Tensor, equation: str) -> Tensor:
    """ONNX Einsum."""
    return torch.einsum(equation.replace(" ", ""), *values)


@operator("Conv")
def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    auto_pad: str = "NOTSET",
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    """ONNX Conv, of one to three spatial axes."""
    kernel = list(weight.shape[2:])
    rank = len(kernel)
    strides, dilations = strides or [1] * rank, dilations or [1] * rank
    around = windows.paddings(x.shape[2:], kernel, strides, dilations, pads, auto_pad)
    x, even = _padded(x, around, 0.0)
    return _CONV[rank](x, weight, bias, strides, even, dilations, group)


def _padded(x: Tensor, around: windows.Pads, value: float) -> tuple[Tensor, list[Any]]:
    """Padding that is the same on both sides is left to the layer; else it is done here and none is left."""
    if all(isinstance(b, int) and isinstance(a, int) and a == b for b, a in around):
        return x, [before for before, _ in around]
    return _pad(x, around, value), [0] * len(around)


def _pad(x: Tensor, around: windows.Pads, value: float) -> Tensor:
    if all(isinstance(b, int) and isinstance(a, int) and a == b == 0 for b, a in around):
        return x
    return functional.pad(x, [size for pair in reversed(around) for size in pair], value=value)


@operator("ConvTranspose")
def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    auto_pad: str = "NOTSET",
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    output_padding: list[int] | None = None,
    output_shape: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    """ONNX ConvTranspose: the full result, cut to the padding."""
    kernel = list(weight.shape[2:])
    rank = len(kernel)
    strides, dilations, extra = strides or [1] * rank, dilations or [1] * rank, output_padding or [0] * rank
    cut = windows.transposed(x.shape[2:], kernel, strides, dilations, pads, extra, output_shape, auto_pad)
    if all(isinstance(b, int) and a == b and a >= 0 for b, a in cut):
        even = [before for before, _ in cut]
        return _CONV_TRANSPOSE[rank](x, weight, bias, strides, even, extra, group, dilations)
    full = _CONV_TRANSPOSE[rank](x, weight, bias, strides, 0, 0, group, dilations)
    lengthened = [(-before, e - after) for (before, after), e in zip(cut, extra, strict=True)]
    if bias is None or all(after <= 0 for _, after in lengthened):
        return _pad(full, lengthened, 0.0)
    rows = bias.reshape([1, -1, *[1] * rank])
    return _pad(full - rows, lengthened, 0.0) + rows


@operator("MaxPool")
def max_pool(
    x: Tensor,
    kernel_shape: list[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: list[int] | None = None,
    pads: list[int] | None = None,
    storage_order: int = 0,
    strides: list[int] | None = None,
    outputs: int = 1,
) -> Any:
    """ONNX MaxPool; its second output are places in the whole flattened input."""
    rank = len(kernel_shape)
    strides, dilations = strides or [1] * rank, dilations or [1] * rank
    sizes = list(x.shape[2:])
    around = windows.paddings(sizes, kernel_shape, strides, dilations, pads, auto_pad)
    if ceil_mode:
        around = windows.rounded_up(sizes, kernel_shape, strides, dilations, around)
    if outputs == 1:
        even = [b if isinstance(b, int) and isinstance(a, int) and a == b and 2 * b <= k else -1
                for (b, a), k in zip(around, kernel_shape, strict=True)]  # fmt: skip
        if min(even) >= 0 and x.is_floating_point():
            return _MAX_POOL[rank](x, kernel_shape, strides, even, dilations)
    kind = x.dtype
    padded = _pad(x if x.is_floating_point() else x.to(torch.float32), around, float("-inf"))
    if outputs == 1:
        return _MAX_POOL[rank](padded, kernel_shape, strides, 0, dilations).to(kind)
    values, places = _MAX_POOL[rank](padded, kernel_shape, strides, 0, dilations, return_indices=True)
    return values.to(kind), _places(places, padded.shape[2:], around, x.shape, storage_order)


def _places(places: Tensor, padded: Sequence[int], around: windows.Pads, shape: Sequence[int], column_major: int) -> Tensor:
    """Places in each padded plane -> places in the whole input."""
    coordinates: list[Tensor] = []
    for size, (before, _) in zip(reversed(padded), reversed(around), strict=True):
        coordinates.insert(0, places % size - before)
        places = places // size
    sizes = list(shape[2:])
    if column_major:
        coordinates, sizes = coordinates[::-1], sizes[::-1]
    inside = torch.zeros_like(places)
    for size, coordinate in zip(sizes, coordinates, strict=True):
        inside = inside * size + coordinate
    plane = 1
    for size in shape[2:]:
        plane *= size
    number = torch.arange(shape[0] * shape[1]).reshape([shape[0], shape[1], *[1] * len(sizes)])
    return number * plane + inside


@operator("MaxUnpool", shapes=("output_shape",))
def max_unpool(
    x: Tensor,
    places: Tensor,
    output_shape: list[int] | None = None,
    kernel_shape: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    """ONNX MaxUnpool: each value back to its place, zeros elsewhere."""
    kernel = kernel_shape or []
    rank = len(kernel)
    strides, pads = strides or [1] * rank, pads or [0] * 2 * rank
    natural = [
        (size - 1) * s + k - pads[i] - pads[i + rank]
        for i, (size, s, k) in enumerate(zip(x.shape[2:], strides, kernel, strict=True))
    ]
    sizes = list(output_shape[2:]) if output_shape else natural
    plane, natural_plane = 1, 1
    for size, own in zip(sizes, natural, strict=True):
        plane, natural_plane = plane * size, natural_plane * own
    inside = places % natural_plane
    flat = torch.zeros(*x.shape[:2], plane, dtype=x.dtype)
    if sizes != natural:  # places are counted in the natural shape
        coordinates: list[Tensor] = []
        for own in reversed(natural):
            coordinates.insert(0, inside % own)
            inside = inside // own
        for size, coordinate in zip(sizes, coordinates, strict=True):
            inside = inside * size + coordinate
    return flat.scatter(2, inside.flatten(2), x.flatten(2)).reshape([*x.shape[:2], *sizes])


@operator("AveragePool")
def average_pool(
    x: Tensor,
    kernel_shape: list[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    """ONNX AveragePool: the mean of what each window holds, padding counted only with `count_include_pad`."""
    rank = len(kernel_shape)
    strides, dilations = strides or [1] * rank, dilations or [1] * rank
    sizes = list(x.shape[2:])
    around = windows.paddings(sizes, kernel_shape, strides, dilations, pads, auto_pad)
    grown = windows.rounded_up(sizes, kernel_shape, strides, dilations, around) if ceil_mode else around
    summed = _window_sum(_pad(x, grown, 0.0), kernel_shape, strides, dilations)
    counted = torch.ones([1, 1, *sizes], dtype=x.dtype)
    counted = _pad(counted, around, 1.0) if count_include_pad else _pad(counted, around, 0.0)
    beyond = [(0, g - a) for (_, g), (_, a) in zip(grown, around, strict=True)]
    return summed / _window_sum(_pad(counted, beyond, 0.0), kernel_shape, strides, dilations)


def _window_sum(x: Tensor, kernel: list[int], strides: list[int], dilations: list[int]) -> Tensor:
    """As a convolution with ones, each channel by itself."""
    ones = torch.ones([1, 1, *kernel], dtype=x.dtype)
    planes = x.reshape([-1, 1, *x.shape[2:]])
    out = _CONV[len(kernel)](planes, ones, None, strides, 0, dilations)
    return out.reshape([x.shape[0], x.shape[1], *out.shape[2:]])


@operator("LpPool")
def lp_pool(
    x: Tensor,
    kernel_shape: list[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: list[int] | None = None,
    p: int = 2,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    """ONNX LpPool."""
    rank = len(kernel_shape)
    strides, dilations = strides or [1] * rank, dilations or [1] * rank
    around = windows.paddings(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad)
    if ceil_mode:
        around = windows.rounded_up(x.shape[2:], kernel_shape, strides, dilations, around)
    return _window_sum(_pad(x.abs() ** p, around, 0.0), kernel_shape, strides, dilations) ** (1 / p)


@operator("GlobalAveragePool")
def global_average_pool(x: Tensor) -> Tensor:
    """ONNX GlobalAveragePool."""
    return x.mean(list(range(2, x.dim())), keepdim=True)


@operator("GlobalMaxPool")
def global_max_pool(x: Tensor) -> Tensor:
    """ONNX GlobalMaxPool."""
    return x.amax(list(range(2, x.dim())), keepdim=True)


@operator("GlobalLpPool")
def global_lp_pool(x: Tensor, p: int = 2) -> Tensor:
    """ONNX GlobalLpPool."""
    return (x.abs() ** p).sum(list(range(2, x.dim())), keepdim=True) ** (1 / p)


@operator("BatchNormalization")
def batch_normalization(
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
        return functional.batch_norm(x, mean, variance, scale, bias, False, 0.0, epsilon)
    axes = [axis for axis in range(x.dim()) if axis != 1]
    now_mean, now_variance = x.mean(axes), x.var(axes, correction=0)
    out = functional.batch_norm(x, now_mean, now_variance, scale, bias, False, 0.0, epsilon)
    keep = momentum
    return out, mean * keep + now_mean * (1 - keep), variance * keep + now_variance * (1 - keep)


@operator("InstanceNormalization")
def instance_normalization(x: Tensor, scale: Tensor, bias: Tensor, epsilon: float = 1e-5) -> Tensor:
    """ONNX InstanceNormalization."""
    return functional.instance_norm(x, weight=scale, bias=bias, eps=epsilon)


@operator("GroupNormalization")
def group_normalization(
    x: Tensor, scale: Tensor, bias: Tensor, num_groups: int, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    """ONNX GroupNormalization; before operator set 21 scale and bias were one a group."""
    if scale.shape[0] == num_groups != x.shape[1]:
        each = x.shape[1] // num_groups
        scale, bias = scale.repeat_interleave(each), bias.repeat_interleave(each)
    return functional.group_norm(x, num_groups, scale, bias, epsilon)


@operator("LayerNormalization")
def layer_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
    outputs: int = 1,
) -> Any:
    """ONNX LayerNormalization; its other outputs are the mean and the inverse deviation."""
    axis = axis % x.dim()
    if outputs == 1 and list(scale.shape) == list(x.shape[axis:]):
        return functional.layer_norm(x, list(x.shape[axis:]), scale, bias, epsilon)
    axes = list(range(axis, x.dim()))
    mean = x.mean(axes, keepdim=True)
    inverse = torch.rsqrt(x.var(axes, correction=0, keepdim=True) + epsilon)
    out = (x - mean) * inverse * scale
    return out if bias is None else out + bias, mean, inverse


@operator("RMSNormalization")
def rms_normalization(x: Tensor, scale: Tensor, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1) -> Tensor:
    """ONNX RMSNormalization, computed in float32 and returned as the scale's type."""
    axes = list(range(axis % x.dim(), x.dim()))
    wide = x.to(torch.float32) if x.dtype in (torch.float16, torch.bfloat16) else x
    return (wide * torch.rsqrt(wide.square().mean(axes, keepdim=True) + epsilon)).to(scale.dtype) * scale


@operator("MeanVarianceNormalization")
def mean_variance_normalization(x: Tensor, axes: list[int] | None = None) -> Tensor:
    """ONNX MeanVarianceNormalization."""
    along = axes if axes is not None else [0, 2, 3]
    return (x - x.mean(along, keepdim=True)) / (x.var(along, correction=0, keepdim=True).sqrt() + 1e-9)


@operator("LRN")
def local_response_normalization(x: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0) -> Tensor:
    """ONNX LRN: over `size` neighbouring channels."""
    before = (size - 1) // 2
    squares = functional.pad(x.square().flatten(2).transpose(1, 2), [before, size - 1 - before])
    summed = squares.unfold(2, size, 1).sum(-1).transpose(1, 2).reshape(x.shape)
    return x / (bias + alpha / size * summed) ** beta


@operator("Dropout", shapes=("training_mode",))
def dropout(x: Tensor, ratio: Any = None, training_mode: Any = False, seed: int | None = None, outputs: int = 1) -> Any:
    """ONNX Dropout: nothing is dropped in inference."""
    if training_mode and ratio is not None and float(ratio):
        raise Unsupported("the model drops values at random (Dropout in training mode); export it for inference")
    return (x, torch.ones_like(x, dtype=torch.bool)) if outputs > 1 else x
