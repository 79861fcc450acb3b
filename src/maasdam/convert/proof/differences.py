"""What is proven of a conversion, and when it counts: tolerances, differences gathered over cases, the certificate.

Knows numbers and what is no proof: an output that never varies, NaN, lost shapes. Refuses to know engines.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from maasdam.artifacts.store import file_digests
from maasdam.convert.proof.edges import PLAIN
from maasdam.core import Artifact, Progress, Tensors
from maasdam.errors import VerificationFailed

if TYPE_CHECKING:
    from maasdam.core import type_array

Case = TypeVar("Case")


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What may differ: `relative` x the largest value of the output in the reference + a little.

    Faithful float32 conversions sum in another order and were measured at 1e-7 to 2e-5 of the largest value (MobileNetV2
    5e-6, wav2vec2 8e-6, HuBERT 2e-5, decoders 4e-6). A wrong operator, weight or layout is off by 1e-3 and more.
    """

    relative: float = 1e-4
    absolute: float = 1e-6
    """But no more than `slices` of the largest value: an output whose every value is 1e-7 is judged by 1e-9. It may be the end
    of an exponential, whose exponent is rounded."""
    spread: float = 10.0
    """An output must vary between inputs by this many limits, else agreeing with it proves nothing."""
    slices: float = 1e-2
    """What may differ of a slice that is ten times smaller than its output or more (scores beside boxes), of its own size."""

    def limit(self, scale: float, usual: float | None = None) -> float:
        """The largest difference allowed for an output whose largest value is `scale`.

        `usual` is its largest value for inputs of a usual size, where these are of another: what an engine adds up on the way
        is then not smaller than usual, though the answer is, and answers hang on single roundings.
        """
        if usual is None:
            return self.relative * scale + min(self.absolute, self.slices * scale)
        little = max(self.absolute, FLOOR * usual) * max(1.0, scale / usual if usual else 1.0)
        return min(UNUSUAL * self.relative, MOST_RELATIVE) * scale + little


@dataclass(frozen=True, slots=True)
class Scope:
    """What two models are compared over, and who hears how far it is."""

    seeds: tuple[int, ...]
    inputs: Iterable[Tensors]
    """Real ones."""
    tolerance: Tolerance
    progress: Progress

    def counted(self, cases: Iterable[Case], count: int) -> Iterator[Case]:
        """The cases one after the other, `count` in all."""
        for done, case in enumerate(cases):
            self.progress("compare with the source", done, count)
            yield case
        self.progress("compare with the source", count, count)


NEAR_ZERO = 1e-5
"""A sigmoid of float32 is rounded to 1e-7 of 1 by some engines, however near to 0 it is."""
UNUSUAL = 30.0
MOST_RELATIVE = 0.1
"""For inputs a thousand times larger or smaller than usual: what overflows or vanishes there is off by its whole."""
FLOOR = 1e-6
"""A few steps of float32, of the usual size."""
STEEP = 16.0
"""A conversion may be off by as much as so many steps of the input's own type move the source: both round on the way, at every
layer, where the source's own answer is that steep."""
DRAWS = 6
"""How many neighbours of an input are asked for, where it has to be known how steep the source is."""
FEW_NUMBERS = 16
"""An output of no more is judged by a single one that was decided otherwise; in a mask of many, one may be chance."""
SMALLER = 10.0
MOST_SLICES = 256
MOST_CASES = 200
"""That a certificate lists."""
Neighbours = Callable[[int], Tensors]
"""What the source answers one step beside the batch, in the n-th direction."""
Pairs = Callable[[int], tuple[Tensors, Tensors]]
"""The same of source and candidate, on a batch whose equal numbers stay equal."""


@dataclass(slots=True)
class Group:
    """The answers to inputs of one size: the largest of them, and by how much the candidate's are off."""

    cases: int = 0
    scale: float = 0.0
    max_abs_diff: float = 0.0
    """Beside what the source itself moves by, where it is steep."""
    steep: int = 0
    """How many cases were judged by how steep the source is."""


