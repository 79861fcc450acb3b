"""TensorFlow's functions as operators name them: see operators/arrays.py."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
from tensorflow import Tensor

from maasdam.convert.operators.arrays import Arrays, kinds_of
from maasdam.convert.operators.tensorflow import (
    control,
    detection,
    elementwise,
    layers,
    rearrange,
    recurrent,
    reduce,
    signal,
    spatial,
)
from maasdam.convert.operators.tensorflow.sizes import (
    Size,
    broadcast_sizes,
    dims,
    packed,
    rank,
    reshaped,
    scalar,
    small,
    tensor,
)
from maasdam.errors import Unsupported


def _known(*kinds: tf.DType) -> None:
    """Raise Unsupported for element types TensorFlow has but hardly computes on: 8-bit and narrower floats, 4-bit integers."""
    for kind in kinds:
        if kind not in kinds_of(tf).values():
            raise Unsupported(f"TensorFlow does not compute {kind.name} as ONNX does")


def _limits(kind: tf.DType) -> tuple[Any, Any]:
    _known(kind)
    return kind.min, kind.max


def _cast(x: Tensor, kind: tf.DType) -> Tensor:
    _known(x.dtype, kind)
    if kind == tf.bool and x.dtype != tf.bool:
        return tf.not_equal(x, tf.zeros([], x.dtype))
    return tf.cast(x, kind)


def _clip(x: Tensor, least: Any, most: Any) -> Tensor:
    x = x if most is None else tf.minimum(x, most)
    return x if least is None else tf.maximum(x, least)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out = layers.matmul(x, tf.transpose(weight))
    return out if bias is None else out + bias


def _at_places(x: Tensor, places: Tensor) -> Tensor:
    return tf.transpose(tf.gather(tf.transpose(x, [0, 2, 1, 3]), places, batch_dims=1), [0, 2, 1, 3])


def _spans(mask: Tensor, batch: Any) -> tuple[Tensor, Tensor | None]:
    """Zeros begin what the mask does not: whether it does may not be known while tracing."""
    count = scalar(batch)
    return mask[:count], tf.concat([mask[count:], tf.zeros([count], mask.dtype)], 0)[:count]


def _pixels(x: Tensor, item: Tensor, row: Tensor, column: Tensor) -> Tensor:
    grid = tf.zeros_like(row + column)
    return tf.gather_nd(x, tf.stack([item + grid, row + grid, column + grid], -1))


ARRAYS = Arrays(
    name="TensorFlow",
    control=control,
    detection=detection,
    elementwise=elementwise,
    layers=layers,
    rearrange=rearrange,
    recurrent=recurrent,
    reduce=reduce,
    signal=signal,
    spatial=spatial,
    math=tf.math,
    float32=tf.float32,
    float64=tf.float64,
    int32=tf.int32,
    int64=tf.int64,
    uint8=tf.uint8,
    kinds=kinds_of(tf),
    limits=_limits,
    is_float=lambda x: x.dtype.is_floating,
    cast=_cast,
    as_tensor=tf.cast,
    tensor=tensor,
    small=small,
    known=control.known,
    rank=rank,
    dims=dims,
    number=scalar,
    real=lambda size, kind: tf.cast(scalar(size), kind),
    whole=Size,
    larger=lambda a, b: Size(tf.maximum(scalar(a), scalar(b))),
    tie=lambda a, b: None,
    broadcast_sizes=broadcast_sizes,
    reshape=reshaped,
    transpose=tf.transpose,
    squeeze=lambda x, axes: tf.squeeze(x, axes) if axes else x,
    unsqueeze=tf.expand_dims,
    broadcast=lambda x, sizes: tf.broadcast_to(x, packed(sizes)),
    concat=lambda *values, axis: tf.concat(values, axis),
    split=lambda x, sizes, axis: tf.split(x, packed(sizes), axis, num=len(sizes)),
    stack=tf.stack,
    flip=lambda x, axis: tf.reverse(x, [axis]),
    repeat=tf.repeat,
    tile=lambda x, times: tf.tile(x, packed(times)),
    take=lambda x, places, axis: tf.gather(x, places, axis=axis),
    nonzero=tf.where,
    full=lambda sizes, value, kind: tf.fill(packed(sizes), tf.constant(value, kind)),
    zeros_like=tf.zeros_like,
    arange=lambda *bounds: tf.range(*(scalar(v) for v in bounds), dtype=tf.int64),
    equal=tf.equal,
    where=tf.where,
    clip=_clip,
    extremes=lambda x: (tf.reduce_min(x), tf.reduce_max(x)),
    total=tf.add_n,
    sum=tf.reduce_sum,
    mean=tf.reduce_mean,
    moments=layers.moments,
    gelu=lambda x, approximate: tf.nn.gelu(x, approximate == "tanh"),
    leaky_relu=lambda x, alpha: tf.where(x >= 0, x, x * alpha),
    relu=tf.nn.relu,
    shifted=tf.bitwise.right_shift,
    matmul=layers.matmul,
    linear=_linear,
    scores=lambda query, key: tf.matmul(query, key, transpose_b=True),
    einsum=tf.einsum,
    at_places=_at_places,
    spans=_spans,
    pixels=_pixels,
)
