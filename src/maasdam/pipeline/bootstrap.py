"""How sure a metric is: the percentile bootstrap. Knows each example's share; never answers, engines or limits.

A metric here is a ratio of sums over units (top-1: right over asked; word error rate: errors over words; perplexity: exp of
log-likelihood over tokens). Units are drawn anew with replacement, and the metric is computed of what was drawn:

    shares [units, (above, below)] --RESAMPLES draws of units, the same for both--> metrics --2.5 % and 97.5 %--> interval
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from maasdam.pipeline.report import drop_of

if TYPE_CHECKING:
    from maasdam.core import type_array

RESAMPLES = 2000
LEVEL = 0.95
SEED = 0
AT_ONCE = 1 << 22
"""How many draws are held at once."""

Shares = Sequence[tuple[float, float]]
"""(above, below) of each unit; the metric is the sum of the first over the sum of the second."""


def confidence(
    metric: str,
    reference: Shares,
    candidate: Shares,
    over: str,
    finish: Callable[[float], float] = lambda ratio: ratio,
) -> dict[str, Any] | None:
    """95 % intervals of the reference's metric, the candidate's, and the drop between them, as the report holds them.

    Both are drawn alike (paired), so the drop's interval knows that both saw the same units. `over` names a unit in the
    plural; `finish` turns the ratio into the metric (exp for perplexity). None for fewer than two units: nothing varies.
    Worked example: 90 of 100 right gives about [0.84, 0.95].
    """
    if len(reference) < 2 or len(reference) != len(candidate):
        return None
    drawn = [(finish(r), finish(c)) for r, c in _ratios(np.asarray(reference), np.asarray(candidate))]
    drops = [d for r, c in drawn if (d := drop_of(metric, r, c)) is not None]
    return {
        "level": LEVEL,
        "method": "percentile bootstrap, reference and candidate drawn alike",
        "resamples": RESAMPLES,
        "seed": SEED,
        "over": over,
        "units": len(reference),
        "reference": _interval([r for r, _ in drawn]),
        "candidate": _interval([c for _, c in drawn]),
        "drop": _interval(drops),
    }


def _ratios(reference: type_array, candidate: type_array) -> list[tuple[float, float]]:
    """Both metrics of each resample; one that drew nothing to divide by (no words) is left out."""
    random = np.random.default_rng(SEED)
    units = len(reference)
    rows = max(1, AT_ONCE // units)
    found: list[tuple[float, float]] = []
    for start in range(0, RESAMPLES, rows):
        drawn = random.integers(0, units, (min(rows, RESAMPLES - start), units))
        sums = [(shares[:, 0][drawn].sum(1), shares[:, 1][drawn].sum(1)) for shares in (reference, candidate)]
        (above, below), (above_other, below_other) = sums
        is_some = (below > 0) & (below_other > 0)
        ratios = zip(above[is_some] / below[is_some], above_other[is_some] / below_other[is_some], strict=True)
        found += [(float(r), float(c)) for r, c in ratios]
    return found


def _interval(values: Sequence[float]) -> list[float] | None:
    """[low, high]; None where a value is no number, or there is none."""
    if not values or not all(math.isfinite(v) for v in values):
        return None
    low, high = np.percentile(values, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return [float(low), float(high)]
