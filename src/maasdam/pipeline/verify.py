"""Measure a build against its source. It judges, never edits.

Knows which measurement belongs in which column. Refuses to choose limits, and to fill in what it could not measure.

    candidate, references (the source at float32 on ONNX Runtime and on OpenVINO, proven), source on its own engine
      --a few examples--> references that answer as the source does
      --take turns--> latency, throughput   (the faster reference is the reference)
      --every example--> answers, metric, parity with the source   --child processes--> memory   --limits--> Report
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from maasdam.artifacts.store import file_digests
from maasdam.core import OF_ITS_ENGINE, TEXT_GENERATION, UNKNOWN, Artifact, Batching, Example
from maasdam.errors import (
    EngineFailure,
    InvalidInput,
    InvalidTensor,
    LimitExceeded,
    MaasdamError,
    Unsupported,
    VerificationFailed,
)
from maasdam.pipeline.answers import Answers
from maasdam.pipeline.columns import memory, not_proven_elsewhere, report_of, speed_of, timed
from maasdam.pipeline.conditions import Conditions
from maasdam.pipeline.examples import Inputs, PreparedExamples, made_up_inputs
from maasdam.pipeline.fidelity import Fidelity
from maasdam.pipeline.recipe import Limits
from maasdam.pipeline.report import Column, Report, finished
from maasdam.pipeline.subjects import Observed, TensorSubject
from maasdam.tasks.files import labels_of

SOURCE_SECONDS = 45.0
"""How long the source's own engine may take over the examples; it answers as many as fit, and the verdict rests on these."""
HELD_TO_SOURCE = 16
"""Examples on which a reference is held to the source before anything is held to the reference."""
REFERENCE_LOSES = 0.01
"""What a reference may lose of what an output tells (`Fidelity.lost`): it was proven to 1e-4 on other inputs."""


def verify(
    candidate: Artifact,
    references: Sequence[Artifact],
    source: Artifact,
    examples: PreparedExamples | Sequence[Example],
    limits: Limits,
    conditions: Conditions | None = None,
) -> Report:
    """Measure `candidate` against the faster of `references`, with `source` on its own engine beside them.

    Without examples there is no metric: parity on made-up inputs decides, and the report says so. Raises
    VerificationFailed where the candidate or every reference can't be run at all.
    """
    how = conditions or Conditions()
    prepared = examples if isinstance(examples, PreparedExamples) else PreparedExamples(examples)
    if candidate.writes_speech:
        from maasdam.pipeline.verify_speech import verify_speech

        return verify_speech(candidate, references, source, prepared, limits, how)
    if candidate.signature is None and candidate.task != TEXT_GENERATION:
        raise Unsupported(f"a {candidate.engine} model for {candidate.task} can't be verified: nothing is known of its answers")
    if candidate.signature is None:
        from maasdam.engines.batching_kept import OWN
        from maasdam.pipeline.verify_text import verify_text

        report = verify_text(candidate, references, source, prepared, limits, how)
        return replace(report, batching=OWN) if report.batching == OF_ITS_ENGINE else report
    return _Tensors(candidate, references, source, prepared, how).report(limits)


