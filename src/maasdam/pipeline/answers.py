"""What the subjects of a verification said to the examples, and how it scores.

Knows answers, metrics and samples. Refuses to know engines, timings and limits.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from maasdam.core import Answer, Example, Score
from maasdam.pipeline.bootstrap import confidence
from maasdam.pipeline.fidelity import Fidelity
from maasdam.pipeline.parity import Parity
from maasdam.pipeline.subjects import Observed, truth_shown
from maasdam.tasks import score, task_of

DRAWN = 4
"""Of so many examples a report keeps what was found as pictures, about 20 kB each."""


@dataclass(slots=True)
class Answers:
    """What the subjects said to the examples."""

    examples: Sequence[Example]
    task: str | None
    labels: Mapping[int, str] | None
    parity: Parity = field(default_factory=Parity)
    fidelity: Fidelity = field(default_factory=Fidelity)
    """The candidate's, against the source on its own engine."""
    beside: Parity = field(default_factory=Parity)
    """The reference's, against the source on its own engine."""
    answers: dict[str, list[Answer | None]] = field(default_factory=lambda: {"candidate": [], "reference": [], "source": []})
    by_source: int = 0
    """How many examples the source itself answered; the others are held to the reference."""
    scores: dict[str, Score] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    metric: str | None = None
    scored: int = 0
    why_not: str | None = None

    def broke(self, index: int, error: Exception) -> None:
        """The candidate's engine failed on an example."""
        self.parity.problems.append(f"the candidate broke on '{self._name(index)}': {error}")

    def compare(self, index: int, seen: Mapping[str, Observed]) -> None:
        """One example: the candidate against the source on its own engine, or where that had no time, the reference."""
        for name, observed in seen.items():
            self.answers[name].append(observed.answer)
        truth, candidate = seen.get("source", seen["reference"]), seen["candidate"]
        self.by_source += "source" in seen
        self.beside.add(self._name(index), truth.outputs, seen["reference"].outputs, None)
        if candidate.outputs:
            self.parity.add(self._name(index), truth.outputs, candidate.outputs, self._agree(truth, candidate))
            self.fidelity.add(truth.outputs, candidate.outputs)

    def score(self) -> None:
        """The metric of each column, over all examples (the source's over those it was shown)."""
        self.why_not = self._why_no_metric()
        if self.why_not is not None:
            return
        if self.task is None:
            self.metric, self.scored = "cosine", len(self.examples)
            self.scores = {name: s for name, p in (("reference", self.beside), ("candidate", self.parity)) if (s := _cosine(p))}
            if self.by_source:
                self.scores["source"] = Score("cosine", 1.0, self.by_source)
            return
        self.scored = len(self.examples)
        if self._is_beside:
            self._score_beside()
            return
        for name, seen in self.answers.items():
            answers = [answer for answer in seen if answer is not None]
            if not seen or len(answers) != len(seen):
                continue  # NaN somewhere: the problem is in parity.problems
            self.scores[name] = score(self.task, answers, self.examples[: len(answers)])
            self.metric = self.scores[name].metric

    @property
    def _is_beside(self) -> bool:
        """Whether the source says what is right: always, or where nobody else does."""
        if self.task is None or (metric := task_of(self.task).metric).beside is None:
            return False
        return metric.score is None or any(example.truth is None for example in self.examples)

    def _score_beside(self) -> None:
        """Each column against the source, where that is the metric; against the reference where the source had no time."""
        beside = task_of(self.task).metric.beside
        assert beside is not None
        whole = "source" if self.by_source == len(self.examples) else "reference"
        for name, seen in self.answers.items():
            pairs = [(a, t) for a, t in zip(seen, self.answers[whole], strict=False) if a is not None and t is not None]
            if len(pairs) != len(self.examples):
                continue
            score = beside([answer for answer, _ in pairs], [truth for _, truth in pairs], self.examples)
            if score is None:
                self.why_not, self.scored = (
                    "too few examples, or nothing in them, to compare by: the verdict rests on parity alone",
                    0,
                )
                return
            self.scores[name], self.metric = score, score.metric

    def parity_json(self, source: str) -> dict[str, Any]:
        """How far the candidate's outputs are from those of the source on its own engine, as the report holds it."""
        rest = len(self.answers["candidate"]) - self.by_source
        of = f"the source on {source}" if self.by_source else "the reference"
        found = self.parity.to_json()
        if found["agreement"] is None:
            found["agreement"] = self.fidelity.agreement
        found |= self.fidelity.to_json()
        return found | {"against": of + (f", the reference for the last {rest}" if self.by_source and rest else "")}

    @property
    def confidence(self) -> dict[str, Any] | None:
        """Intervals of the metric over the examples; None where one of the two has no score."""
        reference, candidate = self.scores.get("reference"), self.scores.get("candidate")
        if self.metric is None or reference is None or candidate is None:
            return None
        return confidence(self.metric, reference.shares, candidate.shares, over="examples")

    def samples(self) -> tuple[dict[str, Any], ...]:
        """One row per example, for checks from outside."""
        if not self.examples:
            return ()
        shown, drawn = task_of(self.task).shown, self._drawn()
        rows = zip(self.examples, self.answers["reference"], self.answers["candidate"], strict=True)
        return tuple(
            {
                "name": example.name,
                "truth": truth_shown(example, self.labels),
                "reference": None if reference is None else shown(reference),
                "candidate": None if candidate is None else shown(candidate),
                **drawn.get(number, {}),
            }
            for number, (example, reference, candidate) in enumerate(rows)
        )

    def _drawn(self) -> dict[int, dict[str, Any]]:
        """What was found in the first pictures, drawn on each, JPEG in base64."""
        draw = task_of(self.task).drawn
        out: dict[int, dict[str, Any]] = {}
        for number in range(min(DRAWN, len(self.examples))) if draw is not None else ():
            answers = {name: self.answers[name][number] for name in ("reference", "candidate")}
            payload = self.examples[number].payload
            made = {n: b64encode(draw(payload, a)).decode() for n, a in answers.items() if draw is not None and a is not None}
            out[number] = {"drawn": made}
        return out

    def _agree(self, one: Observed, other: Observed) -> bool | None:
        """Whether both answer the same; None for raw tensors, which `Fidelity` judges."""
        if one.answer is None or other.answer is None:
            return None
        return task_of(self.task).same(one.answer, other.answer)

    def _why_no_metric(self) -> str | None:
        if not self.examples:
            return "no --data was given: the verdict rests on parity alone, on random inputs (seeds 0-7)"
        if self.task is not None and not self._is_beside and any(e.truth is None for e in self.examples):
            return "the data has no labels: the verdict rests on parity alone"
        return None

    def _name(self, index: int) -> str:
        return self.examples[index].name if self.examples else f"random input {index}"


def _cosine(parity: Parity) -> Score | None:
    value = parity.cosine
    if value is None:
        return None
    return Score("cosine", value, parity.examples, shares=tuple((one, 1.0) for one in parity.cosines))
