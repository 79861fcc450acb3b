"""Kernels of operators along axes."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
from tensorflow import Tensor

from maasdam.convert.operators.tensorflow.sizes import rank, scalar

log_sum_exp, product = tf.reduce_logsumexp, tf.reduce_prod
cumulative_sum, cumulative_product = tf.cumsum, tf.math.cumprod


def largest(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    """Of booleans: any."""
    return (tf.reduce_any if x.dtype == tf.bool else tf.reduce_max)(x, axes, keep)


def least(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    """Of booleans: all."""
    return (tf.reduce_all if x.dtype == tf.bool else tf.reduce_min)(x, axes, keep)


def norm(x: Tensor, p: int, axis: int) -> Tensor:
    """The axis is kept with size 1."""
    return tf.norm(x, p, axis, keepdims=True)


def top_k(x: Tensor, count: Any, axis: int, is_largest: bool) -> tuple[Tensor, Tensor]:
    """TensorFlow sorts along the last axis."""
    last = rank(x) - 1
    order = [*(a for a in range(last + 1) if a != axis), axis]
    moved = x if axis == last else tf.transpose(x, order)
    count = tf.cast(scalar(count), tf.int32)
    places = tf.argsort(moved, direction="DESCENDING" if is_largest else "ASCENDING", stable=True)[..., :count]
    values = tf.gather(moved, places, batch_dims=last)
    places = tf.cast(places, tf.int64)
    if axis == last:
        return values, places
    back = [order.index(a) for a in range(last + 1)]
    return tf.transpose(values, back), tf.transpose(places, back)


def unique(x: Tensor, axis: int, is_sorted: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """TensorFlow's own is never sorted, and does not say which are the first places."""
    values, inverse, counts = tf.raw_ops.UniqueWithCountsV2(x=x, axis=[axis], out_idx=tf.int64)
    places = tf.range(tf.size(inverse, tf.int64), dtype=tf.int64)
    first = tf.math.unsorted_segment_min(places, inverse, tf.size(counts, tf.int64))
    if is_sorted:
        order = _sorted_slices(values, axis)
        back = tf.cast(tf.argsort(order), tf.int64)
        values, first, counts = tf.gather(values, order, axis=axis), tf.gather(first, order), tf.gather(counts, order)
        inverse = tf.gather(back, inverse)
    return values, first, inverse, counts


def _sorted_slices(x: Tensor, axis: int) -> Tensor:
    """The order of slices along an axis, by their first element, then the second, and so on: sorted by the last one first."""
    if rank(x) == 1:
        return tf.argsort(x, stable=True)
    first = tf.transpose(x, [axis, *(a for a in range(rank(x)) if a != axis)])
    columns = tf.transpose(tf.reshape(first, tf.stack([tf.shape(first)[0], -1])))

    def turn(i: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
        return i - 1, tf.gather(order, tf.argsort(tf.gather(columns[i], order), stable=True))

    begin = (tf.shape(columns)[0] - 1, tf.range(tf.shape(columns)[1]))
    shapes = (tf.TensorShape([]), tf.TensorShape([None]))
    return tf.while_loop(lambda i, _: i >= 0, turn, begin, shapes)[1]
