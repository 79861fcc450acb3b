"""Operators of detectors: NonMaxSuppression, DeformConv, RoiAlign."""

from __future__ import annotations

import functools
import operator as arithmetic
from typing import Any, Unpack

from maasdam.convert.operators.arrays import Arrays, Tensor
from maasdam.convert.operators.onnx.rearrange import along
from maasdam.convert.operators.table import operator
from maasdam.convert.operators.windows import WindowAttributes, windows_of


@operator("NonMaxSuppression", shapes=("max_output_boxes_per_class",))
def non_max_suppression(
    xp: Arrays,
    boxes: Tensor,
    scores: Tensor,
    max_output_boxes_per_class: Any = None,
    iou_threshold: Tensor | None = None,
    score_threshold: Tensor | None = None,
    center_point_box: int = 0,
) -> Tensor:
    """ONNX NonMaxSuppression: (batch, class, box) of what is kept; boxes [B, N, 4], scores [B, C, N]."""
    given = max_output_boxes_per_class
    most = (given or [0])[0] if isinstance(given, list) else given or 0
    overlap = xp.full([], 0, xp.float32) if iou_threshold is None else xp.reshape(iou_threshold, [])
    least = None if score_threshold is None else xp.reshape(score_threshold, [])
    if center_point_box:
        middle, half = boxes[..., :2], boxes[..., 2:] / 2
        boxes = xp.concat(middle - half, middle + half, axis=-1)
    return xp.detection.non_max_suppression(boxes, scores, most, overlap, least)


