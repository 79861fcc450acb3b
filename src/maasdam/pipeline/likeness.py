"""When two arrays say the same though their numbers differ: the same top, the same rows of a list, the same shape but for ones.

Knows arrays. Refuses to know which output they are of, and what is done about it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from maasdam.core import type_array

TIE = 0.05
"""A top that the source has within this share of its row's range below its own top is a tie, in which either is right."""
FOUND = 0.1
"""A row of a list whose length the data decide (boxes kept by NMS) is found again within this share of each column's range."""
MOST_SOUGHT = 300
"""Rows of a list that are looked for on the other side, evenly chosen."""
NOISE = 1e-6
"""A spread of less than this share of the largest value is how float32 rounds: no spread."""


def tops(wanted: type_array, got: type_array) -> tuple[int, float]:
    """(rows, rows with the same top) of an output that ranks; (0, 0) of one that does not.

    Distributions rank along the axis over which they sum to one; whole numbers are compared each, but a list of different
    ones (the classes of a top five) by its first.
    """
    if are_whole(wanted, got):
        if wanted.dtype.itemsize == 1 and wanted.dtype.kind != "b":
            return 0, 0.0  # a number in steps, as int8 graphs give it
        if wanted.dtype.kind != "b" and wanted.ndim > 1 and wanted.shape[-1] > 1 and _is_list(wanted):
            wanted, got = wanted[..., :1], got[..., :1]
        return wanted.size, float((wanted == got).sum())
    axis = next((a for a in (-1, 1) if -wanted.ndim <= a < wanted.ndim and _is_distribution(wanted, a)), None)
    if axis is None:
        return 0, 0.0
    return same_tops(wanted, got, axis)


def same_tops(wanted: type_array, got: type_array, axis: int) -> tuple[int, float]:
    """(rows along `axis`, rows whose largest value is at the same place, or at one that ties with it in the source)."""
    top, other = (np.expand_dims(a.argmax(axis), axis) for a in (wanted, got))
    behind = np.take_along_axis(wanted, top, axis) - np.take_along_axis(wanted, other, axis)
    is_same = (top == other) | (behind < TIE * np.ptp(wanted, axis=axis, keepdims=True))
    return is_same.size, float(is_same.sum())


def are_whole(wanted: type_array, got: type_array) -> bool:
    """Counted or decided: integers, booleans, and the class numbers that some graphs give as floats, the same on both sides."""
    if wanted.dtype.kind in "iub":
        return True
    both = bool(wanted.any()) and np.isfinite(wanted).all() and np.isfinite(got).all()
    return bool(both and (wanted == np.round(wanted)).all() and (got == np.round(got)).all())


def _is_distribution(values: type_array, axis: int) -> bool:
    if values.shape[axis] < 2 or not np.isfinite(values).all() or (values < 0).any():
        return False
    return bool(np.abs(values.sum(axis, dtype=np.float64) - 1).max() < 1e-3)


def _is_list(values: type_array) -> bool:
    """Does no row hold a number twice?"""
    ordered = np.sort(values, axis=-1)
    return bool((ordered[..., 1:] != ordered[..., :-1]).all())


def differ_in_ones(one: Sequence[int], other: Sequence[int]) -> bool:
    """Are two shapes the same but for axes of one?"""
    return list(one) != list(other) and [n for n in one if n != 1] == [n for n in other if n != 1]


def same_but_no_number(one: type_array, other: type_array) -> type_array:
    """Where both hold the same infinity, or both NaN: no difference, and nothing to measure one with."""
    if one.dtype.kind != "f" or other.dtype.kind != "f":
        return np.zeros(one.shape, np.bool_)
    found: type_array = (np.isinf(one) & (one == other)) | (np.isnan(one) & np.isnan(other))
    return found


def as_rows(values: type_array, axis: int) -> type_array:
    """[rows along `axis`, all beside it]."""
    moved = np.moveaxis(values, axis, 0).astype(np.float64)
    return moved.reshape(len(moved), math.prod(moved.shape[1:]))


def nearness(lists: Sequence[type_array]) -> type_array:
    """How far a row may lie, in each column: a share of what that column spans over all the examples."""
    width = max(rows.shape[1] for rows in lists)
    every = np.concatenate([rows for rows in lists if rows.shape[1] == width])
    found: type_array = (
        FOUND * np.ptp(every, axis=0) + NOISE * np.abs(every).max(initial=1.0) if len(every) else np.zeros(width)
    )
    return found


def found_again(wanted: type_array, got: type_array, near: type_array) -> tuple[int, float]:
    """(rows of both, rows that have a like one on the other side); none has where they have other columns."""
    if wanted.shape[1:] != got.shape[1:] or wanted.shape[1:] != near.shape:
        return len(wanted) + len(got), 0.0
    return len(wanted) + len(got), len(wanted) * _share_of(wanted, got, near) + len(got) * _share_of(got, wanted, near)


def _share_of(sought: type_array, among: type_array, near: type_array) -> float:
    """The share of rows that have a like one on the other side, each its own; of `MOST_SOUGHT` where there are more."""
    if not len(sought):
        return 0.0
    chosen = sought[np.linspace(0, len(sought) - 1, min(len(sought), MOST_SOUGHT)).round().astype(np.int64)]
    is_free = np.ones(len(among), np.bool_)
    matched = 0
    for row in chosen:
        at = np.flatnonzero(is_free)
        if len(near):  # few are left by the first column
            at = at[np.abs(among[at, 0] - row[0]) <= near[0]]
        at = at[(np.abs(among[at] - row) <= near).all(axis=1)]
        if len(at):
            is_free[at[0]] = False
            matched += 1
    return matched / len(chosen)
