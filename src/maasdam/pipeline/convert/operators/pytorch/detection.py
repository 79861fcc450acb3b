"""Operators of detectors: NonMaxSuppression, RoiAlign, DeformConv."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from maasdam.pipeline.convert.operators.pytorch.table import operator


@operator("NonMaxSuppression", shapes=("max_output_boxes_per_class",))
def non_max_suppression(
    boxes: Tensor,
    scores: Tensor,
    max_output_boxes_per_class: Any = None,
    iou_threshold: Tensor | None = None,
    score_threshold: Tensor | None = None,
    center_point_box: int = 0,
) -> Tensor:
    """ONNX NonMaxSuppression: (batch, class, box) of what is kept; boxes [B, N, 4], scores [B, C, N].

    One box of every class a turn, the best that is left; how many are kept depends on the data. Of equal scores the first wins.
    """
    batch, classes, count = scores.shape
    given = max_output_boxes_per_class
    most = (given or [0])[0] if isinstance(given, list) else given or 0
    turns = torch.sym_min(most, count) if most else 0
    if isinstance(turns, int) and turns <= 0:
        return torch.zeros([0, 3], dtype=torch.int64)
    overlap = torch.zeros(()) if iou_threshold is None else iou_threshold.reshape(())
    nothing = torch.full_like(scores, float("-inf"))
    left = scores if score_threshold is None else torch.where(scores > score_threshold.reshape(()), scores, nothing)
    corners = _corners(boxes, center_point_box).unsqueeze(1).expand(batch, classes, count, 4)
    areas = _area(corners)

    def goes_on(turn: Tensor, left: Tensor, picked: Tensor) -> Tensor:
        return (turn < turns) & (left > float("-inf")).any()

    def step(turn: Tensor, left: Tensor, picked: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        best, place = left.max(-1, keepdim=True)
        is_one = best > float("-inf")
        one = corners.gather(2, place.unsqueeze(-1).expand(-1, -1, -1, 4))
        inside = _area(torch.cat([torch.maximum(one, corners)[..., :2], torch.minimum(one, corners)[..., 2:]], -1))
        own = areas.gather(2, place)
        union = own + areas - inside
        hides = (own > 0) & (areas > 0) & (inside > 0) & (inside / union > overlap)
        hides = hides | (torch.arange(left.shape[2]) == place)
        now = torch.where(is_one, place, -torch.ones_like(place))
        at = torch.arange(picked.shape[2]) == turn
        return turn + 1, torch.where(hides, float("-inf"), left), torch.where(at, now, picked)

    picked = torch.full([batch, classes, turns], -1, dtype=torch.int64)
    picked = torch.while_loop(goes_on, step, (torch.zeros((), dtype=torch.int64), left.clone(), picked))[2]
    found = torch.nonzero(picked >= 0)
    return torch.stack([found[:, 0], found[:, 1], picked[found[:, 0], found[:, 1], found[:, 2]]], 1)


def _corners(boxes: Tensor, center_point_box: int) -> Tensor:
    """Smaller coordinates first: y1, x1, y2, x2 (or x and y, which is all the same to an area)."""
    first, second = boxes[..., :2], boxes[..., 2:]
    if center_point_box:
        return torch.cat([first - second / 2, first + second / 2], -1)
    return torch.cat([torch.minimum(first, second), torch.maximum(first, second)], -1)


def _area(corners: Tensor) -> Tensor:
    sides = torch.clamp(corners[..., 2:] - corners[..., :2], min=0)
    return sides[..., 0] * sides[..., 1]


@operator("RoiAlign", since=16)
def roi_align(
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
    torch._check(rois.shape[0] == batch.shape[0])  # so that torch.export takes their numbers for one
    is_half = coordinate_transformation_mode == "half_pixel"
    left, top, right, bottom = (rois * spatial_scale - (0.5 if is_half else 0.0)).unbind(1)
    sizes = [bottom - top, right - left]
    sizes = sizes if is_half else [torch.clamp(size, min=1) for size in sizes]
    y = _samples(top, sizes[0], output_height, sampling_ratio)
    z = _samples(left, sizes[1], output_width, sampling_ratio)
    rows, columns = _neighbours(y[0], x.shape[2]), _neighbours(z[0], x.shape[3])
    is_real = y[1].reshape(-1, 1, y[1].shape[1], 1, 1) & z[1].reshape(-1, 1, 1, 1, z[1].shape[1])
    pixels = x.permute(0, 2, 3, 1)
    item = batch.to(torch.int64).reshape(-1, 1, 1, 1, 1)
    parts = [
        pixels[item, row.unsqueeze(3).unsqueeze(4), column.unsqueeze(1).unsqueeze(2)]
        * (high.unsqueeze(3).unsqueeze(4) * wide.unsqueeze(1).unsqueeze(2)).unsqueeze(-1)
        for row, high in rows
        for column, wide in columns
    ]  # [roi, row of bins, sample, column of bins, sample, channel]
    if mode == "avg":
        summed = (torch.stack(parts).sum(0) * is_real.unsqueeze(-1)).sum([2, 4])
        return (summed / is_real.sum([2, 4]).clamp(min=1).unsqueeze(-1).to(x.dtype)).permute(0, 3, 1, 2)
    largest = torch.where(is_real.unsqueeze(-1), torch.stack(parts).amax(0), float("-inf"))
    return largest.amax([2, 4]).permute(0, 3, 1, 2)


@operator("RoiAlign", since=10)
def roi_align_by_corner(x: Tensor, rois: Tensor, batch: Tensor, **attributes: Any) -> Tensor:
    """ONNX RoiAlign before 16: coordinates are not moved by half a pixel, and no region is smaller than a pixel."""
    return roi_align(x, rois, batch, coordinate_transformation_mode="output_half_pixel", **attributes)


def _samples(begin: Tensor, size: Tensor, bins: int, ratio: int) -> tuple[Tensor, Tensor]:
    """Places of samples [roi, bin, sample], and which of them [roi, sample] are the region's: it may need fewer than others."""
    needed = torch.ceil(size / bins).to(torch.int64) if ratio <= 0 else torch.full_like(size, ratio, dtype=torch.int64)
    most: Any = needed.max().clamp(min=1).item() if ratio <= 0 else ratio
    turn = torch.arange(most)
    step = (size / bins).reshape(-1, 1, 1)
    within = (turn + 0.5) * step / needed.clamp(min=1).reshape(-1, 1, 1)
    places = begin.reshape(-1, 1, 1) + torch.arange(bins).reshape(1, -1, 1) * step + within
    return places, turn < needed.reshape(-1, 1)


