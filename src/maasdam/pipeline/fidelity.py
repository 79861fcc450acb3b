"""How much of what an output tells survives: each output, and each of its unlike slices, against its own spread.

Knows arrays, and when a slice tells something. Refuses to know engines, tasks and limits.

    what two models said to the examples --add--> sums at each place of each output --parts--> Part

An output that holds boxes (0 to 640) and scores (0 to 1) is two things: its slices along that axis are grouped by range, and
no group hides behind another. *Fidelity* is 1 - residual / variance over the examples: 1 is equal, 0 is as good as a
constant. Outputs that rank (probabilities, class numbers) are judged by how often the top is the same instead.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from maasdam.core import Tensors

if TYPE_CHECKING:
    from maasdam.core import type_array

MOST_SLICES = 256
"""An axis longer than this is positions, not things of different kinds."""
MOST_PLACES = 2**20
"""Numbers of an output that are each told apart: of one with more, long axes are taken together."""
UNLIKE = 10.0
"""How many times the ranges of slices differ that are things of different kinds."""
NOISE = 1e-6
"""A spread of less than this share of the largest value is how float32 rounds: no spread."""
BARELY = 0.02
"""A slice with less than this share of its group's range may be rounded away: 8 bits have steps of 0.004."""
MUCH = 0.25
"""A slice with this share of its group's range is judged by itself too."""
FEW = 16
"""Numbers that stand alone, up to so many beside each other, are each judged as an output of its own."""
CONSTANT = 1e-4
"""Variance below this share of the source's: it no longer varies."""
TIE = 0.05
"""A top that the source has within this share of its row's range below its own top is a tie, in which either is right."""
STRAYED = 0.25
"""What had no spread strays where the candidate is off by more than this share of its size, and by more than `OFF` times as
much as it is off where the source varies, and by more than `ROUNDED` of the output's largest value."""
OFF = 10.0
ROUNDED = 1e-4
NOTHING = 1e-3
"""Beside an output that is zero throughout there is no size to compare with: what rounding leaves of a zero."""
FOUND = 0.1
"""A row of a list whose length the data decide (boxes kept by NMS) is found again within this share of each column's range."""
MOST_SOUGHT = 300
"""Rows of a list that are looked for on the other side, evenly chosen."""
KEPT_BYTES = 8 << 20
"""Of each output, in case it is such a list."""
SHOWN = 24
"""Parts that a report lists, the worst first."""


@dataclass(frozen=True, slots=True)
class Part:
    """An output, a group of its slices, or one slice, and how it came through."""

    output: str
    axis: int | None = None
    slices: tuple[int, ...] = ()
    """Places along `axis`; none is the whole output."""
    measure: str = "fidelity"
    """"agreement" where the output ranks or lists; "closeness", 1 - the largest difference / the largest value, where nothing
    varied in the source: of all outputs where none did, else of what strayed from what it was."""
    value: float | None = None
    """None: it has no spread over the examples, so nothing can be lost; it is left out."""
    cosine: float | None = None
    max_abs_diff: float | None = None
    largest: float | None = None
    """The source's largest value, whatever its sign."""
    spread: float | None = None
    """Standard deviation over the examples, in the output's own unit."""
    is_constant: bool = False
    """It varied in the source and no longer does."""
    is_one_slice: bool = False
    """One of many slices of a kind: held to half of what is asked of the whole."""

    @property
    def where(self) -> str:
        """Which output, and which slices of it."""
        if self.axis is None:
            return f"output '{self.output}'"
        named = "slice" if len(self.slices) == 1 else "slices"
        return f"output '{self.output}', {named} {_listed(self.slices)} of axis {self.axis}"

    def asked(self, floor: float) -> float:
        """What is asked of it where `floor` is asked of fidelity: a ranking loses half as much, one of many slices twice."""
        if self.measure == "agreement":
            return 1 - (1 - floor) / 2
        return floor / 2 if self.is_one_slice else floor

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Part:
        """From a report. Raises KeyError or TypeError where it was told otherwise."""
        return cls(
            output=row["output"],
            axis=row["axis"],
            slices=tuple(row["slices"] or ()),
            measure=row["measure"],
            value=number(row["value"]),
            cosine=number(row.get("cosine")),
            max_abs_diff=number(row.get("max_abs_diff")),
            spread=number(row.get("spread")),
            is_constant=row["became_constant"],
            is_one_slice=row["one_of_many"],
        )

    def to_json(self) -> dict[str, Any]:
        """As the report holds it."""
        return {
            "output": self.output,
            "axis": self.axis,
            "slices": list(self.slices) or None,
            "measure": self.measure,
            "value": self.value,
            "cosine": self.cosine,
            "max_abs_diff": self.max_abs_diff,
            "spread": self.spread,
            "became_constant": self.is_constant,
            "one_of_many": self.is_one_slice,
        }


