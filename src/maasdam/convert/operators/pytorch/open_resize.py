"""Resize of an axis whose size only the run knows: the weights of resampling.py, computed on tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from maasdam.convert.operators.resampling import Sampling
from maasdam.errors import Unsupported

KNOWN = ("half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners", "tf_half_pixel_for_nn")


def scaled(size: Any, factor: float) -> Any:
    """floor(size x factor), of a number or a symbol."""
    if factor == int(factor):
        return size * int(factor)
    if 1 / factor == int(1 / factor):
        return size // int(1 / factor)
    raise Unsupported(f"Resize by {factor:.4g} of an axis whose size is not fixed; fix the image size of the model")


def resized(x: Tensor, axis: int, target: Any, scale: float | None, how: Sampling) -> Tensor:
    """`x` with `target` samples along `axis`. Raises Unsupported for what needs the size beforehand."""
    if how.antialias or how.coordinate_transformation_mode not in KNOWN:
        which = "with antialias" if how.antialias else how.coordinate_transformation_mode
        raise Unsupported(f"Resize {which} of an axis whose size is not fixed; fix the image size of the model")
    size, count = (torch.scalar_tensor(n, dtype=torch.float32) for n in (x.shape[axis], target))
    place = _places(torch.arange(target, dtype=torch.float32), size, count, scale, how.coordinate_transformation_mode)
    last = x.shape[axis] - 1
    if how.mode == "nearest":
        return x.index_select(axis, _nearest(place, how.nearest_mode).to(torch.int64).clamp(min=0).clamp(max=last))
    radius = 1 if how.mode == "linear" else 2
    first = torch.floor(place - radius) + 1
    indices = [first + k for k in range(2 * radius)]
    weights = [_weight(index - place, how) for index in indices]
    if how.exclude_outside:
        weights = [w * ((i >= 0) & (i < size)) for w, i in zip(weights, indices, strict=True)]
    whole = torch.stack(weights).sum(0)
    shape = [1] * axis + [target] + [1] * (x.dim() - axis - 1)
    wide = x if x.is_floating_point() else x.to(torch.float32)
    parts = [
        wide.index_select(axis, i.to(torch.int64).clamp(min=0).clamp(max=last)) * (w / whole).to(wide.dtype).reshape(shape)
        for i, w in zip(indices, weights, strict=True)
    ]
    return torch.stack(parts).sum(0).to(x.dtype)


def _places(x: Tensor, size: Tensor, target: Tensor, scale: float | None, mode: str) -> Tensor:
    factor: Tensor = target / size if scale is None else torch.scalar_tensor(scale, dtype=torch.float32)
    if mode == "asymmetric":
        return x / factor
    if mode == "align_corners":
        return x * (size - 1) / (size * factor - 1).clamp(min=1)
    if mode == "tf_half_pixel_for_nn":
        return (x + 0.5) / factor
    place = (x + 0.5) / factor - 0.5
    return place * (target > 1) if mode == "pytorch_half_pixel" else place


def _nearest(place: Tensor, mode: str) -> Tensor:
    if mode == "floor":
        return torch.floor(place)
    if mode == "ceil":
        return torch.ceil(place)
    return torch.ceil(place - 0.5) if mode == "round_prefer_floor" else torch.floor(place + 0.5)


def _weight(distance: Tensor, how: Sampling) -> Tensor:
    d, a = distance.abs(), how.cubic_coeff_a
    if how.mode == "linear":
        return (1 - d).clamp(min=0)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return torch.where(d <= 1, near, torch.where(d < 2, far, torch.zeros_like(d)))