@operator("DeformConv", since=19)
def deformable_conv(
    xp: Arrays,
    x: Tensor,
    weight: Tensor,
    offset: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    group: int = 1,
    offset_group: int = 1,
    **given: Unpack[WindowAttributes],
) -> Tensor:
    """ONNX DeformConv: every place of the kernel is moved by its own offset (y, x) and read between pixels, zeros around."""
    n, channels, height, width = xp.dims(x)
    outputs, _, *kernel = xp.dims(weight)
    taps, out_sizes = kernel[0] * kernel[1], xp.dims(offset)[2:]
    _, strides, dilations = windows_of(kernel, given)
    pads = given.get("pads") or [0, 0, 0, 0]
    moves = xp.reshape(offset, [n, offset_group, taps, 2, *out_sizes])
    places = []
    for i in (0, 1):  # down, then across
        within = xp.reshape(xp.broadcast(along(xp, xp.arange(kernel[i]) * dilations[i], i, 2), kernel), [taps, 1, 1])
        begin = along(xp, xp.arange(out_sizes[i]) * strides[i] - pads[i], i, 2)
        places.append(moves[:, :, :, i] + xp.cast(within + begin, x.dtype))
    planes = xp.reshape(x, [n, offset_group, channels // offset_group, height * width])
    tall, wide = xp.real(height, x.dtype), xp.real(width, x.dtype)
    read = xp.full([], 0, x.dtype)
    for row in (xp.math.floor(places[0]), xp.math.floor(places[0]) + 1):
        for column in (xp.math.floor(places[1]), xp.math.floor(places[1]) + 1):
            is_inside = (row >= 0) & (row < tall) & (column >= 0) & (column < wide)
            share = (1 - xp.math.abs(places[0] - row)) * (1 - xp.math.abs(places[1] - column)) * xp.cast(is_inside, x.dtype)
            above, beside = (
                xp.cast(xp.clip(xp.clip(v, 0, None), None, most - 1), xp.int64) for v, most in ((row, tall), (column, wide))
            )
            place = xp.reshape(above * xp.number(width) + beside, [n, offset_group, -1])
            read = read + xp.detection.gather(planes, place) * xp.reshape(share, [n, offset_group, 1, -1])
    if mask is not None:
        read = read * xp.reshape(mask, [n, offset_group, 1, -1])
    columns = xp.reshape(read, [n, group, channels // group * taps, out_sizes[0] * out_sizes[1]])
    filters = xp.reshape(weight, [group, outputs // group, channels // group * taps])
    out = xp.reshape(xp.matmul(filters, columns), [n, outputs, *out_sizes])
    return out if bias is None else out + xp.reshape(bias, [1, -1, 1, 1])


@operator("RoiAlign", since=16)
def roi_align(
    xp: Arrays,
    x: Tensor,
    rois: Tensor,
    batch: Tensor,
    coordinate_transformation_mode: str = "half_pixel",
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
) -> Tensor:
    """ONNX RoiAlign: each bin the mean, or the largest weighted corner, of samples between pixels."""
    xp.tie(xp.dims(rois)[0], xp.dims(batch)[0])
    is_half = coordinate_transformation_mode == "half_pixel"
    corners = rois * spatial_scale - (0.5 if is_half else 0.0)
    left, top, right, bottom = (corners[:, i] for i in range(4))
    sides = [bottom - top, right - left]
    sides = sides if is_half else [xp.clip(side, 1, None) for side in sides]
    y, is_row = _samples(xp, top, sides[0], output_height, sampling_ratio)
    z, is_column = _samples(xp, left, sides[1], output_width, sampling_ratio)
    rows, columns = _neighbours(xp, y, xp.dims(x)[2]), _neighbours(xp, z, xp.dims(x)[3])
    is_real = (is_row[:, :, :, None, None] & is_column[:, None, None])[..., None]
    pixels, item = xp.transpose(x, [0, 2, 3, 1]), xp.cast(batch, xp.int64)[:, None, None, None, None]
    parts = [
        xp.pixels(pixels, item, row[:, :, :, None, None], column[:, None, None])
        * (high[:, :, :, None, None] * wide[:, None, None])[..., None]
        for row, high in rows
        for column, wide in columns
    ]  # [roi, row of bins, sample, column of bins, sample, channel]
    if mode == "avg":
        real = xp.cast(is_real, x.dtype)
        summed = xp.sum(functools.reduce(arithmetic.add, parts) * real, [2, 4], False)
        return xp.transpose(summed / xp.clip(xp.sum(real, [2, 4], False), 1, None), [0, 3, 1, 2])
    largest = xp.where(is_real, xp.reduce.largest(xp.stack(parts, 0), [0], False), xp.full([], float("-inf"), x.dtype))
    return xp.transpose(xp.reduce.largest(largest, [2, 4], False), [0, 3, 1, 2])


@operator("RoiAlign", since=10)
def roi_align_by_corner(xp: Arrays, x: Tensor, rois: Tensor, batch: Tensor, **attributes: Any) -> Tensor:
    """ONNX RoiAlign before 16: coordinates are not moved by half a pixel, and no region is smaller than a pixel."""
    return roi_align(xp, x, rois, batch, coordinate_transformation_mode="output_half_pixel", **attributes)


def _samples(xp: Arrays, begin: Tensor, size: Tensor, bins: int, ratio: int) -> tuple[Tensor, Tensor]:
    """Places of samples [roi, bin, sample], and which of them are the region's: it may need fewer than others."""
    if ratio > 0:
        needed, most = xp.full(xp.dims(size), ratio, xp.int64), ratio
    else:
        needed = xp.cast(xp.math.ceil(size / bins), xp.int64)
        most = xp.whole(xp.clip(xp.extremes(needed)[1], 1, None))
    turn = xp.arange(most)
    step = (size / bins)[:, None, None]
    within = (xp.cast(turn, size.dtype) + 0.5) * step / xp.cast(xp.clip(needed, 1, None), size.dtype)[:, None, None]
    places = begin[:, None, None] + xp.cast(xp.arange(bins), size.dtype)[:, None] * step + within
    return places, turn < xp.repeat(needed[:, None, None], bins, 1)


def _neighbours(xp: Arrays, place: Tensor, size: Any) -> list[tuple[Tensor, Tensor]]:
    """The pixels before and after each place, with their weights: nothing beyond one pixel outside."""
    last = xp.number(size - 1)
    is_inside = xp.cast((place >= -1) & (place <= xp.real(size, place.dtype)), place.dtype)
    inner = xp.clip(place, 0, None)
    before = xp.clip(xp.cast(inner, xp.int64), None, last)
    after = xp.clip(before + 1, None, last)
    share = xp.where(before >= last, xp.full([], 0, inner.dtype), inner - xp.cast(before, inner.dtype))
    return [(before, (1 - share) * is_inside), (after, share * is_inside)]
