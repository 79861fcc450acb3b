"""Proof that a candidate computes what its source computes: both opened on their own engines, on the same inputs.

Knows which way of comparing fits a layout. Fails closed: a difference over the tolerance, an output that never varies, NaN,
lost names or fixed axes raise VerificationFailed. Refuses to know how the candidate was made.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from maasdam.core import Artifact, Progress, TensorEngine, Tensors, silent
from maasdam.engines import open_engine
from maasdam.pipeline.convert.networks import default_part, parts_of, reference
from maasdam.pipeline.convert.probes import begin, proof_cases
from maasdam.pipeline.convert.proof import Certificate, Proof, Tolerance
from maasdam.pipeline.convert.signatures import check_kept

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
    tolerance = tolerance or Tolerance()
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
        check_kept(original.signature, candidate.signature or original.signature)
        engine = cast(TensorEngine, open_engine(candidate, settings={"precision": "f32"}))
        try:
            check_kept(original.signature, engine.signature)
            proof = Proof(tolerance, [s.name for s in original.signature.outputs])
            cases: list[tuple[int | None, Tensors]] = list(proof_cases(original.signature, seeds, source.path))
            cases += [(None, begin(original.signature, batch)) for batch in inputs]
            for done, (seed, batch) in enumerate(cases):
                progress("compare with the source", done, len(cases))
                proof.add(seed, batch, original.run(batch), engine.run(batch))
            progress("compare with the source", len(cases), len(cases))
        finally:
            engine.close()
    finally:
        original.close()
    return proof.certificate(source, candidate, seeds)
