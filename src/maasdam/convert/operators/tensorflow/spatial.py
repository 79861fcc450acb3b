"""Operators that resample images: Resize, Upsample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import tensorflow as tf
from tensorflow import Tensor

from maasdam.convert.operators.resampling import Sampling, taps
from maasdam.convert.operators.tensorflow import open_resize
from maasdam.convert.operators.tensorflow.sizes import dims, rank
from maasdam.convert.operators.tensorflow.table import operator
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
    along = [axis % rank(x) for axis in axes] if axes is not None else list(range(rank(x)))
    have = [dims(x)[axis] for axis in along]
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
        targets = [own if factor == 1 else _scaled(own, factor) for own, factor in zip(have, factors, strict=True)]
    outside: Tensor | None = None
    for i, axis in enumerate(along):
        part = (roi[i], roi[i + len(along)]) if roi else (0.0, 1.0)
        x, beyond = _resized(x, axis, have[i], targets[i], factors[i] if factors else None, how, part)
        if beyond is not None:
            outside = beyond if outside is None else outside | beyond
    return x if outside is None else tf.where(outside, tf.constant(extrapolation_value, x.dtype), x)


def _scaled(size: Any, factor: float) -> Any:
    if isinstance(size, int):
        return math.floor(size * factor)
    return open_resize.scaled(size, factor)


def _resized(
    x: Tensor, axis: int, size: Any, target: Any, scale: float | None, how: Sampling, part: Sequence[float]
) -> tuple[Tensor, Tensor | None]:
    crops = how.coordinate_transformation_mode == "tf_crop_and_resize"
    if (target is size or (isinstance(target, int) and target == size)) and (scale is None or scale == 1) and not crops:
        return x, None
    if not isinstance(size, int) or not isinstance(target, int):
        if scale is not None and scale == int(scale) and _repeats(how):
            return tf.repeat(x, int(scale), axis), None
        return open_resize.resized(x, axis, size, target, scale, how), None
    found = taps(size, target, scale or target / size, how, (part[0], part[1]))
    shape = [1] * rank(x)
    shape[axis] = target
    if found.indices.shape[1] == 1:
        out = tf.gather(x, found.indices[:, 0], axis=axis)
    else:
        wide = x if x.dtype.is_floating else tf.cast(x, tf.float32)
        parts = [
            tf.gather(wide, found.indices[:, k], axis=axis)
            * tf.reshape(tf.cast(tf.constant(found.weights[:, k]), wide.dtype), shape)
            for k in range(found.indices.shape[1])
        ]
        out = tf.cast(tf.add_n(parts), x.dtype)
    return out, tf.reshape(tf.constant(found.outside), shape) if crops else None


def _repeats(how: Sampling) -> bool:
    """By a whole number, is every sample given that many times in a row?"""
    if how.mode != "nearest":
        return False
    place, rounding = how.coordinate_transformation_mode, how.nearest_mode
    return (place, rounding) == ("asymmetric", "floor") or (
        place in ("half_pixel", "pytorch_half_pixel") and rounding in ("round_prefer_floor", "round_prefer_ceil")
    )


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
