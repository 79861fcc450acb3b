"""Operators that resample images: Resize, Upsample, GridSample, AffineGrid, Col2Im."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Unpack

from maasdam.convert.operators import folding
from maasdam.convert.operators.arrays import Arrays, Tensor
from maasdam.convert.operators.onnx import open_resize
from maasdam.convert.operators.onnx.rearrange import along as spread
from maasdam.convert.operators.resampling import Resampling, taps
from maasdam.convert.operators.table import operator
from maasdam.convert.operators.windows import WindowAttributes, windows_of
from maasdam.errors import Unsupported


@operator("Resize", since=11, shapes=("roi", "scales", "sizes"))
def resize(
    xp: Arrays,
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
    how = Resampling(
        mode, coordinate_transformation_mode, nearest_mode, cubic_coeff_a, bool(exclude_outside), bool(antialias),
        extrapolation_value,
    )  # fmt: skip
    along = [axis % xp.rank(x) for axis in axes] if axes is not None else list(range(xp.rank(x)))
    have = [xp.dims(x)[axis] for axis in along]
    factors = list(scales) if scales else None
    if factors is None and keep_aspect_ratio_policy != "stretch":
        if not all(isinstance(v, int) for v in [*have, *sizes]):
            raise Unsupported("Resize that keeps the ratio of axes whose sizes are not fixed")
        ratios = [size / own for own, size in zip(have, sizes, strict=True)]
        factors = [(min if keep_aspect_ratio_policy == "not_larger" else max)(ratios)] * len(along)
        targets = [math.floor(own * factor + 0.5) for own, factor in zip(have, factors, strict=True)]
    elif factors is None:
        targets = list(sizes)
    else:
        targets = [own if factor == 1 else _scaled(xp, own, factor) for own, factor in zip(have, factors, strict=True)]
    outside: Tensor | None = None
    for i, axis in enumerate(along):
        part = (roi[i], roi[i + len(along)]) if roi else (0.0, 1.0)
        x, beyond = _resized(xp, x, axis, have[i], targets[i], factors[i] if factors else None, how, part)
        if beyond is not None:
            outside = beyond if outside is None else outside | beyond
    return x if outside is None else xp.where(outside, xp.full([], extrapolation_value, x.dtype), x)


def _scaled(xp: Arrays, size: Any, factor: float) -> Any:
    return math.floor(size * factor) if isinstance(size, int) else xp.spatial.scaled(size, factor)


def _resized(
    xp: Arrays, x: Tensor, axis: int, size: Any, target: Any, scale: float | None, how: Resampling, part: Sequence[float]
) -> tuple[Tensor, Tensor | None]:
    crops, are_known = (
        how.coordinate_transformation_mode == "tf_crop_and_resize",
        isinstance(size, int) and isinstance(target, int),
    )
    if (target is size or (are_known and target == size)) and (scale is None or scale == 1) and not crops:
        return x, None
    if not are_known:
        return open_resize.resized(xp, x, axis, size, target, scale, how), None
    found = taps(size, target, scale or target / size, how, (part[0], part[1]))
    places = [xp.tensor(found.indices[:, k]) for k in range(found.indices.shape[1])]
    beyond = spread(xp, xp.tensor(found.outside), axis, xp.rank(x)) if crops else None
    if len(places) == 1:
        return xp.take(x, places[0], axis), beyond
    return open_resize.summed(xp, x, axis, places, [xp.tensor(found.weights[:, k]) for k in range(len(places))]), beyond


@operator("Resize", "Upsample", shapes=("scales",))
def upsample(xp: Arrays, x: Tensor, scales: list[float], mode: str = "nearest") -> Tensor:
    """ONNX Resize before 11, and Upsample: coordinates divided by the scale, rounded down."""
    return resize(
        xp,
        x,
        scales=scales,
        mode="linear" if mode == "bilinear" else mode,
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


@operator("GridSample")
def grid_sample(
    xp: Arrays, x: Tensor, grid: Tensor, align_corners: int = 0, mode: str = "linear", padding_mode: str = "zeros"
) -> Tensor:
    """ONNX GridSample: -1 and 1 are the middles of the outermost samples, or their outer edges."""
    mode = {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode)
    return xp.spatial.grid_sample(x, xp.cast(grid, x.dtype), bool(align_corners), mode, padding_mode)


@operator("AffineGrid", shapes=("size",))
def affine_grid(xp: Arrays, theta: Tensor, size: list[Any], align_corners: int = 0) -> Tensor:
    """ONNX AffineGrid: for each output sample where theta reads it, x first."""
    return xp.spatial.affine_grid(theta, size, bool(align_corners))


@operator("Col2Im", shapes=("image_shape", "block_shape"))
def col2im(xp: Arrays, x: Tensor, image_shape: list[int], block_shape: list[int], **given: Unpack[WindowAttributes]) -> Tensor:
    """ONNX Col2Im: blocks back into an image of any number of axes, what overlaps summed."""
    if not all(isinstance(size, int) for size in (*image_shape, *block_shape)):
        raise Unsupported("Col2Im into an image whose size is not fixed")
    (n, deep, blocks), per_block = xp.dims(x), math.prod(block_shape)
    _, strides, dilations = windows_of(block_shape, given)
    pads = given.get("pads") or [0] * 2 * len(image_shape)
    places = folding.places(image_shape, block_shape, dilations, pads, strides).reshape(-1)
    columns = xp.reshape(x, [n, deep // per_block, per_block * blocks])
    image = xp.spatial.summed_at(columns, xp.tensor(places), math.prod(image_shape) + 1)
    return xp.reshape(image[..., :-1], [n, deep // per_block, *image_shape])
