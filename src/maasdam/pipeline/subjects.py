"""What is compared in a verification: an opened artifact that answers examples and can be timed.

Knows tensor engines and processors. Refuses to know limits and which of the subjects is the reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from maasdam.core import Answer, Artifact, Boxes, Example, TensorEngine, Tensors
from maasdam.pipeline.examples import Inputs, PreparedExamples, Preparer
from maasdam.pipeline.parity import flat

if TYPE_CHECKING:
    from maasdam.core import type_array

TIMED_INPUTS = 16
"""Different examples that latency is measured on."""
BATCH = 8
"""Rows per run where throughput is measured, if the batch is dynamic."""


@dataclass(frozen=True, slots=True)
class Observed:
    """What a subject gave for one example. `answer` is None where the output is no number or there is no task."""

    outputs: tuple[Tensors, ...]
    answer: Answer | None


class TensorSubject:
    """A tensor engine with its artifact's processor, over one set of examples, or over made-up inputs where there is none."""

    def __init__(
        self, artifact: Artifact, engine: TensorEngine, examples: PreparedExamples, made_up: Sequence[Inputs] = ()
    ) -> None:
        self.artifact = artifact
        self.engine = engine
        self._examples = examples
        self._prepare = Preparer(artifact)
        self._made_up = made_up
        self._timed = self._timed_inputs()
        self._batch = stacked(self._timed[0][0], self.engine) if self._timed else {}

    def __len__(self) -> int:
        return len(self._examples) or len(self._made_up)

    def observe(self, index: int) -> Observed:
        """Outputs and answer for example `index`."""
        inputs = self._inputs(index)
        outputs = tuple(self.engine.run(tensors) for tensors in inputs)
        answer: Answer | None = None
        if len(self._examples) and self._prepare.processor is not None and np.isfinite(flat(outputs)).all():
            answer = self._prepare.processor.finish(outputs, self._examples.examples[index].payload)
        return Observed(outputs, answer)

    def run_one(self, number: int) -> None:
        """One example, prepared beforehand: what latency is the latency of."""
        for tensors in self._timed[number % len(self._timed)]:
            self.engine.run(tensors)

    def run_batch(self, number: int) -> None:
        """`batch_rows` copies of one example in one run."""
        self.engine.run(self._batch)

    @property
    def batch_rows(self) -> int:
        """How many examples `run_batch` runs."""
        return len(next(iter(self._batch.values()))) if self._batch else 1

    @property
    def inputs_to_load(self) -> list[Inputs]:
        """A few inputs, for measuring memory."""
        return [inputs[0] for inputs in self._timed]

    def close(self) -> None:
        """Close the engine."""
        self.engine.close()

    def _inputs(self, index: int) -> Sequence[Inputs]:
        return self._examples.of(index, self._prepare) if len(self._examples) else [self._made_up[index]]

    def _timed_inputs(self) -> list[Sequence[Inputs]]:
        step = max(1, len(self) // TIMED_INPUTS)
        return [self._inputs(index) for index in range(0, len(self), step)][:TIMED_INPUTS]


def truth_shown(example: Example, labels: Mapping[int, str] | None) -> Any:
    """What is right, in the same words as the answers."""
    if isinstance(example.truth, int) and labels:
        return labels.get(example.truth, example.truth)
    if isinstance(example.truth, Boxes):
        return "; ".join(box.label for box in example.truth.boxes) or "nothing"
    return example.truth


def stacked(tensors: Inputs, engine: TensorEngine) -> Inputs:
    """`BATCH` copies of one row as one batch, where every input's batch is dynamic and the row is a row."""
    specs = {s.name: s for s in engine.signature.inputs}
    if any(not specs[n].shape or specs[n].shape[0] is not None or len(a) != 1 for n, a in tensors.items()):
        return tensors
    most = min((s.axes[0].most for s in specs.values() if s.axes and s.axes[0] and s.axes[0].most), default=BATCH)
    return {name: cast("type_array", np.repeat(array, min(BATCH, most), axis=0)) for name, array in tensors.items()}
