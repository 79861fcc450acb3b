"""Proof that a candidate computes what its source computes: both opened on their own engines, on the same inputs.

Knows which way of comparing fits a layout. Fails closed: a difference over the tolerance, an output that never varies, NaN,
lost names or fixed axes raise VerificationFailed. Refuses to know how the candidate was made.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from maasdam.core import Artifact, Progress, TensorEngine, Tensors, silent
from maasdam.engines import open_engine
from maasdam.pipeline.convert.probes import proof_cases
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
    return _certify_tensors(source, candidate, seeds, inputs or (), tolerance, progress)


def _certify_tensors(
    source: Artifact,
    candidate: Artifact,
    seeds: tuple[int, ...],
    inputs: Iterable[Tensors],
    tolerance: Tolerance,
    progress: Progress,
) -> Certificate:
    reference = cast(TensorEngine, open_engine(source))
    try:
        check_kept(reference.signature, candidate.signature or reference.signature)
        engine = cast(TensorEngine, open_engine(candidate, settings={"precision": "f32"}))
        try:
            check_kept(reference.signature, engine.signature)
            proof = Proof(tolerance, [s.name for s in reference.signature.outputs])
            cases: list[tuple[int | None, Tensors]] = list(proof_cases(reference.signature, seeds, source.path))
            cases += [(None, batch) for batch in inputs]
            for done, (seed, batch) in enumerate(cases):
                progress("compare with the source", done, len(cases))
                proof.add(seed, batch, reference.run(batch), engine.run(batch))
            progress("compare with the source", len(cases), len(cases))
        finally:
            engine.close()
    finally:
        reference.close()
    return proof.certificate(source, candidate, seeds)
