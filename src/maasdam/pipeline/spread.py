"""Sums over the examples at each place of an output, and what they tell of its slices: spread, residual, ends.

    sums of one example + sums of the next + ... -> along one axis, or of all of it -> Slices -> Part

Knows arrays, and when a slice tells something. Refuses to know examples' order, tasks and limits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from maasdam.pipeline.likeness import NOISE
from maasdam.pipeline.part import Part

if TYPE_CHECKING:
    from maasdam.core import type_array

MOST_SLICES = 256
"""An axis longer than this is positions, not things of different kinds."""
MOST_PLACES = 2**20
"""Numbers of an output that are each told apart: of one with more, long axes are taken together."""
UNLIKE = 10.0
"""How many times the ranges of slices differ that are things of different kinds."""
BARELY = 0.02
"""A slice with less than this share of its group's range may be rounded away: 8 bits have steps of 0.004."""
CONSTANT = 1e-4
"""Variance below this share of the source's: it no longer varies."""
STRAYED = 0.25
"""What had no spread strays where the candidate is off by more than this share of its size, and by more than `OFF` times as
much as it is off where the source varies, and by more than `ROUNDED` of the output's largest value."""
OFF = 10.0
ROUNDED = 1e-4
NOTHING = 1e-3
"""Beside an output that is zero throughout there is no size to compare with: what rounding leaves of a zero."""


@dataclass(slots=True)
class PlaceSums:
    """Over the examples, at each place of an output: counts, sums, squares and ends of both sides."""

    count: type_array
    total: type_array
    squares: type_array
    low: type_array
    high: type_array
    other_total: type_array
    other_squares: type_array
    residual: type_array
    worst: type_array

    @classmethod
    def of(cls, wanted: type_array, got: type_array, axes: tuple[int, ...] = ()) -> PlaceSums:
        """Of one example, the places along `axes` taken together: one of these after the other, since outputs may be large."""
        apart = np.asarray(wanted - got)

        def total(values: type_array) -> type_array:
            found: type_array = values.sum(axes, keepdims=True) if axes else values
            return found

        low, high = (wanted.min(axes, keepdims=True), wanted.max(axes, keepdims=True)) if axes else (wanted, wanted)
        residual = total(apart**2)
        np.abs(apart, out=apart)
        return cls(
            count=np.full(low.shape, float(math.prod(wanted.shape[i] for i in axes))),
            total=total(wanted),
            squares=total(wanted**2),
            low=low,
            high=high,
            other_total=total(got),
            other_squares=total(got**2),
            residual=residual,
            worst=apart.max(axes, keepdims=True) if axes else apart,
        )

    def __add__(self, more: PlaceSums) -> PlaceSums:
        return PlaceSums(**{name: way(getattr(self, name), getattr(more, name)) for name, way in _WAYS.items()})

    def over(self, axes: tuple[int, ...]) -> PlaceSums:
        """The places along `axes` taken together, as one place."""
        if not axes:
            return self
        return PlaceSums(**{name: way.reduce(getattr(self, name), axes, keepdims=True) for name, way in _WAYS.items()})


_WAYS = dict.fromkeys(PlaceSums.__slots__, np.add) | {"low": np.minimum, "high": np.maximum, "worst": np.maximum}
"""How two of each become one."""


