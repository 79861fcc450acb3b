"""Operators with weights or windows: products, convolutions, poolings, normalisations.

TensorFlow on a CPU wants the channels last: what needs its convolutions and poolings is moved there and back.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf
from tensorflow import Tensor

from maasdam.convert.operators import windows
from maasdam.convert.operators.tensorflow.rearrange import pad, slice_
from maasdam.convert.operators.tensorflow.sizes import Size, dims, packed, product, rank, reshaped, scalar
from maasdam.convert.operators.tensorflow.table import operator
from maasdam.errors import Unsupported


@operator("MatMul")
def matmul(a: Tensor, b: Tensor) -> Tensor:
    """ONNX MatMul."""
    row, column = rank(a) == 1, rank(b) == 1
    out = tf.matmul(tf.expand_dims(a, 0) if row else a, tf.expand_dims(b, 1) if column else b)
    out = tf.squeeze(out, -1) if column else out
    return tf.squeeze(out, -1 if column else -2) if row else out


@operator("Gemm")
def gemm(
    a: Tensor, b: Tensor, c: Tensor | None = None, alpha: float = 1.0, beta: float = 1.0, transA: int = 0, transB: int = 0
) -> Tensor:
    """ONNX Gemm."""
    out = tf.matmul(a, b, transpose_a=bool(transA), transpose_b=bool(transB))
    out = out if alpha == 1 else out * tf.cast(alpha, out.dtype)
    if c is not None and rank(c) == 2 and c.shape[0] == 1:  # TensorFlow's optimiser takes a row for a bias and fails
        c = tf.squeeze(c, 0)
    return out if c is None else out + (c if beta == 1 else c * tf.cast(beta, c.dtype))


@operator("Einsum")
def einsum(*values: Tensor, equation: str) -> Tensor:
    """ONNX Einsum."""
    return tf.einsum(equation.replace(" ", ""), *values)


def _last(x: Tensor) -> Tensor:
    """Channels from the second axis to the last."""
    return tf.transpose(x, [0, *range(2, rank(x)), 1])


def _first(x: Tensor) -> Tensor:
    """Channels from the last axis to the second."""
    return tf.transpose(x, [0, rank(x) - 1, *range(1, rank(x) - 1)])


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
    kernel: list[int] = weight.shape.as_list()[2:]
    count = len(kernel)
    strides, dilations = strides or [1] * count, dilations or [1] * count
    x = _padded(x, windows.paddings(dims(x)[2:], kernel, strides, dilations, pads, auto_pad))
    filters = tf.transpose(weight, [*range(2, count + 2), 1, 0])  # ..., in, out
    if count == 3:
        filters, dilations = _spread(filters, kernel, dilations), [1] * 3
    out = _convolved(_last(x), filters, strides, dilations, group)
    return _first(out if bias is None else tf.nn.bias_add(out, bias))


def _convolved(x: Tensor, filters: Tensor, strides: list[int], dilations: list[int], group: int) -> Tensor:
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


def _padded(x: Tensor, around: windows.Pads, value: Any = 0) -> Tensor:
    """Spatial axes, channels first."""
    befores, afters = [b for b, _ in around], [a for _, a in around]
    at_least = [Size(tf.maximum(v.tensor, 0)) if isinstance(v, Size) else v for v in [*befores, *afters]]
    return pad(x, at_least, tf.constant(value, x.dtype), list(range(2, rank(x))))


def _spread(filters: Tensor, kernel: Sequence[int], dilations: Sequence[int]) -> Tensor:
    """Zeros between the rows of a kernel in place of a dilation; spatial axes first."""
    for axis, (size, gap) in enumerate(zip(kernel, dilations, strict=True)):
        if gap > 1:
            sizes = filters.shape.as_list()
            apart = tf.pad(tf.expand_dims(filters, axis + 1), [[0, gap - 1] if i == axis + 1 else [0, 0]
                                                               for i in range(len(sizes) + 1)])  # fmt: skip
            sizes[axis] *= gap
            filters = slice_(tf.reshape(apart, sizes), [0], [(size - 1) * gap + 1], [axis])
    return filters


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
    kernel: list[int] = weight.shape.as_list()[2:]
    count = len(kernel)
    strides, dilations, extra = strides or [1] * count, dilations or [1] * count, output_padding or [0] * count
    cut = windows.transposed(dims(x)[2:], kernel, strides, dilations, pads, extra, output_shape, auto_pad)
    filters = _spread(tf.transpose(weight, [*range(2, count + 2), 1, 0]), kernel, dilations)  # ..., out, in
    parts = zip(tf.split(_last(x), group, -1), tf.split(filters, group, -1), strict=True)
    full = _first(tf.concat([_transposed(part, own, strides) for part, own in parts], -1))
    pads = [-b for b, _ in cut] + [e - a for (_, a), e in zip(cut, extra, strict=True)]
    full = pad(full, pads, axes=list(range(2, count + 2)))
    return full if bias is None else full + tf.reshape(bias, [1, -1, *[1] * count])


def _transposed(x: Tensor, filters: Tensor, strides: list[int]) -> Tensor:
    if len(strides) == 1:
        return tf.squeeze(_transposed(tf.expand_dims(x, 1), tf.expand_dims(filters, 0), [1, *strides]), 1)
    sizes, kernel = dims(x), filters.shape.as_list()
    reach = [(size - 1) * s + k for size, s, k in zip(sizes[1:-1], strides, kernel[: len(strides)], strict=True)]
    whole = packed([sizes[0], *reach, kernel[-2]])
    return tf.nn.conv_transpose(x, filters, tf.cast(whole, tf.int32), strides, "VALID")


def _rounded_up(
    sizes: Sequence[Any], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], pads: windows.Pads
) -> windows.Pads:
    """As windows.rounded_up; where sizes are symbols, the run sees whether the last window starts behind the input."""
    out: windows.Pads = []
    grown = windows.rounded_up(sizes, kernel, strides, dilations, pads)
    for k, stride, dilation, (before, after) in zip(kernel, strides, dilations, grown, strict=True):
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


def _pooled(how: str, x: Tensor, kernel: list[int], strides: list[int], dilations: list[int]) -> Tensor:
    """MAX or AVG of full windows, channels first."""
    if max(dilations) == 1 and x.dtype in (tf.float32, tf.float16, tf.float64, tf.bfloat16) and len(kernel) in (2, 3):
        function = (tf.nn.max_pool2d, tf.nn.max_pool3d) if how == "MAX" else (tf.nn.avg_pool2d, tf.nn.avg_pool3d)
        return _first(function[len(kernel) - 2](_last(x), kernel, strides, "VALID"))
    found = _windows(x, kernel, strides, dilations)
    if how == "MAX":
        return functools.reduce(tf.maximum, found)
    return functools.reduce(tf.add, found) / tf.cast(product(kernel), x.dtype)


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
    count = len(kernel_shape)
    strides, dilations = strides or [1] * count, dilations or [1] * count
    sizes = dims(x)
    around = windows.paddings(sizes[2:], kernel_shape, strides, dilations, pads, auto_pad)
    if ceil_mode:
        around = _rounded_up(sizes[2:], kernel_shape, strides, dilations, around)
    padded = _padded(x, around, x.dtype.min if x.dtype.is_integer else float("-inf"))
    if outputs == 1:
        return _pooled("MAX", padded, kernel_shape, strides, dilations)
    places = tf.range(scalar(product(sizes)), dtype=tf.int64)
    if storage_order:
        backwards = [0, 1, *range(count + 1, 1, -1)]
        places = tf.transpose(reshaped(places, [sizes[i] for i in backwards]), backwards)
    places = _padded(reshaped(places, sizes), around, -1)
    best, at = None, None
    for value, place in zip(*(_windows(v, kernel_shape, strides, dilations) for v in (padded, places)), strict=True):
        if best is None:
            best, at = value, place
        else:
            wins = value > best
            best, at = tf.where(wins, value, best), tf.where(wins, place, at)
    return best, at


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
    count = len(kernel)
    strides, pads = strides or [1] * count, pads or [0] * 2 * count
    sizes = dims(x)
    natural = [(size - 1) * s + k - pads[i] - pads[i + count]
               for i, (size, s, k) in enumerate(zip(sizes[2:], strides, kernel, strict=True))]  # fmt: skip
    wanted = list(output_shape[2:]) if output_shape else natural
    flat = tf.reshape(tf.cast(places, tf.int64), [-1])
    coordinates: list[Tensor] = []
    for own in reversed([*sizes[:2], *natural]):  # places are counted in the natural shape
        coordinates.insert(0, flat % scalar(own))
        flat = flat // scalar(own)
    return tf.scatter_nd(tf.stack(coordinates, -1), tf.reshape(x, [-1]), packed([*sizes[:2], *wanted]))


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
    count = len(kernel_shape)
    strides, dilations = strides or [1] * count, dilations or [1] * count
    sizes = dims(x)[2:]
    around = windows.paddings(sizes, kernel_shape, strides, dilations, pads, auto_pad)
    grown = _rounded_up(sizes, kernel_shape, strides, dilations, around) if ceil_mode else around
    mean = _pooled("AVG", _padded(x, grown), kernel_shape, strides, dilations)
    if not ceil_mode and (count_include_pad or all(isinstance(v, int) and v == 0 for pair in around for v in pair)):
        return mean
    counted = _padded(tf.ones(packed([1, 1, *sizes]), x.dtype), around, 1 if count_include_pad else 0)
    beyond = [(0, g - a) for (_, g), (_, a) in zip(grown, around, strict=True)]
    return mean / _pooled("AVG", _padded(counted, beyond), kernel_shape, strides, dilations)


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
    count = len(kernel_shape)
    strides, dilations = strides or [1] * count, dilations or [1] * count
    around = windows.paddings(dims(x)[2:], kernel_shape, strides, dilations, pads, auto_pad)
    if ceil_mode:
        around = _rounded_up(dims(x)[2:], kernel_shape, strides, dilations, around)
    mean = _pooled("AVG", _padded(tf.abs(x) ** p, around), kernel_shape, strides, dilations)
    return (mean * product(kernel_shape)) ** (1 / p)


def _spatial(x: Tensor) -> list[int]:
    return list(range(2, rank(x)))


@operator("GlobalAveragePool")
def global_average_pool(x: Tensor) -> Tensor:
    """ONNX GlobalAveragePool."""
    return tf.reduce_mean(x, _spatial(x), True)


@operator("GlobalMaxPool")
def global_max_pool(x: Tensor) -> Tensor:
    """ONNX GlobalMaxPool."""
    return tf.reduce_max(x, _spatial(x), True)


@operator("GlobalLpPool")
def global_lp_pool(x: Tensor, p: int = 2) -> Tensor:
    """ONNX GlobalLpPool."""
    return tf.reduce_sum(tf.abs(x) ** p, _spatial(x), True) ** (1 / p)


def _rows(parameter: Tensor, x: Tensor) -> Tensor:
    """One number a channel, as something that broadcasts."""
    return tf.reshape(parameter, [1, -1, *[1] * (rank(x) - 2)])


def _moments(x: Tensor, axes: list[int]) -> tuple[Tensor, Tensor]:
    mean = tf.reduce_mean(x, axes, True)
    return mean, tf.reduce_mean(tf.square(x - mean), axes, True)


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
        return _normalized(x, mean, variance, scale, bias, epsilon)
    now_mean, now_variance = (tf.reshape(v, [-1]) for v in _moments(x, [axis for axis in range(rank(x)) if axis != 1]))
    out = _normalized(x, now_mean, now_variance, scale, bias, epsilon)
    keep = momentum
    return out, mean * keep + now_mean * (1 - keep), variance * keep + now_variance * (1 - keep)


def _normalized(x: Tensor, mean: Tensor, variance: Tensor, scale: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    factor = scale * tf.cast(tf.math.rsqrt(variance + epsilon), scale.dtype)
    return x * tf.cast(_rows(factor, x), x.dtype) + tf.cast(_rows(bias - tf.cast(mean, scale.dtype) * factor, x), x.dtype)


@operator("InstanceNormalization")
def instance_normalization(x: Tensor, scale: Tensor, bias: Tensor, epsilon: float = 1e-5) -> Tensor:
    """ONNX InstanceNormalization."""
    mean, variance = _moments(x, _spatial(x))
    return (x - mean) * tf.math.rsqrt(variance + epsilon) * _rows(scale, x) + _rows(bias, x)


@operator("GroupNormalization")
def group_normalization(
    x: Tensor, scale: Tensor, bias: Tensor, num_groups: int, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    """ONNX GroupNormalization; before operator set 21 scale and bias were one a group."""
    sizes = dims(x)
    each = sizes[1] // num_groups
    if scale.shape[0] == num_groups != sizes[1]:
        scale, bias = tf.repeat(scale, each), tf.repeat(bias, each)
    groups = reshaped(x, [sizes[0], num_groups, each, *sizes[2:]])
    mean, variance = _moments(groups, list(range(2, rank(x) + 1)))
    out = reshaped((groups - mean) * tf.math.rsqrt(variance + epsilon), sizes)
    return out * _rows(scale, x) + _rows(bias, x)


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
    wide = tf.cast(x, tf.float32) if x.dtype.size < 4 else x
    mean, variance = _moments(wide, list(range(axis % rank(x), rank(x))))
    inverse = tf.math.rsqrt(variance + epsilon)
    out = tf.cast((wide - mean) * inverse, x.dtype) * scale
    out = out if bias is None else out + bias
    return (out, mean, inverse)[:outputs] if outputs > 1 else out


@operator("RMSNormalization")
def rms_normalization(x: Tensor, scale: Tensor, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1) -> Tensor:
    """ONNX RMSNormalization, computed in float32 and returned as the scale's type."""
    wide = tf.cast(x, tf.float32) if x.dtype.size < 4 else x
    mean = tf.reduce_mean(tf.square(wide), list(range(axis % rank(x), rank(x))), True)
    return tf.cast(wide * tf.math.rsqrt(mean + epsilon), scale.dtype) * scale


