"""What verify measured, and whether it holds.

Knows the shape of the report and the limits. Refuses to measure. What was not measured is None and says why.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar, cast

from maasdam.core import UNTRIED, Batching
from maasdam.pipeline.part import Part, number
from maasdam.pipeline.recipe import Limits
from maasdam.tasks.scoring import METRICS
from maasdam.tasks.task import Metric

MIN_COSINE_UNSEEN = 0.9
"""Held where there is no data to score on and the recipe says nothing of parity: something has to decide."""
MIN_FIDELITY = 0.8
"""Held where no labels decide and the recipe says nothing of it; see docs/decisions for what was measured."""
MOST_FAILURES = 5
"""Sentences of one kind that a report lists; of the rest it says how many."""
SLOWER = 0.97
"""A speedup below this is called slower in the notes."""
BUSY = 1.5
"""Load per core above which the notes say that others were computing too."""
MEGABYTE = 1e6
Kept = TypeVar("Kept")


@dataclass(frozen=True, slots=True)
class Column:
    """What was measured of one of the three: reference, candidate, source."""

    engine: str
    digest: str
    size_bytes: int | None = None
    latency_ms: tuple[float, ...] = ()
    """Every timed run of one example, milliseconds, in order."""
    p50: float | None = None
    p99: float | None = None
    throughput: float | None = None
    joules: float | None = None
    """Per example."""
    memory_bytes: int | None = None
    accuracy: float | None = None
    examples: int | None = None
    """How many `accuracy` is over, where it is not all of them."""
    extra: Mapping[str, float] = field(default_factory=dict)
    """What stands beside the metric (bits per byte)."""


@dataclass(frozen=True, slots=True)
class Check:
    """One limit of the recipe and what was measured. `limit` is its key there: "max_…" is a ceiling, all others a floor."""

    limit: str
    what: str
    measured: float | None
    asked: float

    @property
    def bound(self) -> str:
        """Ceiling or floor, in words."""
        return "at most" if self.limit.startswith("max_") else "at least"

    @property
    def holds(self) -> bool:
        """False for what was not measured, and for NaN."""
        if self.measured is None or self.measured != self.measured:
            return False
        within = self.asked - self.measured if self.limit.startswith("max_") else self.measured - self.asked
        return within >= -1e-9

    @property
    def sentence(self) -> str:
        """What is, and what was asked."""
        is_known = self.measured is not None and self.measured == self.measured
        said = f"is {self.measured:.4g}" if is_known else "was not measured"
        asks = "allows" if self.limit.startswith("max_") else "asks for"
        return f"{self.what} {said}; the recipe {asks} {self.asked:g} {self.bound}"

    def to_json(self) -> dict[str, Any]:
        """As the report holds it."""
        return {"limit": self.limit, "what": self.what, "asked": self.asked, "measured": self.measured, "holds": self.holds}


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a report for people, in the unit that `what` names; None was not measured."""

    key: str
    what: str
    reference: float | str | None
    candidate: float | str | None
    source: float | str | None = None
    gain: str = ""
    """What the candidate brings beside the reference."""


