"""NonMaxSuppression and DeformConv, written for how this framework loops and gathers; RoiAlign is composed."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
from tensorflow import Tensor

from maasdam.convert.operators.tensorflow.sizes import dims, packed, reshaped, scalar
from maasdam.convert.operators.tensorflow.table import operator

MOST = 2**31 - 1
"""Exporters write the largest integer for "all of them"; TensorFlow counts in int32."""


@operator("NonMaxSuppression", shapes=("max_output_boxes_per_class",))
def non_max_suppression(
    boxes: Tensor,
    scores: Tensor,
    max_output_boxes_per_class: Any = None,
    iou_threshold: Tensor | None = None,
    score_threshold: Tensor | None = None,
    center_point_box: int = 0,
) -> Tensor:
    """ONNX NonMaxSuppression: (batch, class, box) of what is kept; boxes [B, N, 4], scores [B, C, N]. TensorFlow's own, a class
    at a time."""
    given = max_output_boxes_per_class
    most = scalar((given or [0])[0] if isinstance(given, list) else given or 0)
    most = tf.cast(tf.clip_by_value(most, 0, MOST), tf.int32)
    overlap = tf.zeros([]) if iou_threshold is None else tf.reshape(iou_threshold, [])
    least = tf.constant(float("-inf")) if score_threshold is None else tf.reshape(score_threshold, [])
    if center_point_box:
        middle, half = boxes[..., :2], boxes[..., 2:] / 2
        boxes = tf.concat([middle - half, middle + half], -1)
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


@operator("DeformConv", since=19)
def deformable_conv(
    x: Tensor,
    weight: Tensor,
    offset: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    offset_group: int = 1,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    """ONNX DeformConv: every place of the kernel is moved by its own offset (y, x) and read between pixels, zeros around."""
    n, channels, height, width = dims(x)
    outputs, _, *kernel = dims(weight)
    taps, (tall, wide), each = kernel[0] * kernel[1], dims(offset)[2:], channels // offset_group
    strides, dilations, pads = strides or [1, 1], dilations or [1, 1], pads or [0, 0, 0, 0]
    kind, plane = x.dtype, tall * wide
    moves = reshaped(offset, [n, offset_group, taps, 2, tall, wide])
    down = tf.repeat(tf.range(kernel[0]), kernel[1]) * dilations[0]
    across = tf.tile(tf.range(kernel[1]), [kernel[0]]) * dilations[1]
    y = moves[:, :, :, 0] + tf.cast(down, kind)[:, None, None] + _stepped(tall, strides[0], pads[0], kind)[:, None]
    z = moves[:, :, :, 1] + tf.cast(across, kind)[:, None, None] + _stepped(wide, strides[1], pads[1], kind)
    pixels = tf.transpose(reshaped(x, [n, offset_group, each, height * width]), [0, 1, 3, 2])
    tops, sides = tf.cast(scalar(height), kind), tf.cast(scalar(width), kind)
    read = tf.zeros([], kind)
    for row in (tf.floor(y), tf.floor(y) + 1):
        for column in (tf.floor(z), tf.floor(z) + 1):
            is_inside = (row >= 0) & (row < tops) & (column >= 0) & (column < sides)
            share = (1 - tf.abs(y - row)) * (1 - tf.abs(z - column)) * tf.cast(is_inside, kind)
            above, beside = (tf.cast(tf.clip_by_value(v, 0, most - 1), tf.int64) for v, most in ((row, tops), (column, sides)))
            read = read + tf.gather(pixels, above * scalar(width) + beside, batch_dims=2) * share[..., None]
    if mask is not None:
        read = read * reshaped(mask, [n, offset_group, taps, tall, wide])[..., None]
    columns = tf.transpose(read, [0, 1, 5, 2, 3, 4])  # [batch, offset group, channel, place in the kernel, y, x]
    columns = reshaped(columns, [n, group, channels // group * taps, plane])
    filters = tf.reshape(weight, [group, outputs // group, channels // group * taps])
    out = tf.reshape(tf.matmul(filters, columns), packed([n, outputs, tall, wide]))
    return out if bias is None else out + tf.reshape(bias, [1, -1, 1, 1])


def _stepped(count: Any, stride: int, before: int, kind: tf.DType) -> Tensor:
    return tf.cast(tf.range(scalar(count), dtype=tf.int64) * stride - before, kind)
