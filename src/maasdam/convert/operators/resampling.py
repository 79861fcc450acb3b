"""How Resize and Upsample weigh the samples of one axis. Knows ONNX's coordinate rules; never a framework.

Every output sample is a weighted sum of a few input samples: `taps` says which and how much.
Source: the reference text of the ONNX operator Resize.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Resampling:
    """Resize's attributes, named as ONNX names them."""

    mode: str = "nearest"
    coordinate_transformation_mode: str = "half_pixel"
    nearest_mode: str = "round_prefer_floor"
    cubic_coeff_a: float = -0.75
    exclude_outside: bool = False
    antialias: bool = False
    extrapolation_value: float = 0.0


@dataclass(frozen=True, slots=True)
class Taps:
    """For each output sample: `indices` [out, k] of input samples, their `weights` [out, k], and which lie `outside` [out]."""

    indices: NDArray[np.int64]
    weights: NDArray[np.float32]
    outside: NDArray[np.bool_]


def taps(size: int, target: int, scale: float, how: Resampling, roi: tuple[float, float] = (0.0, 1.0)) -> Taps:
    """From `size` samples to `target`; `scale` is target / size as the model states it."""
    place = _places(np.arange(target, dtype=np.float64), size, target, scale, how.coordinate_transformation_mode, roi)
    outside = (place < 0) | (place > size - 1) if how.coordinate_transformation_mode == "tf_crop_and_resize" else place != place
    if how.mode == "nearest":
        whole = _nearest(place, how.nearest_mode).clip(0, size - 1).astype(np.int64)
        return Taps(whole[:, None], np.ones((target, 1), np.float32), outside)
    stretch = max(1.0, 1.0 / scale) if how.antialias else 1.0
    radius = (1 if how.mode == "linear" else 2) * stretch
    first = np.floor(place - radius).astype(np.int64) + 1
    indices = first[:, None] + np.arange(int(np.ceil(2 * radius)))
    distance = (indices - place[:, None]) / stretch
    weights = np.maximum(0.0, 1.0 - np.abs(distance)) if how.mode == "linear" else _cubic(distance, how.cubic_coeff_a)
    if how.exclude_outside:
        weights = np.where((indices < 0) | (indices >= size), 0.0, weights)
    weights = weights / weights.sum(1, keepdims=True)
    return Taps(np.clip(indices, 0, size - 1), weights.astype(np.float32), outside)


def _places(
    x: NDArray[np.float64], size: int, target: int, scale: float, mode: str, roi: tuple[float, float]
) -> NDArray[np.float64]:
    """The coordinate among the inputs of each output sample. ONNX counts the resized length before it is rounded."""
    length = scale * size
    if mode == "asymmetric":
        return x / scale
    if mode == "align_corners":
        return x * (size - 1) / (length - 1) if length > 1 else np.zeros_like(x)
    if mode == "tf_half_pixel_for_nn":
        return (x + 0.5) / scale
    if mode == "tf_crop_and_resize":
        begin, end = roi
        if target == 1:
            return np.full_like(x, 0.5 * (begin + end) * (size - 1))
        return begin * (size - 1) + x * (end - begin) * (size - 1) / (length - 1)
    if mode == "pytorch_half_pixel" and target == 1:
        return np.zeros_like(x)
    if mode == "half_pixel_symmetric":
        adjusted = target / (scale * size)
        return size / 2 * (1 - adjusted) + (x + 0.5) / scale - 0.5
    return (x + 0.5) / scale - 0.5


def _nearest(place: NDArray[np.float64], mode: str) -> NDArray[np.float64]:
    if mode == "floor":
        return np.floor(place)
    if mode == "ceil":
        return np.ceil(place)
    return np.ceil(place - 0.5) if mode == "round_prefer_floor" else np.floor(place + 0.5)


def _cubic(distance: NDArray[np.float64], a: float) -> NDArray[np.float64]:
    """Keys' kernel."""
    d = np.abs(distance)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))