@dataclass(frozen=True, slots=True)
class Report:
    """What verify measured of a candidate against its reference."""

    candidate: Column
    reference: Column
    source: Column | None
    parity: Mapping[str, Any]
    metric: str | None
    drop: float | None
    """On the metric; positive is worse."""
    examples: int
    unit: str
    energy_method: str
    failures: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    why_no_accuracy: str | None = None
    confidence: Mapping[str, Any] | None = None
    """95 % intervals of the metric and the drop, see `bootstrap.confidence`."""
    precisions: Mapping[str, int] = field(default_factory=dict)
    calibration: Mapping[str, Any] | None = None
    optimization: Sequence[Mapping[str, Any]] = ()
    batching: Batching = UNTRIED
    """Whether a row's answer is the same whatever stands beside it."""
    samples: tuple[Mapping[str, Any], ...] = ()
    limits: Limits = field(default_factory=Limits)
    conditions: Mapping[str, Any] = field(default_factory=dict)
    """Processor, threads, device, library versions, and what one latency is the latency of."""
    stored_checks: tuple[Check, ...] | None = None
    """Of a report that was read: its limits as they were found then."""

    @property
    def passed(self) -> bool:
        """Whether it may be promoted."""
        return not self.failures

    @property
    def checks(self) -> tuple[Check, ...]:
        """Each limit with what was measured."""
        return checks(self.limits, self) if self.stored_checks is None else self.stored_checks

    @property
    def speedup(self) -> float | None:
        """Median latency of the reference over the candidate's."""
        return ratio(self.reference.p50, self.candidate.p50)

    @property
    def size_ratio(self) -> float | None:
        """Size of the reference over the candidate's."""
        return ratio(self.reference.size_bytes, self.candidate.size_bytes)

    @property
    def parts(self) -> tuple[Part, ...]:
        """Outputs and slices with how they came through, the worst first; none where a report told them otherwise."""
        try:
            return tuple(Part.from_json(row) for row in self.parity.get("parts") or ())
        except (KeyError, TypeError, AttributeError):
            return ()

    @property
    def parity_numbers(self) -> dict[str, float]:
        """How far the outputs are apart, by measure."""
        return {str(key): n for key, value in self.parity.items() if (n := number(value)) is not None}

    @property
    def against(self) -> str:
        """Whose outputs parity is with."""
        return str(self.parity.get("against") or "the reference")

    def interval(self, of: str) -> tuple[float, float] | None:
        """The 95 % interval of "reference", "candidate" or "drop"."""
        ends = (self.confidence or {}).get(of)
        low, high = (number(end) for end in ends) if isinstance(ends, list | tuple) and len(ends) == 2 else (None, None)
        return None if low is None or high is None else (low, high)

    def to_json(self) -> dict[str, Any]:
        """The report as `build --json` prints it and the catalog keeps it."""
        c, r = self.candidate, self.reference
        return {
            "passed": self.passed,
            "failures": list(self.failures),
            "notes": list(self.notes),
            "limits": self.limits.to_json(),
            "checks": [check.to_json() for check in self.checks],
            "parity": dict(self.parity),
            "accuracy": {
                "metric": self.metric,
                "reference": r.accuracy,
                "candidate": c.accuracy,
                "drop": self.drop,
                "examples": self.examples,
                "why": self.why_no_accuracy,
                "confidence": None if self.confidence is None else dict(self.confidence),
                **({"beside": {"reference": dict(r.extra), "candidate": dict(c.extra)}} if c.extra else {}),
            },
            "size_bytes": {"reference": r.size_bytes, "candidate": c.size_bytes, "ratio": self.size_ratio},
            "latency_ms": {
                "reference": {"p50": r.p50, "p99": r.p99},
                "candidate": {"p50": c.p50, "p99": c.p99},
                "speedup": self.speedup,
                "samples": {"reference": list(r.latency_ms), "candidate": list(c.latency_ms)},
            },
            "throughput": {"reference": r.throughput, "candidate": c.throughput, "unit": self.unit},
            "energy_joules": {"reference": r.joules, "candidate": c.joules, "method": self.energy_method},
            "memory_bytes": {"reference": r.memory_bytes, "candidate": c.memory_bytes},
            "reference": {"engine": r.engine, "digest": r.digest},
            "source": None if self.source is None else _source(self.source),
            "precisions": dict(self.precisions) or None,
            **self.batching.facts(),
            "calibration": None if self.calibration is None else dict(self.calibration),
            "optimization": [dict(row) for row in self.optimization],
            "conditions": dict(self.conditions),
            "samples": [dict(sample) for sample in self.samples],
        }

    @classmethod
    def from_json(cls, data: Any) -> Report:
        """The report that a version keeps. One from elsewhere may hold anything: what is of another kind is left out."""

        def of(kind: type[Kept], *keys: str) -> Kept:
            return _of(kind, data, *keys)

        limits = {f.name: n for f in fields(Limits) if (n := number(_at(data, "limits", f.name))) is not None}
        return cls(
            candidate=_column_of(data, "candidate"),
            reference=_column_of(data, "reference"),
            source=_column_of(data["source"]) if of(dict, "source") else None,
            parity=of(dict, "parity"),
            metric=of(str, "accuracy", "metric") or None,
            drop=number(_at(data, "accuracy", "drop")),
            examples=_whole(data, "accuracy", "examples") or 0,
            unit=of(str, "throughput", "unit") or "per second",
            energy_method=of(str, "energy_joules", "method"),
            failures=tuple(of(list, "failures")),
            notes=tuple(of(list, "notes")),
            why_no_accuracy=of(str, "accuracy", "why") or None,
            confidence=of(dict, "accuracy", "confidence") or None,
            precisions=of(dict, "precisions"),
            calibration=of(dict, "calibration") or None,
            optimization=tuple(row for row in of(list, "optimization") if isinstance(row, dict)),
            batching=Batching(of(str, "batching"), of(str, "batching_how")),
            samples=tuple(row for row in of(list, "samples") if isinstance(row, dict)),
            limits=Limits(**cast(Any, limits)),
            conditions=of(dict, "conditions"),
            stored_checks=tuple(filter(None, map(_check_of, of(list, "checks")))),
        )