@dataclass(slots=True)
class _Tensors:
    """One verification of a tensor engine, while it runs."""

    candidate: Artifact
    references: Sequence[Artifact]
    source: Artifact
    examples: PreparedExamples
    how: Conditions
    notes: list[str] = field(default_factory=list)

    def report(self, limits: Limits) -> Report:
        threads = int(self.candidate.settings.get("threads") or self.how.threads_used)
        subjects = self._open_all(threads)
        try:
            self._settle_references(subjects)
            times = timed(subjects, lambda s: s.run_one, "latency", self.how.measure_seconds, (20, 300), self.how)
            faster = min((n for n in subjects if n.startswith("reference")), key=lambda n: times[n].p50)
            for name in [n for n in subjects if n.startswith("reference") and n != faster]:
                other = subjects.pop(name)
                took = times.pop(name)
                self.notes.append(f"the slower reference, on {other.artifact.engine}: {took.p50 * 1000:.3g} ms (median)")
                _close(other, subjects)
            subjects["reference"], times["reference"] = subjects.pop(faster), times.pop(faster)
            speed = speed_of(subjects, times, lambda s: s.run_batch, (5, 100), lambda s: s.batch_rows, self.how)
            answers = self._answer(subjects)
            precisions = subjects["candidate"].engine.precisions()
            batching = self._batching(subjects["candidate"])
        finally:
            for subject in {id(s): s for s in subjects.values()}.values():
                subject.close()
        known = memory(((s.artifact, s.inputs_to_load) for s in subjects.values()), threads, self.how, self.notes)
        columns = {}
        for name, s in subjects.items():
            score = answers.scores.get(name)
            scored = () if score is None else (score.value, score.examples, score.extra)
            columns[name] = speed.column(name, s.artifact, known, *scored)
        return replace(self._judged(limits, columns, answers, precisions, threads), batching=batching)

    def _open_all(self, threads: int) -> dict[str, TensorSubject]:
        """The subjects by name; the same files with the same settings are opened once, so that noise tells no difference."""
        from maasdam.engines import open_engine

        opened: dict[str, TensorSubject] = {}
        made_up = [] if len(self.examples) else self._made_up()
        subjects: dict[str, TensorSubject] = {}
        wanted = {"candidate": self.candidate}
        wanted |= {f"reference on {r.engine}": r for r in self.references}
        wanted |= {"source": self.source}
        for name, artifact in wanted.items():
            self.how.progress(f"open the {name}")
            key = _identity(artifact)
            try:
                if key not in opened:
                    with self.how.attempts.step("verify", key):
                        engine: Any = open_engine(artifact, device=self.how.device, threads=threads)
                        subject = TensorSubject(artifact, engine, self.examples, made_up)
                        subject.run_one(0)
                    opened[key] = subject
                subjects[name] = opened[key]
            except InvalidInput:
                raise  # an example is no good: that is the caller's, whoever reads it
            except MaasdamError as error:
                if name == "candidate":
                    raise VerificationFailed(f"the candidate does not run on {artifact.engine}: {error}") from error
                self.notes.append(f"{name} was not measured: {error}")
        return subjects

    def _made_up(self) -> list[Inputs]:
        """The same for all, of what the source takes; of what another takes where the source does not open."""
        for artifact in (self.source, *self.references):
            with suppress(MaasdamError):
                if artifact.signature is not None:
                    return made_up_inputs(artifact)
        return made_up_inputs(self.candidate)

    def _settle_references(self, subjects: dict[str, TensorSubject]) -> None:
        """Leave out references that do not answer as the source does; the source itself is the reference where none is left."""
        source = subjects.get("source")
        for name in [n for n in subjects if n.startswith("reference")]:
            reference = subjects[name]
            if source is None or reference is source:
                continue
            self.how.progress(f"compare the {name} with the source")
            with self.how.attempts.step("verify", _identity(reference.artifact)):
                difference = _differs(source, reference)
            if difference:
                self.notes.append(f"{name} is none: {difference}")
                _close(subjects.pop(name), subjects)
        if any(n.startswith("reference") for n in subjects):
            return
        if source is None:
            raise VerificationFailed("neither the reference nor the source runs here: " + "; ".join(self.notes))
        subjects["reference"] = source
        self.notes.append(not_proven_elsewhere(self.source))

    def _answer(self, subjects: Mapping[str, TensorSubject]) -> Answers:
        """Every example through the candidate and the reference, and as many as time allows through the source."""
        import time

        answers = Answers(self.examples.examples, self.candidate.task, labels_of(self.source.path))
        answers.parity.signature = answers.beside.signature = self.source.signature
        count, source_until = len(subjects["candidate"]), time.monotonic() + SOURCE_SECONDS
        for index in range(count):
            self.how.progress("score", index, count)
            once: dict[int, Observed] = {}
            seen: dict[str, Observed] = {}
            for name in [n for n in ("candidate", "reference", "source") if n in subjects]:
                subject = subjects[name]
                if name == "source" and time.monotonic() > source_until and id(subject) not in once:
                    continue
                try:
                    if id(subject) not in once:
                        once[id(subject)] = subject.observe(index)
                except EngineFailure as error:
                    if name != "candidate":
                        raise
                    once[id(subject)] = Observed((), None)
                    answers.broke(index, error)
                seen[name] = once[id(subject)]
            answers.compare(index, seen)
        self.how.progress("score", count, count)
        answers.score()
        if 0 < answers.by_source < count:
            says = f"the source on its own engine answered the first {answers.by_source} of {count} examples in time"
            self.notes.append(f"{says}; the others are held to the reference")
        return answers

    def _batching(self, candidate: TensorSubject) -> Batching:
        """Tried on the candidate's own examples, where it has some."""
        from maasdam.engines.batching import find_batching
        from maasdam.engines.batching_kept import NEVER
        from maasdam.engines.made_up import integer_ranges

        if self.candidate.settings.get("batch") == "never":
            return NEVER
        self.how.progress("batching")
        examples = candidate.inputs_to_load if len(self.examples) else []
        ranges = integer_ranges(self.candidate, candidate.engine.signature)
        try:
            with self.how.attempts.step("batching", self.candidate.digest):
                return find_batching(candidate.engine, ranges, examples)
        except (EngineFailure, LimitExceeded) as error:
            return Batching(UNKNOWN, f"trying it ended the process, or could not be done: {error}")

    def _judged(
        self, limits: Limits, columns: Mapping[str, Column], answers: Answers, precisions: Mapping[str, int], threads: int
    ) -> Report:
        report = report_of(
            columns,
            answers.metric,
            limits,
            self.how,
            threads,
            (*self.notes, *answers.notes),
            {"latency_of": "one example at batch 1, prepared beforehand", "throughput_batch": BATCH_SAYS},
            parity=answers.parity_json(self.source.engine),
            examples=answers.scored,
            unit="items/s",
            why_no_accuracy=answers.why_not,
            confidence=answers.confidence,
            precisions=precisions,
            samples=answers.samples(),
        )
        return finished(report, answers.parity.problems)


def _differs(source: TensorSubject, reference: TensorSubject) -> str | None:
    """How the reference's answers are not the source's, over the first examples; None where they are."""
    fidelity = Fidelity()
    for index in range(min(HELD_TO_SOURCE, len(source))):
        try:
            fidelity.add(source.observe(index).outputs, reference.observe(index).outputs)
        except (EngineFailure, InvalidTensor) as error:
            return f"it breaks on an example: {error}"
    lost = fidelity.lost
    if lost is None or lost <= REFERENCE_LOSES:
        return None
    worst = next((part.where for part in fidelity.worst()), "an output")
    return f"{worst} loses {lost:.3g} of what it tells on the source's own engine ({source.artifact.engine})"


BATCH_SAYS = "8 examples in one run where the batch is dynamic, else 1"


def _identity(artifact: Artifact) -> str:
    """What decides how an artifact runs here: its files, its engine and its settings, but the threads, which are given."""
    settings = {k: v for k, v in artifact.settings.items() if (k, v) != ("precision", "f32") and k != "threads"}
    files = file_digests(artifact) or {"": artifact.digest}
    return json.dumps([files, artifact.engine, settings], sort_keys=True)


def _close(subject: TensorSubject, kept: Mapping[str, TensorSubject]) -> None:
    if all(subject is not other for other in kept.values()):
        subject.close()
