"""What verify measured, and whether it holds.

Knows the shape of the report and the limits. Refuses to measure. What was not measured is None and says why.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from maasdam.pipeline.recipe import Limits

MIN_COSINE_UNSEEN = 0.9
"""Held where there is no data to score on and the recipe says nothing of parity: something has to decide."""
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
    failures = [*dict.fromkeys(problems)]
    if len(failures) > 5:
        failures = [*failures[:5], f"and {len(failures) - 5} more like it"]
    if report.parity.get("cosine") is None:
        failures.append("parity could not be measured: no output could be compared")
    if report.why_no_accuracy is None and report.candidate.accuracy is None:
        failures.append("the metric could not be measured: the candidate gave no answer to some examples")
    failures += judge(report.limits, report)
    return replace(report, failures=tuple(failures), notes=tuple(dict.fromkeys([*report.notes, *_notes(report)])))


def _notes(report: Report) -> list[str]:
    """What a reader should know before trusting the numbers."""
    notes = []
    load = report.conditions.get("load", [0.0])[0]
    if load > BUSY * (os.cpu_count() or 1):
        notes.append(f"the machine was busy with other work (load {load:.1f} on {os.cpu_count()} cores): timings vary")
    if report.why_no_accuracy:
        notes.append(report.why_no_accuracy)
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
    """One sentence for each limit that does not hold. A limit on something unmeasured does not hold, with one exception:
    without --data there is no metric, and parity alone decides."""
    least = limits.min_cosine if limits.min_cosine is not None or report.examples else MIN_COSINE_UNSEEN
    cosine, agreement, difference = (report.parity.get(k) for k in ("cosine", "agreement", "max_abs_diff"))
    interval = (report.confidence or {}).get("drop")
    c = report.candidate
    failures = [
        _above("drop", report.drop, limits.max_drop) if report.examples else None,
        _above("the upper end of the drop's interval", interval and interval[1], limits.max_drop_upper),
        _below("the number of examples", report.examples, limits.min_examples),
        _below("speedup", report.speedup, limits.min_speedup),
        _below("size ratio", report.size_ratio, limits.min_ratio),
        _below("cosine", cosine, least),
        _below("agreement", agreement, limits.min_agreement),
        _above("max_abs_diff", difference, limits.max_abs_diff),
        _above("latency (p50, ms)", c.p50, limits.max_latency_ms),
        _above("latency (p99, ms)", c.p99, limits.max_p99_ms),
        _below(f"throughput ({report.unit})", c.throughput, limits.min_throughput),
        _above("size (MB)", c.size_bytes / MEGABYTE, limits.max_size_mb),
        _above("memory (MB)", None if c.memory_bytes is None else c.memory_bytes / MEGABYTE, limits.max_memory_mb),
        _above("energy (joules)", c.joules, limits.max_joules),
    ]
    return tuple(f for f in failures if f is not None)


def _above(what: str, value: float | None, most: float | None) -> str | None:
    if most is None:
        return None
    if value is None or value != value:
        return f"{what} was not measured; the recipe allows {most:g} at most"
    return f"{what} is {value:.4g}; the recipe allows {most:g} at most" if value > most + 1e-9 else None


def _below(what: str, value: float | None, least: float | None) -> str | None:
    if least is None:
        return None
    if value is None or value != value:
        return f"{what} was not measured; the recipe asks for {least:g} at least"
    return f"{what} is {value:.4g}; the recipe asks for {least:g} at least" if value < least - 1e-9 else None
