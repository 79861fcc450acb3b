"""Kernels of operators with weights or windows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from maasdam.convert.operators import windows
from maasdam.convert.operators.windows import Each

_CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_CONV_TRANSPOSE = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}
_MAX_POOL = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
rounded_up = windows.rounded_up


def gemm(a: Tensor, b: Tensor, c: Tensor | None, alpha: float, beta: float, turns_a: bool, turns_b: bool) -> Tensor:
    """A linear layer where it can be one."""
    a = a.t() if turns_a else a
    if turns_b and alpha == 1 and (c is None or (c.dim() == 1 and beta == 1)):
        return functional.linear(a, b, c)
    out = torch.matmul(a, b.t() if turns_b else b)
    out = out if alpha == 1 else (out * alpha).to(a.dtype)
    return out if c is None else out + (c if beta == 1 else (c * beta).to(a.dtype))


def conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, around: windows.Pads, strides: Each, dilations: Each, group: int
) -> Tensor:
    """Padding that is the same on both sides is left to the layer; else it is done here and none is left."""
    even: list[Any] = [before for before, _ in around]
    if not all(isinstance(b, int) and isinstance(a, int) and a == b for b, a in around):
        x, even = padded(x, around, 0), [0] * len(around)
    return _CONV[len(around)](x, weight, bias, strides, even, dilations, group)


def padded(x: Tensor, around: windows.Pads, value: float) -> Tensor:
    """Along the spatial axes."""
    if all(isinstance(b, int) and isinstance(a, int) and a == b == 0 for b, a in around):
        return x
    return functional.pad(x, [size for pair in reversed(around) for size in pair], value=value)


def conv_transpose(
    x: Tensor, weight: Tensor, bias: Tensor | None, cut: windows.Pads, strides: Each, dilations: Each, extra: Each, group: int
) -> Tensor:
    """The full result, cut (before, after) each axis; `extra` lengthens it at the end."""
    rank = len(cut)
    if all(isinstance(b, int) and a == b and a >= 0 for b, a in cut):
        even = [before for before, _ in cut]
        return _CONV_TRANSPOSE[rank](x, weight, bias, strides, even, extra, group, dilations)
    full = _CONV_TRANSPOSE[rank](x, weight, bias, strides, 0, 0, group, dilations)
    lengthened = [(-before, e - after) for (before, after), e in zip(cut, extra, strict=True)]
    if bias is None or all(after <= 0 for _, after in lengthened):
        return padded(full, lengthened, 0.0)
    rows = bias.reshape([1, -1, *[1] * rank])
    return padded(full - rows, lengthened, 0.0) + rows


def max_pool(x: Tensor, around: windows.Pads, kernel: Each, strides: Each, dilations: Each) -> Tensor:
    """Integers as float32; padding of its own only where both sides are the same."""
    even = [b if isinstance(b, int) and isinstance(a, int) and a == b and 2 * b <= k else -1
            for (b, a), k in zip(around, kernel, strict=True)]  # fmt: skip
    if min(even) >= 0 and x.is_floating_point():
        return _MAX_POOL[len(kernel)](x, kernel, strides, even, dilations)
    return _MAX_POOL[len(kernel)](_padded_least(x, around), kernel, strides, 0, dilations).to(x.dtype)


def _padded_least(x: Tensor, around: windows.Pads) -> Tensor:
    return padded(x if x.is_floating_point() else x.to(torch.float32), around, float("-inf"))


def max_pool_with_places(
    x: Tensor, around: windows.Pads, kernel: Each, strides: Each, dilations: Each, by_columns: bool
) -> tuple[Tensor, Tensor]:
    """With the place of each in the whole flattened input."""
    wide = _padded_least(x, around)
    values, places = _MAX_POOL[len(kernel)](wide, kernel, strides, 0, dilations, return_indices=True)
    return values.to(x.dtype), _places(places, wide.shape[2:], around, x.shape, by_columns)


def _places(places: Tensor, padded: Sequence[int], around: windows.Pads, shape: Sequence[int], by_columns: bool) -> Tensor:
    """Places in each padded plane -> places in the whole input."""
    coordinates: list[Tensor] = []
    for size, (before, _) in zip(reversed(padded), reversed(around), strict=True):
        coordinates.insert(0, places % size - before)
        places = places // size
    sizes = list(shape[2:])
    if by_columns:
        coordinates, sizes = coordinates[::-1], sizes[::-1]
    inside = torch.zeros_like(places)
    for size, coordinate in zip(sizes, coordinates, strict=True):
        inside = inside * size + coordinate
    number = torch.arange(shape[0] * shape[1]).reshape([shape[0], shape[1], *[1] * len(sizes)])
    return number * math.prod(sizes) + inside


def window_sum(x: Tensor, kernel: Each, strides: Each, dilations: Each) -> Tensor:
    """As a convolution with ones, each channel by itself."""
    ones = torch.ones([1, 1, *kernel], dtype=x.dtype)
    planes = x.reshape([-1, 1, *x.shape[2:]])
    out = _CONV[len(kernel)](planes, ones, None, strides, 0, dilations)
    return out.reshape([x.shape[0], x.shape[1], *out.shape[2:]])


def average(x: Tensor, counted: Tensor | None, kernel: Each, strides: Each, dilations: Each) -> Tensor:
    """Of windows; `counted` [1, 1, ...] has ones for what counts, None where all does."""
    whole = math.prod(kernel) if counted is None else window_sum(counted, kernel, strides, dilations)
    return window_sum(x, kernel, strides, dilations) / whole


def batch_normalization(x: Tensor, mean: Tensor, variance: Tensor, scale: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """torch's own, of given statistics."""
    return functional.batch_norm(x, mean, variance, scale, bias, False, 0.0, epsilon)


def instance_normalization(x: Tensor, scale: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """torch's own."""
    return functional.instance_norm(x, weight=scale, bias=bias, eps=epsilon)


group_normalization = functional.group_norm


def layer_normalization(
    x: Tensor, scale: Tensor, bias: Tensor | None, axis: int, epsilon: float, outputs: int
) -> tuple[Tensor, ...]:
    """torch's own where the scale has the shape of the normalised axes; else with the mean and the inverse deviation."""
    if outputs == 1 and list(scale.shape) == list(x.shape[axis:]):
        return (functional.layer_norm(x, list(x.shape[axis:]), scale, bias, epsilon),)
    axes = list(range(axis, x.dim()))
    mean = x.mean(axes, keepdim=True)
    inverse = torch.rsqrt(x.var(axes, correction=0, keepdim=True) + epsilon)
    out = (x - mean) * inverse * scale
    return out if bias is None else out + bias, mean, inverse


def neighbours_sum(x: Tensor, before: int, size: int) -> Tensor:
    """Over `size` channels, `before` of them before each one."""
    apart = functional.pad(x.flatten(2).transpose(1, 2), [before, size - 1 - before])
    return apart.unfold(2, size, 1).sum(-1).transpose(1, 2).reshape(x.shape)
