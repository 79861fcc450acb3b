"""Kernels of operators of detectors, written for how this framework loops and gathers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def non_max_suppression(boxes: Tensor, scores: Tensor, most: Any, overlap: Tensor, least: Tensor | None) -> Tensor:
    """One box of every class a turn, the best that is left; how many are kept depends on the data. Of equal scores the first
    wins."""
    batch, classes, count = scores.shape
    turns = torch.sym_min(most, count) if most else 0
    if isinstance(turns, int) and turns <= 0:
        return torch.zeros([0, 3], dtype=torch.int64)
    nothing = torch.full_like(scores, float("-inf"))
    left = scores if least is None else torch.where(scores > least, scores, nothing)
    corners = _corners(boxes).unsqueeze(1).expand(batch, classes, count, 4)
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


def _corners(boxes: Tensor) -> Tensor:
    """Smaller coordinates first: y1, x1, y2, x2 (or x and y, which is all the same to an area)."""
    first, second = boxes[..., :2], boxes[..., 2:]
    return torch.cat([torch.minimum(first, second), torch.maximum(first, second)], -1)


def _area(corners: Tensor) -> Tensor:
    sides = torch.clamp(corners[..., 2:] - corners[..., :2], min=0)
    return sides[..., 0] * sides[..., 1]


def gather(planes: Tensor, places: Tensor) -> Tensor:
    """Of planes [B, G, C, P], each group's own places [B, G, K]: [B, G, C, K]."""
    return planes.gather(3, places[:, :, None].expand(-1, -1, planes.shape[2], -1))
