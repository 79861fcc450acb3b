"""What the subjects of a verification said to the examples, and how it scores.

Knows answers, metrics and samples. Refuses to know engines, timings and limits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from maasdam.core import Example, Score
from maasdam.pipeline.bootstrap import confidence
from maasdam.pipeline.parity import Parity
from maasdam.pipeline.subjects import Observed, agree, shown, truth_shown


@dataclass(slots=True)
class Answers:
    """What the subjects said to the examples."""

    examples: Sequence[Example]
    task: str | None
    labels: Mapping[int, str] | None
    parity: Parity = field(default_factory=Parity)
    observed: dict[str, list[Observed]] = field(default_factory=lambda: {"candidate": [], "reference": [], "source": []})
    scores: dict[str, Score] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    metric: str | None = None
    scored: int = 0
    why_not: str | None = None

    def broke(self, index: int, error: Exception) -> None:
        """The candidate's engine failed on an example."""
        self.parity.problems.append(f"the candidate broke on '{self._name(index)}': {error}")

    def compare(self, index: int) -> None:
        """Candidate against reference for the example observed last."""
        one, other = self.observed["reference"][-1], self.observed["candidate"][-1]
        if other.outputs:
            self.parity.add(self._name(index), one.outputs, other.outputs, agree(one, other))

    def score(self) -> None:
        """The metric of each column, over all examples (the source's over those it was shown)."""
        self.why_not = self._why_no_metric()
        if self.why_not is not None:
            return
        if self.task is None:
            self.metric, self.scored = "cosine", len(self.examples)
            value = self.parity.cosine
            self.scores = {"reference": Score("cosine", 1.0, self.scored, True, shares=((1.0, 1.0),) * self.scored)}
            if value is not None:
                shares = tuple((one, 1.0) for one in self.parity.cosines)
                self.scores["candidate"] = Score("cosine", value, self.scored, True, shares=shares)
            return
        from maasdam.tasks import score

        self.scored = len(self.examples)
        for name, seen in self.observed.items():
            answers = [o.answer for o in seen if o.answer is not None]
            if not seen or len(answers) != len(seen):
                continue  # NaN somewhere: the problem is in parity.problems
            self.scores[name] = score(self.task, answers, self.examples[: len(answers)])
            self.metric = self.scores[name].metric
        if 0 < len(self.observed["source"]) < len(self.examples):
            self.notes.append(f"the source on its own engine was scored on the first {len(self.observed['source'])} examples")

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
        rows = zip(self.examples, self.observed["reference"], self.observed["candidate"], strict=True)
        return tuple(
            {
                "name": example.name,
                "truth": truth_shown(example, self.labels),
                "reference": shown(reference.answer),
                "candidate": shown(candidate.answer),
            }
            for example, reference, candidate in rows
        )

    def _why_no_metric(self) -> str | None:
        if not self.examples:
            return "no --data was given: the verdict rests on parity alone, on random inputs (seeds 0-7)"
        if self.task is not None and any(e.truth is None for e in self.examples):
            return "the data has no labels: the verdict rests on parity alone"
        return None

    def _name(self, index: int) -> str:
        return self.examples[index].name if self.examples else f"random input {index}"
