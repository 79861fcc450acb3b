"""Operators that resample images: Resize, Upsample, GridSample, AffineGrid, Col2Im."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from maasdam.convert.operators import folding
from maasdam.convert.operators.pytorch import open_resize
from maasdam.convert.operators.pytorch.table import operator
from maasdam.convert.operators.resampling import Sampling, taps
from maasdam.errors import Unsupported


@operator("Resize", since=11, shapes=("roi", "scales", "sizes"))
def resize(
    x: Tensor,
    roi: Any = None,
    scales: Any = None,
    sizes: Any = None,
    antialias: int = 0,
    axes: list[int] | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> Tensor:
    """ONNX Resize: each axis by itself, every output a weighted sum of a few inputs."""
    how = Sampling(
        mode, coordinate_transformation_mode, nearest_mode, cubic_coeff_a, bool(exclude_outside), bool(antialias),
        extrapolation_value,
    )  # fmt: skip
    along = [axis % x.dim() for axis in axes] if axes is not None else list(range(x.dim()))
    factors = list(scales) if scales else None
    targets = _targets(x, along, factors, sizes, keep_aspect_ratio_policy)
    if factors is None and keep_aspect_ratio_policy != "stretch":
        factors = [_kept_ratio(x, along, sizes, keep_aspect_ratio_policy)] * len(along)
    outside: Tensor | None = None
    for i, axis in enumerate(along):
        part = (roi[i], roi[i + len(along)]) if roi else (0.0, 1.0)
        scale = factors[i] if factors else None
        x, beyond = _resized(x, axis, targets[i], scale, how, part)
        if beyond is not None:
            outside = beyond if outside is None else outside | beyond
    return x if outside is None else torch.where(outside, torch.tensor(extrapolation_value, dtype=x.dtype), x)


def _kept_ratio(x: Tensor, along: list[int], sizes: list[int], policy: str) -> float:
    ratios = [size / x.shape[axis] for axis, size in zip(along, sizes, strict=True)]
    return min(ratios) if policy == "not_larger" else max(ratios)


def _targets(x: Tensor, along: list[int], factors: list[float] | None, sizes: Any, policy: str) -> list[Any]:
    if factors is not None:
        return [_scaled(x.shape[axis], factor) for axis, factor in zip(along, factors, strict=True)]
    if policy == "stretch":
        return list(sizes)
    scale = _kept_ratio(x, along, sizes, policy)
    return [math.floor(x.shape[axis] * scale + 0.5) for axis in along]


def _scaled(size: Any, factor: float) -> Any:
    if factor == 1:
        return size
    return math.floor(size * factor) if isinstance(size, int) else open_resize.scaled(size, factor)


def _resized(
    x: Tensor, axis: int, target: Any, scale: float | None, how: Sampling, part: Sequence[float]
) -> tuple[Tensor, Tensor | None]:
    size = x.shape[axis]
    crops = how.coordinate_transformation_mode == "tf_crop_and_resize"
    if (target is size or target == size) and (scale is None or scale == 1) and not crops:
        return x, None
    if not isinstance(size, int) or not isinstance(target, int):
        return open_resize.resized(x, axis, target, scale, how), None
    found = taps(size, target, scale or target / size, how, (part[0], part[1]))
    shape = [1] * x.dim()
    shape[axis] = target
    kind = x.dtype
    if found.indices.shape[1] == 1:
        out = x.index_select(axis, torch.from_numpy(found.indices[:, 0].copy()))
    else:
        wide = x if x.is_floating_point() else x.to(torch.float32)
        parts = [
            wide.index_select(axis, torch.from_numpy(found.indices[:, k].copy()))
            * torch.from_numpy(found.weights[:, k].copy()).to(wide.dtype).reshape(shape)
            for k in range(found.indices.shape[1])
        ]
        out = torch.stack(parts).sum(0).to(kind)
    return out, torch.from_numpy(found.outside).reshape(shape) if crops else None


@operator("Resize", "Upsample", shapes=("scales",))
def upsample(x: Tensor, scales: list[float], mode: str = "nearest") -> Tensor:
    """ONNX Resize before 11, and Upsample: coordinates divided by the scale, rounded down."""
    return resize(
        x,
        scales=scales,
        mode="linear" if mode == "bilinear" else mode,
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


@operator("GridSample")
def grid_sample(x: Tensor, grid: Tensor, align_corners: int = 0, mode: str = "linear", padding_mode: str = "zeros") -> Tensor:
    """ONNX GridSample, of two or three spatial axes."""
    names = {"linear": "bilinear", "cubic": "bicubic"}
    return functional.grid_sample(
        x, grid.to(x.dtype), mode=names.get(mode, mode), padding_mode=padding_mode, align_corners=bool(align_corners)
    )


@operator("AffineGrid", shapes=("size",))
def affine_grid(theta: Tensor, size: list[int], align_corners: int = 0) -> Tensor:
    """ONNX AffineGrid."""
    return functional.affine_grid(theta, size, align_corners=bool(align_corners))


@operator("Col2Im", shapes=("image_shape", "block_shape"))
def col2im(
    x: Tensor,
    image_shape: list[int],
    block_shape: list[int],
    dilations: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    """ONNX Col2Im: blocks back into an image of any number of axes, what overlaps summed."""
    if not all(isinstance(size, int) for size in (*image_shape, *block_shape)):
        raise Unsupported("Col2Im into an image whose size is not fixed")
    rank, taps = len(image_shape), math.prod(block_shape)
    one, pads = [1] * rank, pads or [0] * 2 * rank
    if rank == 2 and pads[:2] == pads[2:]:
        steps, gaps = tuple(strides or one), tuple(dilations or one)
        return functional.fold(x, tuple(image_shape), tuple(block_shape), gaps, tuple(pads[:2]), steps)
    places = torch.from_numpy(folding.places(image_shape, block_shape, dilations or one, pads, strides or one)).flatten()
    columns = x.reshape(x.shape[0], x.shape[1] // taps, -1)
    image = torch.zeros(x.shape[0], x.shape[1] // taps, math.prod(image_shape) + 1, dtype=x.dtype)
    return image.index_add(2, places, columns)[..., :-1].reshape(*columns.shape[:2], *image_shape)