@dataclass(frozen=True, slots=True)
class Slices:
    """What is known of slices along one axis, one entry each: or of the whole output, in one entry."""

    count: type_array
    variance: type_array
    """Sum of squares about each place's own mean over the examples."""
    other_variance: type_array
    residual: type_array
    low: type_array
    range: type_array
    largest: type_array
    worst: type_array
    norms: tuple[type_array, type_array]
    """Sums of squares of both sides."""

    @property
    def varies(self) -> type_array:
        """Which have a spread beyond how float32 rounds."""
        found: type_array = self.variance > self.count * (NOISE * np.maximum(self.largest, 1e-300)) ** 2
        return found

    @property
    def is_share(self) -> type_array:
        """Which lie between 0 and 1: a probability of nearly nothing is nothing, however it varies."""
        found: type_array = (self.low >= 0) & (self.low + self.range <= 1)
        return found

    @property
    def is_constant(self) -> type_array:
        """Which varied and no longer do."""
        found: type_array = self.varies & (self.other_variance <= CONSTANT * self.variance)
        return found

    def part(self, output: str, at: Sequence[int], axis: int | None = None, *, is_one: bool = False) -> Part:
        """Those at `at` as one part."""
        chosen = np.asarray(at)
        variance, residual = float(self.variance[chosen].sum()), float(self.residual[chosen].sum())
        ours, theirs = (float(n[chosen].sum()) for n in self.norms)
        lengths = (ours * theirs) ** 0.5
        tells = bool(self.varies[chosen].any())
        return Part(
            output=output,
            axis=axis,
            slices=() if axis is None else tuple(int(i) for i in at),
            value=1 - residual / variance if tells else None,
            cosine=(ours + theirs - residual) / 2 / lengths if lengths else None,
            max_abs_diff=float(self.worst[chosen].max()),
            largest=float(self.largest[chosen].max()),
            spread=(variance / float(self.count[chosen].sum())) ** 0.5,
            is_constant=tells and float(self.other_variance[chosen].sum()) <= CONSTANT * variance,
            is_one_slice=is_one,
        )


def groups_of(each: Slices) -> list[tuple[int, ...]]:
    """The slices that vary, in groups between whose ranges nothing lies within ten times: boxes apart from scores."""
    order = sorted(np.flatnonzero(each.varies), key=lambda i: -float(each.range[i]))
    groups: list[list[int]] = []
    for at in order:
        if groups and float(each.range[groups[-1][-1]]) < UNLIKE * float(each.range[at]):
            groups[-1].append(int(at))
        else:
            groups.append([int(at)])
    shares = [g for g in groups if each.is_share[g].all()]
    most = max((float(each.range[g].max()) for g in shares), default=0.0)
    rare = [g for g in shares if float(each.range[g].max()) < BARELY * most]  # classes that no example holds
    return [tuple(sorted(g)) for g in groups if g not in rare]


def near_to_still(each: Slices, whole: Slices) -> type_array:
    """How far each slice without spread may be off: by a share of its own size, or as what varies beside it is off.

    A candidate of 8 bits is off everywhere by steps of the output; one that is right where the source varies has no excuse.
    """
    beside, at = (each, each.varies) if each.varies.any() else (whole, whole.varies)  # one example varies over its places alone
    off = (float(beside.residual[at].sum()) / float(beside.count[at].sum())) ** 0.5
    usual = min(OFF * off, STRAYED * float(beside.range[at].min()))
    found: type_array = np.maximum(STRAYED * each.largest, max(usual, ROUNDED * float(whole.largest[0])))
    return found


def closeness(apart: float, largest: float) -> float:
    """1 equal, 0 off by all it is. Beside zeros everything that is no rounding is off by all."""
    if not largest:
        return 0.0 if apart > NOTHING else 1.0
    return max(0.0, 1 - apart / largest)


def taken_together(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Axes of positions that a large output is summed over at once: the last, which may be classes, only where it must be."""
    if math.prod(shape) <= MOST_PLACES:
        return ()
    long = [i for i, size in enumerate(shape) if size > MOST_SLICES]
    but_last = tuple(i for i in long if i != len(shape) - 1)
    is_enough = math.prod(size for i, size in enumerate(shape) if i not in but_last) <= MOST_PLACES
    return but_last if is_enough else tuple(long)


def flattened(sums: PlaceSums) -> PlaceSums:
    """All places taken together, as one place of one axis: what outputs of different ranks have in common."""
    whole = sums.over(tuple(range(sums.total.ndim)))
    return PlaceSums(**{name: getattr(whole, name).reshape(-1) for name in _WAYS})