def number(value: Any) -> float | None:
    """A finite number, else None: a report from elsewhere may hold anything."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and -math.inf < value < math.inf
    return value if is_number else None


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
            replace(p, measure="closeness", value=_closeness(p.max_abs_diff, p.largest))
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
class _Sums:
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
    def of(cls, wanted: type_array, got: type_array, axes: tuple[int, ...] = ()) -> _Sums:
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

    def __add__(self, more: _Sums) -> _Sums:
        return _Sums(**{name: way(getattr(self, name), getattr(more, name)) for name, way in _WAYS.items()})

    def over(self, axes: tuple[int, ...]) -> _Sums:
        """The places along `axes` taken together, as one place."""
        if not axes:
            return self
        return _Sums(**{name: way.reduce(getattr(self, name), axes, keepdims=True) for name, way in _WAYS.items()})


_WAYS = dict.fromkeys(_Sums.__slots__, np.add) | {"low": np.minimum, "high": np.maximum, "worst": np.maximum}
"""How two of each become one."""


@dataclass(frozen=True, slots=True)
class _Slices:
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


@dataclass(slots=True)
class _Output:
    """One output over the examples."""

    name: str
    sums: _Sums | None = None
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
            self._gather(_Sums.of(one, other, _taken_together(one.shape)))
        else:
            lost = (np.isnan(other) & ~np.isnan(one)) | (np.isinf(other) & np.isfinite(one))
            self.is_broken = self.is_broken or bool(lost.any())

    def _gather(self, more: _Sums) -> None:
        if self.sums is None:
            self.sums = more
            return
        if self.sums.total.ndim != more.total.ndim:
            self.sums, more = (_flat(s) for s in (self.sums, more))
        more = more.over(tuple(self.open_axes))
        differ = {i for i, (a, b) in enumerate(zip(self.sums.total.shape, more.total.shape, strict=True)) if a != b}
        if differ:
            self.open_axes |= differ
            self.sums, more = (s.over(tuple(differ)) for s in (self.sums, more))
        self.sums += more

    def parts(self) -> Iterator[Part]:
        if self.list_axis is not None:
            pairs = [(_as_rows(a, self.list_axis), _as_rows(b, self.list_axis)) for a, b in self.kept]
            found = [_found_again(one, other, _near([one for one, _ in pairs])) for one, other in pairs]
            rows, same = (sum(column) for column in zip(*found, strict=True))
            yield Part(self.name, measure="agreement", value=same / rows if rows else None)
        elif self.ranks and self.rows:
            yield self._ranking()
        elif self.sums is not None:
            whole = self._slices(None)
            part = whole.part(self.name, [0])
            size = float(whole.largest[0])
            has_strayed = part.value is None and _closeness(float(whole.worst[0]), size) < 1 - STRAYED
            yield self._strayed(part, size) if has_strayed else part
            for axis, size in enumerate(self.sums.total.shape):
                if 2 <= size <= MOST_SLICES:
                    yield from self._along(axis, whole)

    def _ranking(self) -> Part:
        if self.sums is None:
            return Part(self.name, measure="agreement", value=self.same / self.rows)
        whole = self._slices(None).part(self.name, [0])
        tells = whole.value is not None or _closeness(whole.max_abs_diff or 0.0, whole.largest or 0.0) < 1 - STRAYED
        return replace(whole, measure="agreement", value=self.same / self.rows if tells else None)

    def _strayed(self, part: Part, size: float) -> Part:
        return replace(part, measure="closeness", value=_closeness(part.max_abs_diff or 0.0, size))

    def _along(self, axis: int, whole: _Slices) -> Iterator[Part]:
        """Groups of slices of like range, the slices that matter in each, and those that became constant."""
        assert self.sums is not None
        each = self._slices(axis)
        groups = _groups(each)
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
        near = _near_to_still(each, whole)
        strayed = [i for i in still if each.worst[i] > near[i]]
        if strayed:
            yield self._strayed(each.part(self.name, strayed, axis), float(near[strayed].max()) / STRAYED)
        if rest := [i for i in still if i not in strayed]:
            yield each.part(self.name, rest, axis)

    def _slices(self, axis: int | None) -> _Slices:
        assert self.sums is not None
        rest = tuple(i for i in range(self.sums.total.ndim) if i != axis)
        s = self.sums if self.runs > 1 else self.sums.over(rest)  # one example varies over its places alone
        about, other = (q - t**2 / s.count for q, t in ((s.squares, s.total), (s.other_squares, s.other_total)))

        def flat(values: type_array) -> type_array:
            found: type_array = np.maximum(values, 0).sum(rest).reshape(-1)
            return found

        low, high = s.low.min(rest).reshape(-1), s.high.max(rest).reshape(-1)
        return _Slices(
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


def _closeness(apart: float, largest: float) -> float:
    """1 equal, 0 off by all it is. Beside zeros everything that is no rounding is off by all."""
    if not largest:
        return 0.0 if apart > NOTHING else 1.0
    return max(0.0, 1 - apart / largest)


def _near_to_still(each: _Slices, whole: _Slices) -> type_array:
    """How far each slice without spread may be off: by a share of its own size, or as what varies beside it is off.

    A candidate of 8 bits is off everywhere by steps of the output; one that is right where the source varies has no excuse.
    """
    beside, at = (each, each.varies) if each.varies.any() else (whole, whole.varies)  # one example varies over its places alone
    off = (float(beside.residual[at].sum()) / float(beside.count[at].sum())) ** 0.5
    usual = min(OFF * off, STRAYED * float(beside.range[at].min()))
    found: type_array = np.maximum(STRAYED * each.largest, max(usual, ROUNDED * float(whole.largest[0])))
    return found


def differ_in_ones(one: Sequence[int], other: Sequence[int]) -> bool:
    """Are two shapes the same but for axes of one?"""
    return list(one) != list(other) and [n for n in one if n != 1] == [n for n in other if n != 1]


def _groups(each: _Slices) -> list[tuple[int, ...]]:
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


def _taken_together(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Axes of positions that a large output is summed over at once: the last, which may be classes, only where it must be."""
    if math.prod(shape) <= MOST_PLACES:
        return ()
    long = [i for i, size in enumerate(shape) if size > MOST_SLICES]
    but_last = tuple(i for i in long if i != len(shape) - 1)
    is_enough = math.prod(size for i, size in enumerate(shape) if i not in but_last) <= MOST_PLACES
    return but_last if is_enough else tuple(long)