@dataclass(slots=True)
class OutputProof:
    """One output over all cases. `spread`: how far the reference moved between inputs; `scale`: its largest value."""

    name: str
    max_abs_diff: float = 0.0
    max_rel_diff: float = 0.0
    """Of the largest value in the same case."""
    cosine: float = 1.0
    """The lowest over the cases."""
    spread: float = 0.0
    scale: float = 0.0
    limit: float = 0.0
    is_exact: bool = False
    """Is it counted or decided (integers, booleans), so that nothing may differ?"""
    undecided: int = 0
    """Numbers left out: the source's own answer is NaN, or another one step beside the input."""
    groups: dict[str, Group] = field(default_factory=dict)
    """By the size of the inputs."""
    still: dict[str, Any] = field(default_factory=dict)
    """By axis: which slices were the same for every input, so that nothing is known of them."""


@dataclass(slots=True)
class _Slices:
    """Along one axis of an output: each slice's largest value, its excess, and how far it moved."""

    scale: type_array
    excess: type_array
    low: type_array
    high: type_array


@dataclass(frozen=True, slots=True)
class Certificate:
    """What was proven, bound to both digests."""

    source: str
    candidate: str
    source_engine: str
    candidate_engine: str
    tolerance: Tolerance
    seeds: tuple[int, ...]
    cases: tuple[Mapping[str, Any], ...]
    """Each compared batch: its seed (None for real inputs) and shapes."""
    real_inputs: int
    outputs: tuple[OutputProof, ...]
    tokens: Mapping[str, Any] | None = None
    """For models that generate: how many greedy tokens were compared and how many agreed."""
    files: Mapping[str, str] = field(default_factory=dict)
    """sha256 of each file of the candidate."""
    tried: Mapping[str, int] = field(default_factory=dict)
    """How many batches of each kind."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else is known: conditions never taken, lengths, extremes, what time did not allow, engine settings."""

    def to_json(self) -> dict[str, Any]:
        """One JSON object; `passed` is always true, since what fails has no certificate."""
        return {
            "passed": True,
            "source": {"digest": self.source, "engine": self.source_engine},
            "candidate": {"digest": self.candidate, "engine": self.candidate_engine, "files": dict(self.files)},
            "tolerance": asdict(self.tolerance),
            "seeds": list(self.seeds),
            "cases": [dict(case) for case in self.cases],
            "real_inputs": self.real_inputs,
            "outputs": [asdict(output) for output in self.outputs],
            "tokens": dict(self.tokens) if self.tokens is not None else None,
            "tried": dict(self.tried),
            **self.facts,
        }


