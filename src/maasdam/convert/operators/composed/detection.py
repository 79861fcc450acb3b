"""RoiAlign, of detectors. What else they have is each framework's own."""

from __future__ import annotations

import functools
import operator as arithmetic
from typing import Any

from maasdam.convert.operators.composed.arrays import Arrays, Tensor
from maasdam.convert.operators.composed.table import operator


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
        summed = xp.sum(functools.reduce(arithmetic.add, parts) * real, [2, 4])
        return xp.transpose(summed / xp.clip(xp.sum(real, [2, 4]), 1, None), [0, 3, 1, 2])
    largest = xp.where(is_real, xp.largest(xp.stack(parts, 0), [0]), xp.full([], float("-inf"), x.dtype))
    return xp.transpose(xp.largest(largest, [2, 4]), [0, 3, 1, 2])


@operator("RoiAlign", since=10)
def roi_align_by_corner(xp: Arrays, x: Tensor, rois: Tensor, batch: Tensor, **attributes: Any) -> Tensor:
    """ONNX RoiAlign before 16: coordinates are not moved by half a pixel, and no region is smaller than a pixel."""
    return roi_align(xp, x, rois, batch, coordinate_transformation_mode="output_half_pixel", **attributes)


def _samples(xp: Arrays, begin: Tensor, size: Tensor, bins: int, ratio: int) -> tuple[Tensor, Tensor]:
    """Places of samples [roi, bin, sample], and which of them are the region's: it may need fewer than others."""
    if ratio > 0:
        needed, most = xp.full(xp.dims(size), ratio, xp.int64), ratio
    else:
        needed = xp.cast(xp.ceil(size / bins), xp.int64)
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
