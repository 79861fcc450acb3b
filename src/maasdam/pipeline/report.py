"""What verify measured, and whether it holds.

Knows the shape of the report and the limits. Refuses to measure. What was not measured is None and says why.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from maasdam.core import UNTRIED, Batching
from maasdam.pipeline.fidelity import Part, part_of
from maasdam.pipeline.recipe import Limits

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


@dataclass(frozen=True, slots=True)
class Column:
    """What was measured of one of the three: reference, candidate, source."""

    engine: str
    digest: str
    size_bytes: int
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
        asks = f"allows {self.asked:g} at most" if self.limit.startswith("max_") else f"asks for {self.asked:g} at least"
        return f"{self.what} {said}; the recipe {asks}"

    def to_json(self) -> dict[str, Any]:
        """As the report holds it."""
        return {"limit": self.limit, "what": self.what, "asked": self.asked, "measured": self.measured, "holds": self.holds}


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

    @property
    def passed(self) -> bool:
        """Whether it may be promoted."""
        return not self.failures

    @property
    def speedup(self) -> float | None:
        """Median latency of the reference over the candidate's."""
        return ratio(self.reference.p50, self.candidate.p50)

    @property
    def size_ratio(self) -> float:
        """Size of the reference over the candidate's."""
        return self.reference.size_bytes / self.candidate.size_bytes

    def to_json(self) -> dict[str, Any]:
        """The report as `build --json` prints it and the catalog keeps it."""
        c, r = self.candidate, self.reference
        return {
            "passed": self.passed,
            "failures": list(self.failures),
            "notes": list(self.notes),
            "limits": self.limits.to_json(),
            "checks": [check.to_json() for check in checks(self.limits, self)],
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


def ratio(above: float | None, below: float | None) -> float | None:
    """above / below; None where either is unmeasured or below is 0."""
    return above / below if above is not None and below else None


def drop_of(metric: str, reference: float | None, candidate: float | None) -> float | None:
    """How much worse the candidate is: positive is worse, in the way its metric is counted."""
    if reference is None or candidate is None:
        return None
    if metric == "wer":
        return candidate - reference
    if metric == "perplexity":
        return candidate / reference - 1
    return reference - candidate


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
        f"{part.where} varied by {row.get('spread') or 0.0:.3g} over the examples in the source and became a constant"
        for row in report.parity.get("parts") or ()
        if (part := part_of(row)).is_constant
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
    parts = [part_of(row) for row in report.parity.get("parts") or ()]
    if parts and all(part.measure == "closeness" for part in parts):
        notes.append("no output varied over the examples: judged by the largest difference alone; give --data that differ")
    elif left := report.parity.get("without_spread"):
        notes.append(f"{left} outputs or slices did not vary over the examples: they were left out of the fidelity")
    if report.speedup is not None and report.speedup < SLOWER:
        notes.append(f"slower than the reference: {report.speedup:.2f} times its speed")
    if report.size_ratio < 1:
        notes.append(f"larger than the reference: {1 / report.size_ratio:.2f} times its size")
    interval = (report.confidence or {}).get("drop")
    if report.metric == "top1" and interval and interval[0] == interval[1]:
        notes.append(
            f"not one of the {report.examples} answers changed between right and wrong: "
            f"a drop below {3 / report.examples:.2g} can't be told from none (95 %)"
        )
    return notes


def judge(limits: Limits, report: Report) -> tuple[str, ...]:
    """One sentence for each limit that does not hold."""
    said = [c.sentence for c in checks(limits, report) if not c.holds]
    return tuple(_first(said) if len(said) > MOST_FAILURES else said)


def checks(limits: Limits, report: Report) -> tuple[Check, ...]:
    """Each limit that is set, with what was measured. A limit on something unmeasured does not hold, with one exception:
    without --data there is no metric, and parity alone decides."""
    parity, c = report.parity, report.candidate
    interval = (report.confidence or {}).get("drop")
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
        "max_size_mb": ("size (MB)", c.size_bytes / MEGABYTE),
        "max_memory_mb": ("memory (MB)", None if c.memory_bytes is None else c.memory_bytes / MEGABYTE),
        "max_joules": ("energy (joules)", c.joules),
    }
    asked = limits.to_json()
    if not report.examples:
        asked = {key: value for key, value in asked.items() if key != "max_drop"} | {
            "min_cosine": asked.get("min_cosine", MIN_COSINE_UNSEEN)
        }
    held = [Check(key, *found[key], asked[key]) for key in found if key in asked]
    return (*held, *_fidelities(report, asked.get("min_fidelity")))


def _fidelities(report: Report, asked: float | None) -> list[Check]:
    """Each part of the outputs that is below what is asked of it, else the one that is nearest to it.

    Where labels decide, the metric does, unless the recipe asks; constants are no limit's matter (`_dead`)."""
    if asked is None and report.metric not in (None, "cosine"):
        return []
    floor = MIN_FIDELITY if asked is None else asked
    parts = sorted((part_of(row) for row in report.parity.get("parts") or ()), key=lambda p: p.is_one_slice)
    judged = [_fidelity(p, floor) for p in parts if p.value is not None and not p.is_constant]
    broken = [c for c in judged if not c.holds]
    nearest = broken or sorted(judged, key=lambda c: (c.measured or 0.0) - c.asked)[:1]
    return nearest or ([] if asked is None or parts else [Check("min_fidelity", "fidelity", None, asked)])


def _fidelity(part: Part, floor: float) -> Check:
    return Check("min_fidelity", f"{part.measure} of {part.where}", part.value, part.asked(floor))
