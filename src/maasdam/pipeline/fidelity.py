"""How much of what an output tells survives: each output, and each of its unlike slices, against its own spread.

Knows examples and outputs; what slices tell is known by `spread`, when tops and lists are alike by `likeness`. Refuses to know
engines, tasks and limits.

    what two models said to the examples --add--> sums at each place of each output --parts--> Part

An output that holds boxes (0 to 640) and scores (0 to 1) is two things: its slices along that axis are grouped by range, and
no group hides behind another. *Fidelity* is 1 - residual / variance over the examples: 1 is equal, 0 is as good as a
constant. Outputs that rank (probabilities, class numbers) are judged by how often the top is the same instead.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from maasdam.core import Tensors
from maasdam.pipeline.likeness import as_rows, differ_in_ones, found_again, nearness, same_but_no_number, same_tops, tops
from maasdam.pipeline.part import Part
from maasdam.pipeline.spread import (
    BARELY,
    MOST_SLICES,
    STRAYED,
    UNLIKE,
    PlaceSums,
    Slices,
    closeness,
    flattened,
    groups_of,
    near_to_still,
    taken_together,
)

if TYPE_CHECKING:
    from maasdam.core import type_array

MUCH = 0.25
"""A slice with this share of its group's range is judged by itself too."""
FEW = 16
"""Numbers that stand alone, up to so many beside each other, are each judged as an output of its own."""
KEPT_BYTES = 8 << 20
"""Of each output, in case it is such a list."""
SHOWN = 24
"""Parts that a report lists, the worst first."""


@dataclass(slots=True)
class Fidelity:
    """Gathers one run after the other: of a source, and of what is held to it."""

    _outputs: dict[str, _Output] = field(default_factory=dict)
    _parts: tuple[Part, ...] | None = None
    """Of what was added so far."""

    def add(self, source: Sequence[Tensors], candidate: Sequence[Tensors]) -> None:
        """One example's runs, both in the same order. Outputs of other names or ranks are not compared: parity says so."""
        self._parts = None
        for wanted, got in zip(source, candidate, strict=False):
            for name in wanted.keys() & got.keys():
                self._outputs.setdefault(name, _Output(name)).add(np.asarray(wanted[name]), np.asarray(got[name]))

    def parts(self) -> tuple[Part, ...]:
        """Every part of every output, those without spread included."""
        if self._parts is None:
            self._parts = tuple(part for output in self._outputs.values() for part in output.parts())
        return self._parts

    @property
    def agreement(self) -> float | None:
        """Mean over the outputs that rank, else over those that are one row of numbers; None where there are none."""
        found = [p.value for p in self.parts() if p.measure == "agreement" and p.value is not None]
        found = found or [o.same_top / o.one_row for o in self._outputs.values() if o.one_row]
        return sum(found) / len(found) if found else None

    @property
    def lost(self) -> float | None:
        """What the worst part lost, 0 nothing and 1 all of it, each in the measure that is asked of it; None: nothing to judge.

        Infinite where a part became a constant or no number.
        """
        judged = self._judged(self.parts())
        if any(p.is_constant for p in judged) or any(o.is_broken for o in self._outputs.values()):
            return math.inf
        return max((_lost(p) for p in judged), default=None)

    def _judged(self, parts: Sequence[Part]) -> list[Part]:
        """Those with spread; where none has any, the outputs by how close they are."""
        return [p for p in parts if p.value is not None] or [
            replace(p, measure="closeness", value=closeness(p.max_abs_diff, p.largest))
            for p in parts
            if p.axis is None and p.max_abs_diff is not None and p.largest is not None
        ]

    def worst(self) -> list[Part]:
        """The parts that are judged, the worst first."""
        return sorted(self._judged(self.parts()), key=lambda p: (not p.is_constant, -_lost(p)))

    def to_json(self) -> dict[str, Any]:
        """{"fidelity": the lowest, "parts": the worst first, "without_spread": how many were left out}."""
        worst = self.worst()
        whole = [p.value for p in worst if p.measure == "fidelity" and not p.is_one_slice and p.value is not None]
        return {
            "fidelity": min(whole, default=None),
            "parts": [p.to_json() for p in worst[:SHOWN]],
            "without_spread": sum(p.value is None for p in self.parts()),
        }


