"""What verifications of every kind of model share: timings by turns, energy, memory, and the report's columns.

Knows subjects by name ("candidate", "reference", "source"); what is one subject under two names is measured once. Refuses to
know what a subject is, and to choose limits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from maasdam.core import Artifact
from maasdam.pipeline.conditions import Conditions, circumstances
from maasdam.pipeline.examples import Inputs
from maasdam.pipeline.footprint import footprint_bytes
from maasdam.pipeline.measure import Timing, joules_per_run, take_turns
from maasdam.pipeline.recipe import Limits
from maasdam.pipeline.report import Column, Report, drop_of

Subject = TypeVar("Subject")
Runner = Callable[[Subject], Callable[[int], object]]
"""A subject to what is called once a round, with the round's number."""


def timed(
    subjects: Mapping[str, Subject], run: Runner[Subject], stage: str, seconds: float, rounds: tuple[int, int], how: Conditions
) -> dict[str, Timing]:
    """Timings by name; the source is shown beside the others."""
    once = {str(id(s)): s for s in subjects.values()}
    compared = {str(id(s)) for name, s in subjects.items() if name != "source"}
    timings = take_turns(
        {key: run(s) for key, s in once.items()},
        seconds=seconds,
        rounds=rounds,
        aside=frozenset(once.keys() - compared),
        tell=lambda done, total: how.progress(stage, done, total),
    )
    return {name: timings[str(id(s))] for name, s in subjects.items()}


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast the subjects are, by name."""

    alone: Mapping[str, Timing]
    """One item at a time."""
    per_second: Mapping[str, float]
    joules: Mapping[str, float | None]
    """Of one item."""

    def column(
        self,
        name: str,
        artifact: Artifact,
        memory: Mapping[str, int | None],
        accuracy: float | None = None,
        examples: int | None = None,
        extra: Mapping[str, float] | None = None,
    ) -> Column:
        """One column of the report. `memory` is in bytes, by digest."""
        times = self.alone[name]
        return Column(
            engine=artifact.engine,
            digest=artifact.digest,
            size_bytes=artifact.size_bytes,
            latency_ms=tuple(round(s * 1000, 6) for s in times.seconds),
            p50=times.p50 * 1000,
            p99=times.p99 * 1000,
            throughput=self.per_second[name],
            joules=self.joules[name],
            memory_bytes=memory.get(artifact.digest),
            accuracy=accuracy,
            examples=examples,
            extra=extra or {},
        )


def speed_of(
    subjects: Mapping[str, Subject],
    alone: Mapping[str, Timing],
    run: Runner[Subject],
    rounds: tuple[int, int],
    items: Callable[[Subject], float],
    how: Conditions,
) -> Speed:
    """`alone`, and beside it how many items a second `run` gives, and their joules; `items` are those of one run."""
    together = timed(subjects, run, "throughput", how.measure_seconds / 2, rounds, how)
    how.progress("energy")
    spent = {key: joules_per_run(run(s), how.joules) for key, s in {id(s): s for s in subjects.values()}.items()}
    joules = {name: None if (whole := spent[id(s)]) is None else whole / items(s) for name, s in subjects.items()}
    return Speed(alone, {name: items(s) / together[name].p50 for name, s in subjects.items()}, joules)


def memory(
    artifacts: Iterable[tuple[Artifact, Sequence[Inputs]]], threads: int, how: Conditions, notes: list[str]
) -> dict[str, int | None]:
    """Bytes by digest, from a few inputs each; {} where it was switched off, which the notes say."""
    found: dict[str, int | None] = {}
    if not how.measures_memory:
        notes.append("memory was not measured: it was switched off")
        return found
    for artifact, inputs in artifacts:
        if artifact.digest not in found:
            how.progress(f"memory of {artifact.engine}")
            found[artifact.digest], why = footprint_bytes(artifact, inputs, threads, how.device)
            notes += [why] if why else []
    return found


def report_of(
    columns: Mapping[str, Column],
    metric: str | None,
    limits: Limits,
    how: Conditions,
    threads: int,
    notes: Sequence[str],
    says: Mapping[str, Any],
    **rest: Any,
) -> Report:
    """The report of these columns; `says` what the numbers are of, `rest` are fields that one kind of model has alone."""
    candidate, reference = columns["candidate"], columns["reference"]
    return Report(
        candidate=candidate,
        reference=reference,
        source=columns.get("source"),
        metric=metric,
        drop=drop_of(metric, reference.accuracy, candidate.accuracy) if metric else None,
        energy_method=how.energy_method(candidate.joules),
        notes=(*how.notes, *notes),
        calibration=how.calibration,
        optimization=how.optimization,
        limits=limits,
        conditions={**circumstances(how, threads), **says},
        **rest,
    )


def not_proven_elsewhere(source: Artifact) -> str:
    """The note of a build whose source is its own reference."""
    return f"the reference is the source on its own engine ({source.engine}): it is proven on no other here"
