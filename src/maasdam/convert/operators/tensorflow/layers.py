"""Kernels of operators with weights or windows.

TensorFlow on a CPU wants the channels last: what needs its convolutions and poolings is moved there and back.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf
from tensorflow import Tensor

from maasdam.convert.operators import windows
from maasdam.convert.operators.tensorflow.rearrange import pad, slice_
from maasdam.convert.operators.tensorflow.sizes import Size, dims, packed, rank, reshaped, scalar
from maasdam.convert.operators.windows import Each
from maasdam.errors import Unsupported


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """Of vectors too, which TensorFlow does not multiply."""
    row, column = rank(a) == 1, rank(b) == 1
    out = tf.matmul(tf.expand_dims(a, 0) if row else a, tf.expand_dims(b, 1) if column else b)
    out = tf.squeeze(out, -1) if column else out
    return tf.squeeze(out, -1 if column else -2) if row else out


def gemm(a: Tensor, b: Tensor, c: Tensor | None, alpha: float, beta: float, turns_a: bool, turns_b: bool) -> Tensor:
    """By the flags of tf.matmul: weights are not turned in every run."""
    out = tf.matmul(a, b, transpose_a=turns_a, transpose_b=turns_b)
    out = out if alpha == 1 else out * tf.cast(alpha, out.dtype)
    if c is not None and rank(c) == 2 and c.shape[0] == 1:  # TensorFlow's optimiser takes a row for a bias and fails
        c = tf.squeeze(c, 0)
    return out if c is None else out + (c if beta == 1 else c * tf.cast(beta, c.dtype))


def _last(x: Tensor) -> Tensor:
    """Channels from the second axis to the last."""
    return tf.transpose(x, [0, *range(2, rank(x)), 1])


def _first(x: Tensor) -> Tensor:
    """Channels from the last axis to the second."""
    return tf.transpose(x, [0, rank(x) - 1, *range(1, rank(x) - 1)])


def conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, around: windows.Pads, strides: Each, dilations: Each, group: int
) -> Tensor:
    """Kernels of three axes have no dilation in TensorFlow: theirs is spread."""
    count = len(around)
    filters = tf.transpose(weight, [*range(2, count + 2), 1, 0])  # ..., in, out
    if count == 3:
        filters, dilations = _spread(filters, dilations), [1] * 3
    out = _convolved(_last(padded(x, around, 0)), filters, strides, dilations, group)
    return _first(out if bias is None else tf.nn.bias_add(out, bias))


def _convolved(x: Tensor, filters: Tensor, strides: Each, dilations: Each, group: int) -> Tensor:
    """Without padding, channels last."""
    count = len(strides)
    if count > 3:
        raise Unsupported("convolution over more than three axes")
    if count == 1:
        wide = _convolved(tf.expand_dims(x, 1), tf.expand_dims(filters, 0), [strides[0]] * 2, [1, dilations[0]], group)
        return tf.squeeze(wide, 1)
    if group == 1:
        return tf.nn.convolution(x, filters, strides, "VALID", dilations=dilations)
    alone = group == x.shape[-1] and count == 2
    if alone and strides[0] == strides[1] and (strides[0] == 1 or max(dilations) == 1):
        height, width, _, outputs = filters.shape.as_list()
        each = tf.reshape(filters, [height, width, group, outputs // group])
        return tf.nn.depthwise_conv2d(x, each, [1, *strides, 1], "VALID", dilations=dilations)
    parts = zip(tf.split(x, group, -1), tf.split(filters, group, -1), strict=True)
    return tf.concat([_convolved(part, own, strides, dilations, 1) for part, own in parts], -1)


def padded(x: Tensor, around: windows.Pads, value: Any) -> Tensor:
    """Along the spatial axes; by symbols that may be negative."""
    least = [(_at_least_zero(before), _at_least_zero(after)) for before, after in around]
    return pad(x, [(0, 0), (0, 0), *least], tf.constant(value, x.dtype))


def _at_least_zero(size: Any) -> Any:
    return Size(tf.maximum(size.tensor, 0)) if isinstance(size, Size) else size


def _spread(filters: Tensor, dilations: Sequence[int]) -> Tensor:
    """Zeros between the rows of a kernel in place of a dilation; spatial axes first."""
    for axis, gap in enumerate(dilations):
        if gap > 1:
            sizes = filters.shape.as_list()
            apart = tf.pad(tf.expand_dims(filters, axis + 1), [[0, gap - 1] if i == axis + 1 else [0, 0]
                                                               for i in range(len(sizes) + 1)])  # fmt: skip
            reach = (sizes[axis] - 1) * gap + 1
            sizes[axis] *= gap
            filters = slice_(tf.reshape(apart, sizes), [0], [reach], [axis], [1])
    return filters


def conv_transpose(
    x: Tensor, weight: Tensor, bias: Tensor | None, cut: windows.Pads, strides: Each, dilations: Each, extra: Each, group: int
) -> Tensor:
    """The full result, cut (before, after) each axis; `extra` lengthens it at the end."""
    count = len(cut)
    filters = _spread(tf.transpose(weight, [*range(2, count + 2), 1, 0]), dilations)  # ..., out, in
    parts = zip(tf.split(_last(x), group, -1), tf.split(filters, group, -1), strict=True)
    full = _first(tf.concat([_transposed(part, own, strides) for part, own in parts], -1))
    full = pad(full, [(0, 0), (0, 0), *((-before, e - after) for (before, after), e in zip(cut, extra, strict=True))])
    return full if bias is None else full + tf.reshape(bias, [1, -1, *[1] * count])


def _transposed(x: Tensor, filters: Tensor, strides: list[int]) -> Tensor:
    if len(strides) == 1:
        return tf.squeeze(_transposed(tf.expand_dims(x, 1), tf.expand_dims(filters, 0), [1, *strides]), 1)
    sizes, kernel = dims(x), filters.shape.as_list()
    reach = [(size - 1) * s + k for size, s, k in zip(sizes[1:-1], strides, kernel[: len(strides)], strict=True)]
    whole = packed([sizes[0], *reach, kernel[-2]])
    return tf.nn.conv_transpose(x, filters, tf.cast(whole, tf.int32), strides, "VALID")


def rounded_up(sizes: Sequence[Any], how: windows.WindowShape, pads: windows.Pads) -> windows.Pads:
    """As windows.rounded_up; where sizes are symbols, the run sees whether the last window starts behind the input."""
    out: windows.Pads = []
    for k, stride, dilation, (before, after) in zip(*how, windows.rounded_up(sizes, how, pads), strict=True):
        if isinstance(after, Size):
            behind = tf.cast(scalar(after) >= (k - 1) * dilation + 1, tf.int64)
            after = Size(after.tensor - stride * behind)
        out.append((before, after))
    return out


def _windows(x: Tensor, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> Iterator[Tensor]:
    """For each place of the kernel, what lies there in every window."""
    count = len(kernel)
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    sizes = dims(x)[2:]
    for place in itertools.product(*(range(k) for k in kernel)):
        starts = [p * d for p, d in zip(place, dilations, strict=True)]
        ends = [start + size - r + 1 for start, size, r in zip(starts, sizes, reach, strict=True)]
        yield slice_(x, starts, ends, list(range(2, count + 2)), list(strides))


def _pooled(how: str, x: Tensor, kernel: Each, strides: Each, dilations: Each) -> Tensor:
    """MAX or AVG of full windows, channels first."""
    if max(dilations) == 1 and x.dtype in (tf.float32, tf.float16, tf.float64, tf.bfloat16) and len(kernel) in (2, 3):
        function = (tf.nn.max_pool2d, tf.nn.max_pool3d) if how == "MAX" else (tf.nn.avg_pool2d, tf.nn.avg_pool3d)
        return _first(function[len(kernel) - 2](_last(x), kernel, strides, "VALID"))
    found = _windows(x, kernel, strides, dilations)
    if how == "MAX":
        return functools.reduce(tf.maximum, found)
    return functools.reduce(tf.add, found) / tf.cast(math.prod(kernel), x.dtype)


def max_pool(x: Tensor, around: windows.Pads, kernel: Each, strides: Each, dilations: Each) -> Tensor:
    """Of full windows, what is beyond them being the least number."""
    return _pooled("MAX", _padded_least(x, around), kernel, strides, dilations)


def _padded_least(x: Tensor, around: windows.Pads) -> Tensor:
    return padded(x, around, x.dtype.min if x.dtype.is_integer else float("-inf"))


def max_pool_with_places(
    x: Tensor, around: windows.Pads, kernel: Each, strides: Each, dilations: Each, by_columns: bool
) -> tuple[Tensor, Tensor]:
    """With the place of each in the whole flattened input; of equal ones the first."""
    sizes = dims(x)
    places = tf.range(scalar(math.prod(sizes)), dtype=tf.int64)
    if by_columns:
        backwards = [0, 1, *range(len(kernel) + 1, 1, -1)]
        places = tf.transpose(reshaped(places, [sizes[i] for i in backwards]), backwards)
    places = padded(reshaped(places, sizes), around, -1)
    seen = (_windows(v, kernel, strides, dilations) for v in (_padded_least(x, around), places))
    best, at = None, None
    for value, place in zip(*seen, strict=True):
        if best is None:
            best, at = value, place
        else:
            wins = value > best
            best, at = tf.where(wins, value, best), tf.where(wins, place, at)
    return best, at


def average(x: Tensor, counted: Tensor | None, kernel: Each, strides: Each, dilations: Each) -> Tensor:
    """Of windows; `counted` [1, 1, ...] has ones for what counts, None where all does."""
    mean = _pooled("AVG", x, kernel, strides, dilations)
    return mean if counted is None else mean / _pooled("AVG", counted, kernel, strides, dilations)


def window_sum(x: Tensor, kernel: Each, strides: Each, dilations: Each) -> Tensor:
    """The mean times how many there are."""
    return _pooled("AVG", x, kernel, strides, dilations) * math.prod(kernel)


def _rows(parameter: Tensor, x: Tensor) -> Tensor:
    """One number a channel, as something that broadcasts."""
    return tf.reshape(parameter, [1, -1, *[1] * (rank(x) - 2)])


def moments(x: Tensor, axes: list[int], keep: bool) -> tuple[Tensor, Tensor]:
    """The mean and the variance."""
    mean = tf.reduce_mean(x, axes, True)
    variance = tf.reduce_mean(tf.square(x - mean), axes, keep)
    return mean if keep else tf.squeeze(mean, axes), variance


def batch_normalization(x: Tensor, mean: Tensor, variance: Tensor, scale: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """Of given statistics, as one product and one sum."""
    factor = scale * tf.cast(tf.math.rsqrt(variance + epsilon), scale.dtype)
    return x * tf.cast(_rows(factor, x), x.dtype) + tf.cast(_rows(bias - tf.cast(mean, scale.dtype) * factor, x), x.dtype)


def instance_normalization(x: Tensor, scale: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """By moments."""
    mean, variance = moments(x, list(range(2, rank(x))), True)
    return (x - mean) * tf.math.rsqrt(variance + epsilon) * _rows(scale, x) + _rows(bias, x)


def group_normalization(x: Tensor, count: int, scale: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """By moments of channels in groups."""
    sizes = dims(x)
    groups = reshaped(x, [sizes[0], count, sizes[1] // count, *sizes[2:]])
    mean, variance = moments(groups, list(range(2, rank(x) + 1)), True)
    out = reshaped((groups - mean) * tf.math.rsqrt(variance + epsilon), sizes)
    return out * _rows(scale, x) + _rows(bias, x)


def layer_normalization(
    x: Tensor, scale: Tensor, bias: Tensor | None, axis: int, epsilon: float, outputs: int
) -> tuple[Tensor, ...]:
    """In float32 at least; with the mean and the inverse deviation."""
    wide = tf.cast(x, tf.float32) if x.dtype.size < 4 else x
    mean, variance = moments(wide, list(range(axis, rank(x))), True)
    inverse = tf.math.rsqrt(variance + epsilon)
    out = tf.cast((wide - mean) * inverse, x.dtype) * scale
    return out if bias is None else out + bias, mean, inverse


def neighbours_sum(x: Tensor, before: int, size: int) -> Tensor:
    """Over `size` channels, `before` of them before each one."""
    channels = dims(x)[1]
    apart = pad(x, [(before, size - 1 - before) if axis == 1 else (0, 0) for axis in range(rank(x))])
    return functools.reduce(tf.add, [slice_(apart, [i], [channels + i], [1], [1]) for i in range(size)])
