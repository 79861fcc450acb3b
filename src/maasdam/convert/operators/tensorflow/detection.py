"""Kernels of operators of detectors, written for how this framework loops and gathers."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
from tensorflow import Tensor

from maasdam.convert.operators.tensorflow.sizes import dims, reshaped, scalar

MOST = 2**31 - 1
"""Exporters write the largest integer for "all of them"; TensorFlow counts in int32."""


def non_max_suppression(boxes: Tensor, scores: Tensor, most: Any, overlap: Tensor, least: Tensor | None) -> Tensor:
    """TensorFlow's own, a class at a time."""
    most = tf.cast(tf.clip_by_value(scalar(most), 0, MOST), tf.int32)
    least = tf.constant(float("-inf")) if least is None else least
    batch, classes, count = dims(scores)
    of_class = reshaped(scores, [batch * classes, count])

    def kept(i: Tensor) -> Tensor:
        item, kind = i // scalar(classes), i % scalar(classes)
        found = tf.image.non_max_suppression(boxes[item], of_class[i], most, overlap, least)
        found = tf.cast(found, tf.int64)
        return tf.stack([tf.zeros_like(found) + item, tf.zeros_like(found) + kind, found], 1)

    rows = tf.TensorArray(tf.int64, size=tf.cast(scalar(batch * classes), tf.int32), infer_shape=False, element_shape=[None, 3])
    turns = scalar(batch * classes)
    _, rows = tf.while_loop(
        lambda i, _: i < turns,
        lambda i, rows: (i + 1, rows.write(tf.cast(i, tf.int32), kept(i))),
        (tf.zeros([], tf.int64), rows),
    )
    out = rows.concat()
    out.set_shape([None, 3])
    return out


def gather(planes: Tensor, places: Tensor) -> Tensor:
    """Of planes [B, G, C, P], each group's own places [B, G, K]: [B, G, C, K]."""
    return tf.transpose(tf.gather(tf.transpose(planes, [0, 1, 3, 2]), places, batch_dims=2), [0, 1, 3, 2])