@operator("MeanVarianceNormalization")
def mean_variance_normalization(x: Tensor, axes: list[int] | None = None) -> Tensor:
    """ONNX MeanVarianceNormalization."""
    mean, variance = _moments(x, axes if axes is not None else [0, 2, 3])
    return (x - mean) / (tf.sqrt(variance) + 1e-9)


@operator("LRN")
def local_response_normalization(x: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0) -> Tensor:
    """ONNX LRN: over `size` neighbouring channels."""
    before, channels = (size - 1) // 2, dims(x)[1]
    squares = pad(tf.square(x), [before, size - 1 - before], axes=[1])
    summed = functools.reduce(tf.add, [slice_(squares, [i], [channels + i], [1]) for i in range(size)])
    return x / (bias + alpha / size * summed) ** beta


@operator("Dropout", shapes=("training_mode",))
def dropout(x: Tensor, ratio: Any = None, training_mode: Any = False, seed: int | None = None, outputs: int = 1) -> Any:
    """ONNX Dropout: nothing is dropped in inference."""
    known = 1.0 if ratio is None else tf.get_static_value(ratio)
    if training_mode and (known is None or float(known)) and ratio is not None:
        raise Unsupported("the model drops values at random (Dropout in training mode); export it for inference")
    return (x, tf.ones_like(x, tf.bool)) if outputs > 1 else x
