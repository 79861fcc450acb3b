"""NonMaxSuppression and DeformConv, written for how this framework loops and gathers; RoiAlign is composed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from maasdam.convert.operators.pytorch.table import operator


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
