"""Kernels of operators that resample images."""

from __future__ import annotations

import itertools
import math
from typing import Any

import tensorflow as tf
from tensorflow import Tensor

from maasdam.convert.operators.tensorflow.sizes import Size, dims, packed, rank, reshaped, scalar


def scaled(size: Size, factor: float) -> Any:
    """floor(size x factor), of a symbol."""
    if factor == int(factor):
        return size * int(factor)
    return Size(tf.cast(tf.floor(tf.cast(size.tensor, tf.float64) * factor), tf.int64))


def grid_sample(x: Tensor, grid: Tensor, by_middles: bool, mode: str, padding: str) -> Tensor:
    """Of any number of spatial axes."""
    sizes, count = dims(x)[2:], rank(x) - 2
    axes = [_Axis(size, by_middles, padding, x.dtype) for size in sizes]
    places = [axis.place(grid[..., count - 1 - i]) for i, axis in enumerate(axes)]  # a grid says x first
    taps = [axis.taps(place, mode) for axis, place in zip(axes, places, strict=True)]
    values = tf.transpose(x, [0, *range(2, count + 2), 1])
    parts = []
    for chosen in itertools.product(*taps):
        weight = math.prod([share for _, share in chosen[1:]], start=chosen[0][1])
        read = tf.gather_nd(values, tf.stack([place for place, _ in chosen], -1), batch_dims=1)
        parts.append(tf.where(weight[..., None] == 0, tf.zeros([], x.dtype), read * weight[..., None]))
    return tf.transpose(tf.add_n(parts), [0, count + 1, *range(1, count + 1)])


class _Axis:
    """One spatial axis: where on it a number from -1 to 1 lies, and which samples around that count how much."""

    def __init__(self, size: Any, by_middles: bool, padding: str, kind: tf.DType) -> None:
        self.size, self.padding, self.by_middles, self.kind = scalar(size), padding, by_middles, kind
        self.last = tf.cast(self.size - 1, kind)

    def place(self, at: Tensor) -> Tensor:
        if self.by_middles:
            return (at + 1) / 2 * self.last
        return ((at + 1) * (self.last + 1) - 1) / 2

    def taps(self, place: Tensor, mode: str) -> list[tuple[Tensor, Tensor]]:
        """(samples, weights) of each neighbour."""
        if mode == "cubic":
            before = tf.floor(place)
            share = place - before
            return [self._tap(self._inside(before + i), _cubic(share - i)) for i in (-1, 0, 1, 2)]
        place = self._inside(place)
        if mode == "nearest":
            return [self._tap(tf.round(place), tf.ones_like(place))]
        before = tf.floor(place)
        return [self._tap(before, before + 1 - place), self._tap(before + 1, place - before)]

    def _inside(self, place: Tensor) -> Tensor:
        """A place outside, moved inside as the padding says; "zeros" leaves it."""
        if self.padding == "zeros":
            return place
        if self.padding == "reflection":
            low = tf.constant(0.0 if self.by_middles else -0.5, self.kind)
            span = self.last - 2 * low
            away = tf.abs(place - low)
            safe = tf.where(span == 0, tf.ones_like(span), span)
            extra = tf.math.floormod(away, safe)
            mirrored = tf.math.floormod(tf.floor(away / safe), 2) == 1
            place = tf.where(span == 0, tf.zeros_like(place), tf.where(mirrored, span - extra, extra) + low)
        return tf.clip_by_value(place, 0, self.last)

    def _tap(self, place: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        is_real = (place >= 0) & (place <= self.last)
        at = tf.cast(tf.clip_by_value(place, 0, self.last), tf.int64)
        return at, tf.where(is_real, weight, tf.zeros_like(weight))


def _cubic(distance: Tensor, a: float = -0.75) -> Tensor:
    """Keys' kernel."""
    d = tf.abs(distance)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return tf.where(d <= 1, near, tf.where(d < 2, far, tf.zeros_like(d)))


def affine_grid(theta: Tensor, size: list[Any], by_middles: bool) -> Tensor:
    """Of any number of spatial axes."""
    spatial, kind = size[2:], theta.dtype
    count = len(spatial)
    ones = tf.ones(packed(spatial), kind)
    columns = [ones]
    for i, length in enumerate(spatial):
        turn = tf.cast(tf.range(scalar(length), dtype=tf.int64), kind)
        whole = tf.cast(scalar(length), kind)
        if by_middles:
            along = tf.where(whole > 1, 2 * turn / tf.maximum(whole - 1, 1) - 1, tf.zeros_like(turn))
        else:
            along = (2 * turn + 1) / whole - 1
        columns.insert(0, tf.reshape(along, [-1 if axis == i else 1 for axis in range(count)]) * ones)
    base = reshaped(tf.stack(columns, -1), [math.prod(spatial), count + 1])
    return reshaped(tf.einsum("pk,nck->npc", base, theta), [dims(theta)[0], *spatial, count])


def summed_at(columns: Tensor, places: Tensor, count: int) -> Tensor:
    """[..., count]: each column of the last axis added to what is at its place."""
    last_first = tf.transpose(columns, [2, 0, 1])
    return tf.transpose(tf.math.unsorted_segment_sum(last_first, places, count), [1, 2, 0])
