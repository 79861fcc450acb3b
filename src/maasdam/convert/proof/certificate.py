"""Proof that a candidate computes what its source computes: both opened on their own engines, on the same inputs.

Knows which way of comparing fits a layout. Fails closed: a difference over the tolerance, an output that never varies, NaN,
lost names or fixed axes raise VerificationFailed. Refuses to know how the candidate was made.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from maasdam.convert.directions.plain_onnx import drops_ones
from maasdam.convert.networks import default_part, parts_of, reference
from maasdam.convert.probes import begin, proof_sizes
from maasdam.convert.proof.clues import clues_of
from maasdam.convert.proof.conditions import Watch, watch
from maasdam.convert.proof.differences import Certificate, Neighbours, Pairs, Proof, Scope, Tolerance
from maasdam.convert.proof.edges import Question, neighbours
from maasdam.convert.proof.nudged import Beside, beside, is_rounding
from maasdam.convert.proof.padding import without_padding
from maasdam.convert.proof.precision import tolerance_of
from maasdam.convert.proof.questions import Inquiry, questions
from maasdam.convert.proof.trials import trials
from maasdam.convert.signatures import Fixed, check_fixed, check_kept
from maasdam.core import Artifact, Progress, TensorEngine, Tensors, silent
from maasdam.engines import open_engine
from maasdam.errors import EngineFailure, InvalidTensor, MaasdamError, Unsupported, VerificationFailed

if TYPE_CHECKING:
    from maasdam.core import type_array

SEEDS = (0, 1, 2)
EXACT = ("constant", "ties")
"""Kinds of inputs that may lie exactly where an answer turns: at a half, at a bound, at what the graph compares with."""
LEAST_SECONDS = 5.0
"""For what random inputs don't reach; as long as those took where they took longer."""
DEFAULTS: dict[str, Any] = {"precision": "auto", "dynamic_quantization": True}
"""OpenVINO's own choice, as of somebody who opens the file and says nothing."""
CHANGE_ANSWERS = ("INFERENCE_PRECISION_HINT", "DYNAMIC_QUANTIZATION_GROUP_SIZE")
"""Of OpenVINO's settings, those that change numbers and not only speed."""
DEFAULT_BATCHES = 3
SETTINGS: dict[str, Any] = {"precision": "f32"}
"""What a candidate is opened with, on engines that choose a precision of their own."""


def certify(
    source: Artifact,
    candidate: Artifact,
    *,
    seeds: tuple[int, ...] = SEEDS,
    inputs: Iterable[Tensors] | None = None,
    tolerance: Tolerance | None = None,
    progress: Progress = silent,
) -> Certificate:
    """Compare `candidate` with `source` over random inputs of several seeds, batches and lengths, and over real `inputs`.

    `inputs` are prepared for the source's engine ("input_ids" [1, T] for a language model). Raises VerificationFailed
    saying which output differs and by how much; EngineFailure and MissingExtra when an engine can't run.
    """
    scope = Scope(seeds, inputs or (), tolerance or tolerance_of(source), progress)
    if candidate.layout == "genai":
        from maasdam.convert.proof.certificate_language import certify_language

        return certify_language(source, candidate, scope)
    if candidate.layout == "ctranslate2":
        from maasdam.convert.proof.certificate_whisper import certify_whisper

        return certify_whisper(source, candidate, scope)
    return _certify_tensors(default_part(source), candidate, scope)


def _certify_tensors(source: Artifact, candidate: Artifact, scope: Scope) -> Certificate:
    began = time.monotonic()
    with closing(reference(source) if parts_of(source) else cast(TensorEngine, open_engine(source))) as original:
        fixed = check_kept(original.signature, candidate.signature or original.signature)
        with closing(cast(TensorEngine, open_engine(candidate, settings=SETTINGS))) as engine:
            fixed |= check_kept(original.signature, engine.signature)
            proof = Proof(scope.tolerance, [s.name for s in original.signature.outputs], drops_ones=drops_ones(source))
            pair = _Pair(source, original, engine, proof, fixed, beside(source), watch(source))
            real = [begin(original.signature, batch) for batch in scope.inputs]
            cases = _cases(original, real, scope.seeds, source.path, scope.tolerance)
            count = len(scope.seeds) * len(proof_sizes(original.signature)) + len(real)
            bases = [pair.add(*case) for case in scope.counted(cases, count)]
            facts = pair.edges(bases, max(LEAST_SECONDS, time.monotonic() - began), scope.progress)
            facts |= {"settings": _settings(candidate, engine, bases, scope.tolerance)}
    return proof.certificate(source, candidate, scope.seeds, facts)


