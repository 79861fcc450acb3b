"""Resize of an axis whose size only the run knows: the weights of resampling.py, computed on tensors."""

from __future__ import annotations

from typing import Any

from maasdam.convert.operators.arrays import Arrays, Tensor
from maasdam.convert.operators.onnx.rearrange import along
from maasdam.convert.operators.resampling import Resampling
from maasdam.errors import Unsupported

KNOWN = ("half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners", "tf_half_pixel_for_nn")


def resized(xp: Arrays, x: Tensor, axis: int, size: Any, target: Any, scale: float | None, how: Resampling) -> Tensor:
    """`x` with `target` samples along `axis`. Raises Unsupported for what needs the size beforehand."""
    if how.antialias or how.coordinate_transformation_mode not in KNOWN:
        which = "with antialias" if how.antialias else how.coordinate_transformation_mode
        raise Unsupported(f"Resize {which} of an axis whose size is not fixed; fix the image size of the model")
    if scale is not None and scale == int(scale) and _repeats(how):
        return xp.repeat(x, int(scale), axis)
    length, count, last = xp.real(size, xp.float32), xp.real(target, xp.float32), xp.number(size - 1)
    index = xp.cast(xp.arange(target), xp.float32)
    place = _places(xp, index, length, count, scale, how.coordinate_transformation_mode)

    def inside(indices: Tensor) -> Tensor:
        return xp.clip(xp.clip(xp.cast(indices, xp.int64), 0, None), None, last)

    if how.mode == "nearest":
        return xp.take(x, inside(_nearest(xp, place, how.nearest_mode)), axis)
    radius = 1 if how.mode == "linear" else 2
    first = xp.math.floor(place - radius) + 1
    indices = [first + k for k in range(2 * radius)]
    weights = [_weight(xp, each - place, how) for each in indices]
    if how.exclude_outside:
        weights = [w * xp.cast((i >= 0) & (i < length), w.dtype) for w, i in zip(weights, indices, strict=True)]
    whole = xp.total(weights)
    return summed(xp, x, axis, [inside(i) for i in indices], [w / whole for w in weights])


def summed(xp: Arrays, x: Tensor, axis: int, places: list[Tensor], weights: list[Tensor]) -> Tensor:
    """The weighted sum of what is at these places of an axis, in the element type of `x`."""
    wide = x if xp.is_float(x) else xp.cast(x, xp.float32)
    parts = [
        xp.take(wide, place, axis) * along(xp, xp.cast(weight, wide.dtype), axis, xp.rank(x))
        for place, weight in zip(places, weights, strict=True)
    ]
    return xp.cast(xp.total(parts), x.dtype)


def _repeats(how: Resampling) -> bool:
    """By a whole number, is every sample given that many times in a row?"""
    if how.mode != "nearest":
        return False
    place, rounding = how.coordinate_transformation_mode, how.nearest_mode
    return (place, rounding) == ("asymmetric", "floor") or (
        place in ("half_pixel", "pytorch_half_pixel") and rounding in ("round_prefer_floor", "round_prefer_ceil")
    )


def _places(xp: Arrays, x: Tensor, size: Tensor, target: Tensor, scale: float | None, mode: str) -> Tensor:
    factor = target / size if scale is None else xp.full([], scale, xp.float32)
    if mode == "asymmetric":
        return x / factor
    if mode == "align_corners":
        return x * (size - 1) / xp.clip(size * factor - 1, 1, None)
    if mode == "tf_half_pixel_for_nn":
        return (x + 0.5) / factor
    place = (x + 0.5) / factor - 0.5
    return place * xp.cast(target > 1, place.dtype) if mode == "pytorch_half_pixel" else place


def _nearest(xp: Arrays, place: Tensor, mode: str) -> Tensor:
    if mode == "floor":
        return xp.math.floor(place)
    if mode == "ceil":
        return xp.math.ceil(place)
    return xp.math.ceil(place - 0.5) if mode == "round_prefer_floor" else xp.math.floor(place + 0.5)


def _weight(xp: Arrays, distance: Tensor, how: Resampling) -> Tensor:
    d, a = xp.math.abs(distance), how.cubic_coeff_a
    if how.mode == "linear":
        return xp.clip(1 - d, 0, None)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return xp.where(d <= 1, near, xp.where(d < 2, far, xp.zeros_like(d)))