def of_tokens(wanted: Sequence[type_array], got: Sequence[type_array]) -> Fidelity:
    """Of log-likelihoods, an array of any length each text: every token is an example of the one number."""
    found = Fidelity()
    for one, other in zip(wanted, got, strict=True):
        for a, b in zip(one, other, strict=False):
            found.add([{"log_likelihoods": np.asarray([[a]])}], [{"log_likelihoods": np.asarray([[b]])}])
    return found


@dataclass(slots=True)
class _Output:
    """One output over the examples."""

    name: str
    sums: PlaceSums | None = None
    runs: int = 0
    open_axes: frozenset[int] = frozenset()
    """Axes whose length differs between examples: their places are taken together."""
    is_broken: bool = False
    """Did the candidate once give another kind of answer, or no number where the source gave one?"""
    ranks: bool = True
    """Is every row so far a distribution, or a number of a class?"""
    rows: int = 0
    same: float = 0.0
    one_row: int = 0
    """Runs in which it was one row of numbers, of which one is the largest."""
    same_top: float = 0.0
    list_axis: int | None = None
    """The axis along which the candidate gave more or fewer rows than the source: a list, whose rows are looked for."""
    kept: list[tuple[type_array, type_array]] = field(default_factory=list)
    """Runs of few numbers, in case they turn out to be lists."""
    kept_bytes: int = 0

    def add(self, wanted: type_array, got: type_array) -> None:
        if differ_in_ones(wanted.shape, got.shape):
            got = got.reshape(wanted.shape)
        if wanted.ndim != got.ndim:
            self.is_broken = True
            return
        if not (wanted.size or got.size):
            return
        if wanted.dtype.kind not in "fiub" or got.dtype.kind not in "fiub":
            return
        size = wanted.nbytes + got.nbytes
        if self.kept_bytes + size <= KEPT_BYTES or (wanted.shape != got.shape and self.kept_bytes < KEPT_BYTES):
            self.kept.append((wanted, got))
            self.kept_bytes += size
        if wanted.shape != got.shape:
            differ = [i for i, (a, b) in enumerate(zip(wanted.shape, got.shape, strict=True)) if a != b]
            self.list_axis = differ[0] if self.list_axis is None else self.list_axis
            return
        self.runs += 1
        rows, same = tops(wanted, got)
        self.ranks = self.ranks and (rows > 0 or not wanted.any())  # zeros alone may be anything
        self.rows, self.same = self.rows + rows, self.same + same
        if wanted.ndim and wanted.size == wanted.shape[-1] > 1 and wanted.dtype.kind == "f" and np.isfinite(got).all():
            self.one_row, self.same_top = self.one_row + 1, self.same_top + same_tops(wanted, got, -1)[1]
        one, other = (a.astype(np.float64) for a in (wanted, got))
        no_numbers = same_but_no_number(wanted, got)
        one[no_numbers], other[no_numbers] = 0, 0
        if np.isfinite(one).all() and np.isfinite(other).all():
            self._gather(PlaceSums.of(one, other, taken_together(one.shape)))
        else:
            lost = (np.isnan(other) & ~np.isnan(one)) | (np.isinf(other) & np.isfinite(one))
            self.is_broken = self.is_broken or bool(lost.any())

    def _gather(self, more: PlaceSums) -> None:
        if self.sums is None:
            self.sums = more
            return
        if self.sums.total.ndim != more.total.ndim:
            self.sums, more = (flattened(s) for s in (self.sums, more))
        more = more.over(tuple(self.open_axes))
        differ = {i for i, (a, b) in enumerate(zip(self.sums.total.shape, more.total.shape, strict=True)) if a != b}
        if differ:
            self.open_axes |= differ
            self.sums, more = (s.over(tuple(differ)) for s in (self.sums, more))
        self.sums += more

    def parts(self) -> Iterator[Part]:
        if self.list_axis is not None:
            pairs = [(as_rows(a, self.list_axis), as_rows(b, self.list_axis)) for a, b in self.kept]
            found = [found_again(one, other, nearness([one for one, _ in pairs])) for one, other in pairs]
            rows, same = (sum(column) for column in zip(*found, strict=True))
            yield Part(self.name, measure="agreement", value=same / rows if rows else None)
        elif self.ranks and self.rows:
            yield self._ranking()
        elif self.sums is not None:
            whole = self._slices(None)
            part = whole.part(self.name, [0])
            size = float(whole.largest[0])
            has_strayed = part.value is None and closeness(float(whole.worst[0]), size) < 1 - STRAYED
            yield self._strayed(part, size) if has_strayed else part
            for axis, size in enumerate(self.sums.total.shape):
                if 2 <= size <= MOST_SLICES:
                    yield from self._along(axis, whole)

    def _ranking(self) -> Part:
        if self.sums is None:
            return Part(self.name, measure="agreement", value=self.same / self.rows)
        whole = self._slices(None).part(self.name, [0])
        tells = whole.value is not None or closeness(whole.max_abs_diff or 0.0, whole.largest or 0.0) < 1 - STRAYED
        return replace(whole, measure="agreement", value=self.same / self.rows if tells else None)

    def _strayed(self, part: Part, size: float) -> Part:
        return replace(part, measure="closeness", value=closeness(part.max_abs_diff or 0.0, size))

    def _along(self, axis: int, whole: Slices) -> Iterator[Part]:
        """Groups of slices of like range, the slices that matter in each, and those that became constant."""
        assert self.sums is not None
        each = self._slices(axis)
        groups = groups_of(each)
        stands_alone = self.sums.total.size == self.sums.total.shape[axis] <= FEW and not each.is_share.all()
        ranges = each.range[each.varies]
        is_unlike = len(ranges) > 1 and float(ranges.max()) >= UNLIKE * float(ranges.min())
        for group in groups:
            if len(groups) > 1:
                yield each.part(self.name, group, axis)
            most = float(each.range[list(group)].max())
            for at in group:
                share = float(each.range[at]) / most
                if len(group) == 1 and len(groups) > 1:
                    continue  # told already
                if is_unlike and stands_alone:
                    yield each.part(self.name, [at], axis)
                elif (is_unlike and share >= MUCH) or (each.is_constant[at] and share >= BARELY):
                    yield each.part(self.name, [at], axis, is_one=True)
        still = [i for i in range(len(each.range)) if not each.varies[i]]
        if not still or not whole.varies[0]:
            return
        near = near_to_still(each, whole)
        strayed = [i for i in still if each.worst[i] > near[i]]
        if strayed:
            yield self._strayed(each.part(self.name, strayed, axis), float(near[strayed].max()) / STRAYED)
        if rest := [i for i in still if i not in strayed]:
            yield each.part(self.name, rest, axis)

    def _slices(self, axis: int | None) -> Slices:
        assert self.sums is not None
        rest = tuple(i for i in range(self.sums.total.ndim) if i != axis)
        s = self.sums if self.runs > 1 else self.sums.over(rest)  # one example varies over its places alone
        about, other = (q - t**2 / s.count for q, t in ((s.squares, s.total), (s.other_squares, s.other_total)))

        def flat(values: type_array) -> type_array:
            found: type_array = np.maximum(values, 0).sum(rest).reshape(-1)
            return found

        low, high = s.low.min(rest).reshape(-1), s.high.max(rest).reshape(-1)
        return Slices(
            count=flat(s.count),
            variance=flat(about),
            other_variance=flat(other),
            residual=flat(s.residual),
            low=low,
            range=high - low,
            largest=np.maximum(np.abs(low), np.abs(high)),
            worst=s.worst.max(rest).reshape(-1),
            norms=(flat(s.squares), flat(s.other_squares)),
        )


def _lost(part: Part) -> float:
    """What it lost in the measure that is asked of it: 1 - value of a whole output, twice that of a ranking."""
    return 0.5 * (1 - (part.value or 0.0)) / (1 - part.asked(0.5))