@dataclass(frozen=True, slots=True)
class _Pair:
    """The source and the candidate, both open, and what is proven of them so far."""

    source: Artifact
    original: TensorEngine
    engine: TensorEngine
    proof: Proof
    fixed: Fixed
    aside: Beside | None
    watched: Watch

    def add(self, seed: int | None, batch: Tensors, answer: Tensors) -> Tensors:
        """Compare a random or a real batch, and give it back."""
        check_fixed(self.fixed, answer)
        self.watched.look(batch)
        found = without_padding(batch, answer, _answer(self.engine, batch))
        self.proof.add(seed, batch, answer, found, neighbours=self._steps(batch))
        return batch

    def edges(self, bases: Sequence[Tensors], seconds: float, progress: Progress) -> dict[str, Any]:
        """Compare what random inputs don't reach, and say what of it was not reached."""
        beyond: list[dict[str, Any]] = []
        refused: list[str] = []
        inquiry, clues = Inquiry(), clues_of(self.source)
        asking = questions(
            self.original, bases, folder=self.source.path, clues=clues, watched=self.watched, seconds=seconds, inquiry=inquiry
        )
        for number, question in enumerate(asking):
            progress("compare at the edges", number)
            check_fixed(self.fixed, question.answer)
            if question.is_beyond:
                beyond.append(self._beyond(question))
                continue
            try:
                found = without_padding(question.batch, question.answer, _answer(self.engine, question.batch))
            except VerificationFailed:
                if not question.may_be_refused:
                    raise
                refused.append(question.kind)
                continue
            pairs = self._pairs(question.batch)
            beside = self.aside or (lambda batch, n: self.original.run(neighbours(batch, seed=n, is_tied=False)))
            if _is_one_number(question.batch) and is_rounding(
                question, found, bases, beside, self.proof.limit, None if self.aside else pairs
            ):
                beyond.append(self._beyond(question))
                continue
            self.proof.add(
                None, question.batch, question.answer, found, kind=question.kind, group=question.group,
                neighbours=self._steps(question.batch, is_tied=question.is_tied),
                pairs=pairs if question.kind.startswith(EXACT) else None,
            )  # fmt: skip
        return {
            "conditions": self.watched.to_json(),
            "integers": dict(inquiry.rows),
            "lengths": {"shortest": inquiry.shortest, "refused_by_the_candidate": refused},
            "beyond": beyond,
            "left_out_for_time": list(dict.fromkeys(kind.partition(" ")[0] for kind in inquiry.left_out)),
        }

    def _steps(self, batch: Tensors, *, is_tied: bool = False) -> Neighbours:
        """What the source answers one step of its input's type beside the batch, in the n-th direction; of its weights' type
        where the input has no steps."""
        if (aside := self.aside) is not None:
            return lambda n: aside(batch, n)
        return lambda n: self.original.run(neighbours(batch, seed=n, is_tied=is_tied))

    def _pairs(self, batch: Tensors) -> Pairs:
        def pair(n: int) -> tuple[Tensors, Tensors]:
            moved = neighbours(batch, seed=n, is_tied=True)
            return self.original.run(moved), self.engine.run(moved)

        return pair

    def _beyond(self, question: Question) -> dict[str, Any]:
        """Does it agree where no conversion has to? It is written down, so that nobody has to find out."""
        alone = Proof(self.proof.tolerance, list(question.answer))
        try:
            alone.add(None, question.batch, question.answer, self.engine.run(question.batch), kind=question.kind)
        except MaasdamError:
            return {"inputs": question.kind, "agrees": False}
        return {"inputs": question.kind, "agrees": alone.agrees()}


def _is_one_number(batch: Tensors) -> bool:
    """Is all of it one number, or all of each item?"""

    def is_one(array: type_array) -> bool:
        items = array.reshape(len(array), -1) if array.ndim > 1 else array.reshape(1, -1)
        return bool(items.shape[1] > 1 and (items == items[:, :1]).all()) or bool((array == array.flat[0]).all())

    return all(array.size and is_one(array) for array in batch.values())


def _answer(candidate: TensorEngine, batch: Tensors) -> Tensors:
    try:
        return candidate.run(batch)
    except (EngineFailure, InvalidTensor) as error:
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in batch.items())
        raise VerificationFailed(f"the converted model breaks where the source answers, on {shapes}: {error}") from error


def _cases(
    original: TensorEngine, scope: Sequence[Tensors], seeds: tuple[int, ...], folder: Path, tolerance: Tolerance
) -> Iterator[tuple[int | None, Tensors, Tensors]]:
    """Random batches, then the given ones; the given ones alone where the source takes no random ones."""
    try:
        yield from trials(original, seeds, folder, tolerance)
    except (EngineFailure, InvalidTensor) as error:
        if not scope:
            raise Unsupported(
                f"the source itself does not run on random inputs, so nothing can be compared ({error}); give real ones with "
                "--data, a folder or an .npz file of named arrays"
            ) from error
    yield from ((None, batch, original.run(batch)) for batch in scope)


def _settings(candidate: Artifact, engine: TensorEngine, bases: Sequence[Tensors], tolerance: Tolerance) -> dict[str, Any]:
    """What the candidate's engine was told, and whether the file alone gives the same: opened with nothing said, on this
    processor."""
    if candidate.layout != "ir":
        return {"named": {}, "engine_defaults_agree": True}
    from maasdam.engines.openvino_engine import properties

    options = properties({**SETTINGS, "threads": 1})
    named = {name: value for name, value in options.items() if name in CHANGE_ANSWERS}
    with closing(cast(TensorEngine, open_engine(candidate, settings=DEFAULTS))) as plain:
        try:
            proof = Proof(tolerance, [s.name for s in engine.signature.outputs])
            for batch in bases[:DEFAULT_BATCHES]:
                proof.add(0, batch, engine.run(batch), plain.run(batch), kind="defaults")
            return {"named": named, "engine_defaults_agree": proof.agrees()}
        except MaasdamError:
            return {"named": named, "engine_defaults_agree": False}