def _source(s: Column) -> dict[str, Any]:
    return {
        "engine": s.engine,
        "digest": s.digest,
        "accuracy": s.accuracy,
        "examples": s.examples,
        "size_bytes": s.size_bytes,
        "latency_ms": {"p50": s.p50, "p99": s.p99, "samples": list(s.latency_ms)},
        "throughput": s.throughput,
        "energy_joules": s.joules,
        "memory_bytes": s.memory_bytes,
    }


def _column_of(kept: Any, *side: str) -> Column:
    """What is kept of one of the three: the source in a place of its own, the other two beside each other."""
    return Column(
        engine=_of(str, kept, *side, "engine") or "-",
        digest=_of(str, kept, *side, "digest"),
        size_bytes=_whole(kept, "size_bytes", *side),
        latency_ms=tuple(s for s in _of(list, kept, "latency_ms", "samples", *side) if number(s) is not None),
        p50=number(_at(kept, "latency_ms", *side, "p50")),
        p99=number(_at(kept, "latency_ms", *side, "p99")),
        throughput=number(_at(kept, "throughput", *side)),
        joules=number(_at(kept, "energy_joules", *side)),
        memory_bytes=_whole(kept, "memory_bytes", *side),
        accuracy=number(_at(kept, "accuracy", *side)),
        examples=_whole(kept, "examples", *side),
        extra=_of(dict, kept, "accuracy", "beside", *side),
    )


def _check_of(kept: Any) -> Check | None:
    asked = number(_at(kept, "asked"))
    return None if asked is None else Check(str(kept.get("limit")), str(kept.get("what")), number(kept.get("measured")), asked)