class Proof:
    """Gathers cases, then judges."""

    def __init__(self, tolerance: Tolerance, names: Sequence[str], *, drops_ones: bool = False) -> None:
        """`drops_ones`: the source leaves out whatever axis is one long in a batch (ONNX's Squeeze without axes)."""
        self._tolerance = tolerance
        self._drops_ones = drops_ones
        self._outputs = {name: OutputProof(name) for name in names}
        self._first: dict[tuple[str, tuple[int, ...]], type_array] = {}
        self._slices: dict[tuple[str, int], _Slices] = {}
        self._open: set[tuple[str, int]] = set()
        self._cases: list[dict[str, Any]] = []
        self._tried: Counter[str] = Counter()

    def add(
        self,
        seed: int | None,
        batch: Tensors,
        reference: Tensors,
        candidate: Tensors,
        *,
        kind: str | None = None,
        group: str = PLAIN,
        neighbours: Neighbours | None = None,
        pairs: Pairs | None = None,
    ) -> None:
        """Take in one batch. Raises VerificationFailed at once where the outputs can't be compared.

        `kind`: why it was tried, "random" or "real" where nothing is said. Numbers of another `group` are judged by its own
        largest value, and what is no number in the source is left out there. `neighbours` tell how steep the source is, asked
        for only where a difference is over the limit. `pairs` tell apart what such a step excuses: two engines that round
        differently disagree somewhere around it, one that decides otherwise on it (a half, a bound, an equal) nowhere else.
        """
        is_edge = kind is not None
        moved: list[Tensors] | None = None
        draws: list[tuple[Tensors, Tensors]] = []
        for name, output in self._outputs.items():
            wanted, found = reference[name], candidate[name]
            wanted = self._fitted(wanted, found.shape)
            if wanted.shape != found.shape:
                if moved is None:
                    moved = [neighbours(n) for n in range(DRAWS)] if neighbours else []
                if any(m[name].shape != wanted.shape for m in moved):
                    output.undecided += wanted.size
                    continue
                raise VerificationFailed(
                    f"output '{name}' has shape {list(found.shape)} where the source gives {list(wanted.shape)}"
                    + (f" ({kind})" if kind else "")
                )
            if wanted.dtype.kind not in "fiub" and wanted.dtype.name != "bfloat16":
                raise VerificationFailed(f"output '{name}' is {wanted.dtype}; only numbers and booleans can be compared")
            if not is_edge and (np.isnan(wanted).any() or (wanted.size and not np.isfinite(wanted).any())):
                raise VerificationFailed(f"the source's own output '{name}' holds NaN or nothing finite; that proves nothing")
            if not wanted.size:
                continue
            output.is_exact = wanted.dtype.kind in "iub"
            difference, values = differences_of(wanted, found)
            output.undecided += int(np.isnan(wanted).sum()) if wanted.dtype.kind == "f" else 0
            at = output.groups.setdefault(group, Group())
            at.cases += 1
            at.scale = max(at.scale, float(np.abs(values).max()))
            if group == PLAIN:
                self._spread(output, values, wanted.dtype, is_edge=is_edge)
            slices = self._along(name, values) if group == PLAIN and not output.is_exact else []
            if difference.max() > 0 and neighbours and (difference > self._allowed(output, at, slices, values.shape)).any():
                if moved is None:
                    moved = [neighbours(n) for n in range(DRAWS)]
                at.steep += 1
                allowed = self._allowed(output, at, slices, values.shape)
                beside = [self._fitted(m[name], wanted.shape) for m in moved]
                excused, left_out = _beside(difference, wanted, beside, output.is_exact, group == PLAIN)
                over = (difference > allowed) & (excused <= allowed)
                if pairs and over.any():
                    draws = draws or [pairs(n) for n in range(DRAWS)]
                    both = [(self._fitted(s[name], wanted.shape), self._fitted(c[name], wanted.shape)) for s, c in draws]
                    otherwise = over & _decided_otherwise(wanted, both, allowed)
                    if otherwise.sum() > 1 or (otherwise.any() and otherwise.size <= FEW_NUMBERS):
                        excused = np.where(otherwise, difference, excused)
                difference = excused
                output.undecided += left_out
            for axis, along in slices:
                other = tuple(i for i in range(values.ndim) if i != axis)
                np.maximum(along.excess, difference.max(axis=other), out=along.excess)
            worst = float(difference.max())
            at.max_abs_diff = max(at.max_abs_diff, worst)
            if group == PLAIN:
                self._sum_up(output, values, found, worst, is_edge=is_edge)
        if not is_edge or len(self._cases) < MOST_CASES:
            case: dict[str, Any] = {"seed": seed, "shapes": {name: list(array.shape) for name, array in batch.items()}}
            self._cases.append(case | ({"kind": kind} if kind else {}))
        self._tried[(kind or ("real" if seed is None else "random")).partition(" ")[0]] += 1

    def _fitted(self, array: type_array, shape: tuple[int, ...]) -> type_array:
        """In `shape`, where only axes of one keep it from that and the source leaves them out."""
        is_like = self._drops_ones and [d for d in array.shape if d != 1] == [d for d in shape if d != 1]
        return array.reshape(shape) if is_like else array

    def _sum_up(self, output: OutputProof, values: type_array, found: type_array, worst: float, *, is_edge: bool) -> None:
        scale = float(np.abs(values).max())
        output.scale = max(output.scale, scale)
        output.max_abs_diff = max(output.max_abs_diff, worst)
        if is_edge:  # all zeros have no size, and no direction
            return
        output.max_rel_diff = max(output.max_rel_diff, worst / scale if scale else worst)
        other = np.where(np.isfinite(found), found, 0).astype(np.float64)
        lengths = float(np.linalg.norm(values)) * float(np.linalg.norm(other))
        if math.isfinite(lengths) and lengths > 0 and worst > 0:
            output.cosine = min(output.cosine, float((values * other).sum()) / lengths)

    def _along(self, name: str, values: type_array) -> list[tuple[int, _Slices]]:
        """The slices along each axis but the first, as far as they are few and the same number every time."""
        found = []
        for axis in range(1, values.ndim):
            count = values.shape[axis]
            if not 1 < count <= MOST_SLICES:
                continue
            other = tuple(i for i in range(values.ndim) if i != axis)
            low, high = values.min(axis=other), values.max(axis=other)
            known = self._slices.get((name, axis))
            if (name, axis) in self._open:
                continue
            if known is None:
                known = _Slices(np.zeros(count), np.zeros(count), low.copy(), high.copy())
                self._slices[name, axis] = known
            if len(known.scale) != count:
                self._slices.pop((name, axis))
                self._open.add((name, axis))  # its slices are not the same ones every time
                continue
            np.maximum(known.scale, np.maximum(np.abs(low), np.abs(high)), out=known.scale)
            np.minimum(known.low, low, out=known.low)
            np.maximum(known.high, high, out=known.high)
            found.append((axis, known))
        return found

    def _allowed(self, output: OutputProof, at: Group, slices: list[tuple[int, _Slices]], shape: tuple[int, ...]) -> type_array:
        """As far as is known by now: what is over it is looked at more closely."""
        limit = self._limit_of(output, at)
        allowed = np.full(shape, limit)
        for axis, along in slices:
            small = along.scale * SMALLER <= at.scale
            each = np.where(small, np.minimum(limit, self._of_slices(along, at)), limit)
            allowed = np.minimum(allowed, each.reshape([-1 if i == axis else 1 for i in range(len(shape))]))
        return allowed

    def _of_slices(self, along: _Slices, at: Group) -> type_array:
        limits: type_array = self._tolerance.slices * along.scale + FLOOR * at.scale
        return limits

    def _spread(self, output: OutputProof, values: type_array, dtype: Any, *, is_edge: bool) -> None:
        """Between the items of a batch, and between batches of one shape: with the first random or real one of it, which is
        kept as the source gave it. Edges come in many shapes, and all of theirs would fill the memory."""
        if values.ndim and len(values) > 1:
            output.spread = max(output.spread, float(np.ptp(values, axis=0).max()))
        first = self._first.get((output.name, values.shape))
        if first is not None:
            output.spread = max(output.spread, float(np.abs(first - values).max()))
        elif not is_edge:
            self._first[output.name, values.shape] = values.astype(dtype)

    @property
    def tolerance(self) -> Tolerance:
        """What may differ."""
        return self._tolerance

    def limit(self, name: str) -> float:
        """What may differ of an output, as far as is known by now."""
        return self._limit(self._outputs[name])

    def agrees(self) -> bool:
        """Is nothing over its limit? Whether it proves anything is not asked."""
        return not any(self._over(output) for output in self._outputs.values())

    def lively(self) -> int:
        """How many outputs vary enough for agreement to prove something."""
        return sum(self._varies(output) for output in self._outputs.values())

    def _varies(self, output: OutputProof) -> bool:
        return output.spread > 0 and output.spread >= self._tolerance.spread * self._limit(output)

    def _limit(self, output: OutputProof) -> float:
        return 0.0 if output.is_exact else self._tolerance.limit(output.scale)

    def _limit_of(self, output: OutputProof, at: Group) -> float:
        if output.is_exact:
            return 0.0
        usual = output.groups.get(PLAIN)
        return self._tolerance.limit(at.scale, None if usual is None or usual is at else usual.scale)

    def certificate(
        self, source: Artifact, candidate: Artifact, seeds: tuple[int, ...], facts: Mapping[str, Any] | None = None
    ) -> Certificate:
        """The certificate, or VerificationFailed naming every output that is over its limit or proves nothing."""
        wrong = []
        any_varies = self.lively() > 0
        for output in self._outputs.values():
            output.limit = self._limit(output)
            over = self._over(output)
            if over:
                wrong.append(over)
            elif not self._varies(output) and not (output.is_exact and any_varies):  # a class is often the same for all
                wrong.append(
                    f"output '{output.name}' of the source varies by {output.spread:.3g} only, so agreement proves nothing: "
                    "give inputs that it answers differently to with --data"
                )
            output.still = self._still(output)
        if wrong or not self._cases:
            raise VerificationFailed("the conversion is not faithful: " + ("; ".join(wrong) or "nothing was compared"))
        return Certificate(
            source=source.digest,
            candidate=candidate.digest,
            source_engine=source.engine,
            candidate_engine=candidate.engine,
            tolerance=self._tolerance,
            seeds=seeds,
            cases=tuple(self._cases),
            real_inputs=self._tried["real"],
            outputs=tuple(self._outputs.values()),
            files=file_digests(candidate),
            tried=dict(self._tried),
            facts=dict(facts or {}),
        )

    def _over(self, output: OutputProof) -> str | None:
        """What is wrong with it, in words."""
        for name, at in output.groups.items():
            limit = self._limit_of(output, at)
            if not at.max_abs_diff <= limit:
                where = "" if name == PLAIN else f", for inputs of size {name}"
                if name == PLAIN and at.scale < NEAR_ZERO and not output.is_exact:
                    where = (
                        f"; the source answers with no more than {at.scale:.3g} to random inputs, which may be its rounding: "
                        "give inputs that it answers something to with --data"
                    )
                return f"output '{output.name}' differs by {at.max_abs_diff:.3g} where {limit:.3g} is allowed{where}"
        at = output.groups.get(PLAIN, Group())
        for (name, axis), along in self._slices.items():
            if name != output.name:
                continue
            limits = self._of_slices(along, at)
            over = (along.scale * SMALLER <= at.scale) & (along.excess > limits)
            if over.any():
                i = int(over.argmax())
                return (
                    f"output '{name}' differs by {along.excess[i]:.3g} at {i} of axis {axis}, whose largest value is "
                    f"{along.scale[i]:.3g}, where {limits[i]:.3g} is allowed"
                )
        return None

    def _still(self, output: OutputProof) -> dict[str, Any]:
        """Slices that were one number for all inputs, where others were not."""
        found = {}
        for (name, axis), along in self._slices.items():
            same = along.high - along.low <= 0
            if name == output.name and same.any() and not same.all():
                found[str(axis)] = {"of": len(same), "count": int(same.sum()), "first": [int(i) for i in same.nonzero()[0][:8]]}
        return found


