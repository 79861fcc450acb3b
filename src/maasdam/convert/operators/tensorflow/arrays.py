"""TensorFlow's functions as composed operators name them: see operators/composed/arrays.py."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
from tensorflow import Tensor

from maasdam.convert.operators.composed.arrays import Arrays
from maasdam.convert.operators.tensorflow import elementwise, layers, rearrange, reduce
from maasdam.convert.operators.tensorflow.narrow import held, holder
from maasdam.convert.operators.tensorflow.sizes import Size, dims, packed, rank, reshaped, scalar
from maasdam.convert.operators.tensorflow.table import dtype, known


def _limits(kind: tf.DType) -> tuple[Any, Any]:
    known(kind)
    return kind.min, kind.max


def _cast(x: Tensor, kind: tf.DType) -> Tensor:
    known(x.dtype, kind)
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
    float32=tf.float32,
    float64=tf.float64,
    int32=tf.int32,
    int64=tf.int64,
    uint8=tf.uint8,
    average_pool=layers.average_pool,
    concat=rearrange.concat,
    conv=layers.conv,
    gather=rearrange.gather,
    gelu=elementwise.gelu,
    gemm=layers.gemm,
    layer_normalization=layers.layer_normalization,
    leaky_relu=elementwise.leaky_relu,
    matmul=layers.matmul,
    rms_normalization=layers.rms_normalization,
    slice_=rearrange.slice_,
    softmax=reduce.softmax,
    softmax_flat=reduce.softmax_flat,
    split=rearrange.split,
    swish=elementwise.swish,
    transpose=rearrange.transpose,
    where=elementwise.where,
    ceil=tf.math.ceil,
    relu=tf.nn.relu,
    round=tf.round,
    rsqrt=tf.math.rsqrt,
    sigmoid=tf.sigmoid,
    tanh=tf.tanh,
    dtype=dtype,
    holder=holder,
    held=held,
    limits=_limits,
    cast=_cast,
    rank=rank,
    dims=dims,
    number=scalar,
    real=lambda size, kind: tf.cast(scalar(size), kind),
    whole=Size,
    larger=lambda a, b: Size(tf.maximum(scalar(a), scalar(b))),
    tie=lambda a, b: None,
    reshape=reshaped,
    full=lambda sizes, value, kind: tf.fill(packed(sizes), tf.constant(value, kind)),
    arange=lambda count: tf.range(scalar(count), dtype=tf.int64),
    clip=_clip,
    extremes=lambda x: (tf.reduce_min(x), tf.reduce_max(x)),
    mean=lambda x, axes: tf.reduce_mean(x, axes, True),
    repeat=tf.repeat,
    shifted=tf.bitwise.right_shift,
    stack=tf.stack,
    sum=tf.reduce_sum,
    largest=tf.reduce_max,
    linear=_linear,
    scores=lambda query, key: tf.matmul(query, key, transpose_b=True),
    at_places=_at_places,
    spans=_spans,
    pixels=_pixels,
)