def _at(value: Any, *keys: str) -> Any:
    """What lies at `keys`; None where there is no such thing."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _of(kind: type[Kept], value: Any, *keys: str) -> Kept:
    """What lies at `keys` where it is of a kind, else an empty one."""
    return found if isinstance(found := _at(value, *keys), kind) else kind()


def _whole(value: Any, *keys: str) -> int | None:
    found = number(_at(value, *keys))
    return None if found is None else int(found)


def rows(report: Report) -> tuple[Row, ...]:
    """What was measured, a line each, as the terminal, the page, the card and quickstart show it."""
    found = []
    if report.metric:
        drop, interval = report.drop, between(report.interval("drop"))
        gain = "" if drop is None else f"drop {digits(drop)}" + (f" ({interval})" if interval else "")
        found.append(_row(report, "metric", f"{report.metric} on {report.examples} examples", lambda c: c.accuracy, gain))
        if certain := between(report.interval("candidate")):
            found.append(Row("interval", "95 % interval", between(report.interval("reference")), certain))
    speedup, smaller = report.speedup, report.size_ratio
    sizes = smaller and (f"{1 / smaller:.3g} times larger" if 0 < smaller < 1 else f"{smaller:.3g} times smaller")
    return (
        *found,
        _row(report, "size", "size, MB", lambda c: ratio(c.size_bytes, MEGABYTE), sizes),
        _row(report, "p50", "latency p50, ms", lambda c: c.p50, speedup and f"{speedup:.3g} times as fast"),
        _row(report, "p99", "latency p99, ms", lambda c: c.p99),
        _row(report, "throughput", f"throughput, {report.unit}", lambda c: c.throughput),
        _row(report, "memory", "memory, MB", lambda c: ratio(c.memory_bytes, MEGABYTE)),
        _row(report, "joules", "joules per example", lambda c: c.joules),
    )


def _row(report: Report, key: str, what: str, cell: Callable[[Column], float | None], gain: str | float | None = None) -> Row:
    source = None if report.source is None else cell(report.source)
    return Row(key, what, cell(report.reference), cell(report.candidate), source, str(gain or ""))


def digits(value: float) -> str:
    """A number in few digits."""
    return f"{value:.4g}"


def between(ends: tuple[float, float] | None) -> str | None:
    """An interval in words."""
    return None if ends is None else f"{digits(ends[0])} to {digits(ends[1])}"


def ratio(above: float | None, below: float | None) -> float | None:
    """above / below; None where either is unmeasured or below is 0."""
    return above / below if above is not None and below else None


def drop_of(metric: str, reference: float | None, candidate: float | None) -> float | None:
    """How much worse the candidate is: positive is worse, in the way its metric is counted."""
    if reference is None or candidate is None:
        return None
    way = METRICS.get(metric, Metric())
    if way.is_relative:
        return candidate / reference - 1
    return candidate - reference if way.is_lower_better else reference - candidate


def finished(report: Report, problems: Sequence[str]) -> Report:
    """The report with its verdict: broken limits, and what makes a comparison worthless; and notes on what it brought."""
    failures = _first([*dict.fromkeys(problems)]) + _first(_dead(report))
    if report.parity.get("cosine") is None:
        failures.append("parity could not be measured: no output could be compared")
    if report.why_no_accuracy is None and report.candidate.accuracy is None:
        failures.append("the metric could not be measured: the candidate gave no answer to some examples")
    failures += judge(report.limits, report)
    return replace(report, failures=tuple(failures), notes=tuple(dict.fromkeys([*report.notes, *_notes(report)])))


def _first(sentences: list[str]) -> list[str]:
    more = len(sentences) - MOST_FAILURES
    return sentences if more <= 0 else [*sentences[:MOST_FAILURES], f"and {more} more like it"]


def _dead(report: Report) -> list[str]:
    """What varied in the source and is a constant now: whatever the limits and the metric say, it no longer answers."""
    return [
        f"{part.where} varied by {part.spread or 0.0:.3g} over the examples in the source and became a constant"
        for part in report.parts
        if part.is_constant
    ]


def _notes(report: Report) -> list[str]:
    """What a reader should know before trusting the numbers."""
    notes = []
    load = report.conditions.get("load", [0.0])[0]
    if load > BUSY * (os.cpu_count() or 1):
        notes.append(f"the machine was busy with other work (load {load:.1f} on {os.cpu_count()} cores): timings vary")
    if report.precisions.get("i8") and not report.conditions.get("has_int8_instructions", True):
        notes.append("this processor has no instructions for int8 (VNNI): int8 is faster on those that have")
    if report.why_no_accuracy:
        notes.append(report.why_no_accuracy)
    if report.parts and all(part.measure == "closeness" for part in report.parts):
        notes.append("no output varied over the examples: judged by the largest difference alone; give --data that differ")
    elif left := report.parity.get("without_spread"):
        notes.append(f"{left} outputs or slices did not vary over the examples: they were left out of the fidelity")
    if report.speedup is not None and report.speedup < SLOWER:
        notes.append(f"slower than the reference: {report.speedup:.2f} times its speed")
    if report.size_ratio is not None and report.size_ratio < 1:
        notes.append(f"larger than the reference: {1 / report.size_ratio:.2f} times its size")
    interval = report.interval("drop")
    if report.metric == "top1" and interval and interval[0] == interval[1]:
        notes.append(
            f"not one of the {report.examples} answers changed between right and wrong: "
            f"a drop below {3 / report.examples:.2g} can't be told from none (95 %)"
        )
    return notes


def judge(limits: Limits, report: Report) -> tuple[str, ...]:
    """One sentence for each limit that does not hold."""
    sentences = [c.sentence for c in checks(limits, report) if not c.holds]
    return tuple(_first(sentences) if len(sentences) > MOST_FAILURES else sentences)


def checks(limits: Limits, report: Report) -> tuple[Check, ...]:
    """Each limit that is set, with what was measured. A limit on something unmeasured does not hold, with one exception:
    without --data there is no metric, and parity alone decides."""
    parity, c = report.parity, report.candidate
    interval = report.interval("drop")
    found: dict[str, tuple[str, float | None]] = {
        "max_drop": ("drop", report.drop),
        "max_drop_upper": ("the upper end of the drop's interval", interval[1] if interval else None),
        "min_examples": ("the number of examples", report.examples),
        "min_speedup": ("speedup", report.speedup),
        "min_ratio": ("size ratio", report.size_ratio),
        "min_cosine": ("cosine", parity.get("cosine")),
        "min_agreement": ("agreement", parity.get("agreement")),
        "max_abs_diff": ("max_abs_diff", parity.get("max_abs_diff")),
        "max_latency_ms": ("latency (p50, ms)", c.p50),
        "max_p99_ms": ("latency (p99, ms)", c.p99),
        "min_throughput": (f"throughput ({report.unit})", c.throughput),
        "max_size_mb": ("size (MB)", ratio(c.size_bytes, MEGABYTE)),
        "max_memory_mb": ("memory (MB)", ratio(c.memory_bytes, MEGABYTE)),
        "max_joules": ("energy (joules)", c.joules),
    }
    bounds = limits.to_json()
    if not report.examples:
        bounds = {key: value for key, value in bounds.items() if key != "max_drop"} | {
            "min_cosine": bounds.get("min_cosine", MIN_COSINE_UNSEEN)
        }
    held = [Check(key, *found[key], bounds[key]) for key in found if key in bounds]
    return (*held, *_fidelities(report, bounds.get("min_fidelity")))


def _fidelities(report: Report, asked: float | None) -> list[Check]:
    """Each part of the outputs that is below what is asked of it, else the one that is nearest to it.

    Where labels decide, the metric does, unless the recipe asks; constants are no limit's matter (`_dead`)."""
    if asked is None and report.metric not in (None, "cosine"):
        return []
    floor = MIN_FIDELITY if asked is None else asked
    parts = sorted(report.parts, key=lambda p: p.is_one_slice)
    judged = [
        Check("min_fidelity", f"{p.measure} of {p.where}", p.value, p.asked(floor))
        for p in parts
        if p.value is not None and not p.is_constant
    ]
    broken = [c for c in judged if not c.holds]
    nearest = broken or sorted(judged, key=lambda c: (c.measured or 0.0) - c.asked)[:1]
    return nearest or ([] if asked is None or parts else [Check("min_fidelity", "fidelity", None, asked)])