def differences_of(wanted: type_array, found: type_array) -> tuple[type_array, type_array]:
    """How far each number is off, and the reference's numbers: 0 where it holds NaN, and where both hold one infinity."""
    reference, other = wanted.astype(np.float64), found.astype(np.float64)
    if wanted.dtype.kind in "iu" and wanted.dtype.itemsize == 8:  # float64 does not tell the largest apart
        other = np.where(wanted == found, reference, np.where(reference == other, reference + 1, other))
    left_out = np.isnan(reference) | (np.isinf(reference) & (reference == other))
    reference, other = np.where(left_out, 0, reference), np.where(left_out, 0, other)
    with np.errstate(invalid="ignore"):
        difference = np.abs(reference - other)
    difference = np.where(np.isfinite(difference), difference, math.inf)
    return difference, np.where(np.isfinite(reference), reference, 0)


def _beside(
    difference: type_array, wanted: type_array, moved: Sequence[type_array], is_exact: bool, is_usual: bool
) -> tuple[type_array, int]:
    """What is left of the differences once the source's own movement is taken off, and how many numbers were left out.

    What is counted or decided has no size to compare: where the source decides otherwise one step away, either is right.
    """
    moves = np.zeros_like(difference)
    for each in moved:
        if each.shape != wanted.shape:
            return np.zeros_like(difference), int(difference.size)
        other, _ = differences_of(wanted, each)
        moves = np.maximum(moves, other)
    if is_exact:
        undecided = moves > 0
        return np.where(undecided, 0, difference), int((undecided & (difference > 0)).sum())
    if not is_usual:  # far from what a network was made for its answers hang on single roundings, any of them
        moves = np.full_like(moves, moves.max())
    with np.errstate(invalid="ignore"):
        left = difference - STEEP * moves
    return np.where(np.isnan(left), 0, np.maximum(left, 0)), 0


def _decided_otherwise(wanted: type_array, pairs: Sequence[tuple[type_array, type_array]], allowed: type_array) -> type_array:
    """Where the source turns within a step, and both agree on either side of it."""
    turns, agree = np.zeros(wanted.shape, np.bool_), np.ones(wanted.shape, np.bool_)
    for source, candidate in pairs:
        if source.shape != wanted.shape or candidate.shape != wanted.shape:
            return np.zeros(wanted.shape, np.bool_)
        moved, _ = differences_of(wanted, source)
        apart, _ = differences_of(source, candidate)
        turns |= moved > allowed
        agree &= apart <= allowed
    found: type_array = turns & agree
    return found