def _neighbours(place: Tensor, size: Any) -> list[tuple[Tensor, Tensor]]:
    """The pixels before and after each place, with their weights: nothing beyond one pixel outside."""
    is_inside = ((place >= -1) & (place <= size)).to(place.dtype)
    inner = torch.clamp(place, min=0)
    before = torch.clamp(inner.to(torch.int64), max=size - 1)
    after = torch.clamp(before + 1, max=size - 1)
    share = torch.where(before >= size - 1, torch.zeros_like(inner), inner - before)
    return [(before, (1 - share) * is_inside), (after, share * is_inside)]


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
    n, channels, height, width = x.shape
    outputs, _, *kernel = weight.shape
    taps, (tall, wide) = kernel[0] * kernel[1], offset.shape[2:]
    strides, dilations, pads = strides or [1, 1], dilations or [1, 1], pads or [0, 0, 0, 0]
    moves = offset.reshape(n, offset_group, taps, 2, tall, wide)
    down = torch.arange(kernel[0]).repeat_interleave(kernel[1]) * dilations[0]
    across = torch.arange(kernel[1]).repeat(kernel[0]) * dilations[1]
    y = moves[:, :, :, 0] + down.reshape(-1, 1, 1) + (torch.arange(tall) * strides[0] - pads[0]).reshape(-1, 1)
    z = moves[:, :, :, 1] + across.reshape(-1, 1, 1) + (torch.arange(wide) * strides[1] - pads[1])
    planes = x.reshape(n, offset_group, channels // offset_group, height * width)
    read = torch.zeros((), dtype=x.dtype)
    for row in (torch.floor(y), torch.floor(y) + 1):
        for column in (torch.floor(z), torch.floor(z) + 1):
            is_inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            share = (1 - (y - row).abs()) * (1 - (z - column).abs()) * is_inside
            place = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).to(torch.int64)
            spread = place.reshape(n, offset_group, 1, -1).expand(-1, -1, channels // offset_group, -1)
            read = read + planes.gather(3, spread) * share.reshape(n, offset_group, 1, -1)
    if mask is not None:
        read = read * mask.reshape(n, offset_group, 1, -1)
    columns = read.reshape(n, group, channels // group * taps, tall * wide)
    filters = weight.reshape(group, outputs // group, channels // group * taps)
    out = torch.matmul(filters, columns).reshape(n, outputs, tall, wide)
    return out if bias is None else out + bias.reshape(1, -1, 1, 1)