def same_but_no_number(one: type_array, other: type_array) -> type_array:
    """Where both hold the same infinity, or both NaN: no difference, and nothing to measure one with."""
    if one.dtype.kind != "f" or other.dtype.kind != "f":
        return np.zeros(one.shape, np.bool_)
    found: type_array = (np.isinf(one) & (one == other)) | (np.isnan(one) & np.isnan(other))
    return found


def _flat(sums: _Sums) -> _Sums:
    whole = sums.over(tuple(range(sums.total.ndim)))
    return _Sums(**{name: getattr(whole, name).reshape(-1) for name in _WAYS})


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


def _as_rows(values: type_array, axis: int) -> type_array:
    """[rows along `axis`, all beside it]."""
    moved = np.moveaxis(values, axis, 0).astype(np.float64)
    return moved.reshape(len(moved), math.prod(moved.shape[1:]))


def _near(lists: Sequence[type_array]) -> type_array:
    """How far a row may lie, in each column: a share of what that column spans over all the examples."""
    width = max(rows.shape[1] for rows in lists)
    every = np.concatenate([rows for rows in lists if rows.shape[1] == width])
    found: type_array = (
        FOUND * np.ptp(every, axis=0) + NOISE * np.abs(every).max(initial=1.0) if len(every) else np.zeros(width)
    )
    return found


def _found_again(wanted: type_array, got: type_array, near: type_array) -> tuple[int, float]:
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


def _listed(slices: Sequence[int]) -> str:
    """0, 1, 2, 5 as "0-2, 5"."""
    runs: list[list[int]] = []
    for at in slices:
        if runs and at == runs[-1][1] + 1:
            runs[-1][1] = at
        else:
            runs.append([at, at])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
