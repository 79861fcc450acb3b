"""Proof that a candidate computes what its source computes: both opened on their own engines, on the same inputs.

Knows which way of comparing fits a layout. Fails closed: a difference over the tolerance, an output that never varies, NaN,
lost names or fixed axes raise VerificationFailed. Refuses to know how the candidate was made.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import cast

from maasdam.core import Artifact, Progress, TensorEngine, Tensors, silent
from maasdam.engines import open_engine
from maasdam.errors import EngineFailure, Unsupported, VerificationFailed
from maasdam.pipeline.convert.networks import default_part, parts_of, reference
from maasdam.pipeline.convert.plain_onnx import drops_ones
from maasdam.pipeline.convert.precision import tolerance_of
from maasdam.pipeline.convert.probes import begin, proof_sizes
from maasdam.pipeline.convert.proof import Certificate, Proof, Tolerance
from maasdam.pipeline.convert.signatures import check_fixed, check_kept
from maasdam.pipeline.convert.trials import trials

SEEDS = (0, 1, 2)


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
    tolerance = tolerance or tolerance_of(source)
    if candidate.layout == "genai":
        from maasdam.pipeline.convert.certificate_language import certify_language

        return certify_language(source, candidate, seeds, inputs or (), tolerance, progress)
    if candidate.layout == "ctranslate2":
        from maasdam.pipeline.convert.certificate_whisper import certify_whisper

        return certify_whisper(source, candidate, seeds, inputs or (), tolerance, progress)
    return _certify_tensors(default_part(source), candidate, seeds, inputs or (), tolerance, progress)


def _reference(source: Artifact) -> TensorEngine:
    if parts_of(source):
        return reference(source)
    return cast(TensorEngine, open_engine(source))


def _certify_tensors(
    source: Artifact,
    candidate: Artifact,
    seeds: tuple[int, ...],
    inputs: Iterable[Tensors],
    tolerance: Tolerance,
    progress: Progress,
) -> Certificate:
    original = _reference(source)
    try:
        fixed = check_kept(original.signature, candidate.signature or original.signature)
        engine = cast(TensorEngine, open_engine(candidate, settings={"precision": "f32"}))
        try:
            fixed |= check_kept(original.signature, engine.signature)
            names = [s.name for s in original.signature.outputs]
            proof = Proof(tolerance, names, drops_ones=drops_ones(source))
            given = [begin(original.signature, batch) for batch in inputs]
            count = len(seeds) * len(proof_sizes(original.signature)) + len(given)
            for done, (seed, batch, answer) in enumerate(_cases(original, given, seeds, source.path, tolerance)):
                progress("compare with the source", done, count)
                check_fixed(fixed, answer)
                proof.add(seed, batch, answer, _answer(engine, batch))
            progress("compare with the source", count, count)
        finally:
            engine.close()
    finally:
        original.close()
    return proof.certificate(source, candidate, seeds)


def _answer(candidate: TensorEngine, batch: Tensors) -> Tensors:
    try:
        return candidate.run(batch)
    except EngineFailure as error:
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in batch.items())
        raise VerificationFailed(f"the converted model breaks where the source answers, on {shapes}: {error}") from error


def _cases(
    original: TensorEngine, given: Sequence[Tensors], seeds: tuple[int, ...], folder: Path, tolerance: Tolerance
) -> Iterator[tuple[int | None, Tensors, Tensors]]:
    """Random batches, then the given ones; the given ones alone where the source takes no random ones."""
    try:
        yield from trials(original, seeds, folder, tolerance)
    except EngineFailure as error:
        if not given:
            raise Unsupported(
                f"the source itself does not run on random inputs, so nothing can be compared ({error}); give real ones with "
                "--data, a folder or an .npz file of named arrays"
            ) from error
    yield from ((None, batch, original.run(batch)) for batch in given)
