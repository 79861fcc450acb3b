"""Random inputs that the source takes and answers differently to; sizes and ranges are found by trying them on it.

Knows that a model may want pixels from 0 to 255, or sides that halve several times, without saying so. Refuses to know the
candidate: what is compared is chosen by the source alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

from maasdam.convert.probes import Sizes, accepted, proof_sizes
from maasdam.convert.proof.differences import Proof, Tolerance
from maasdam.convert.proof.edges import in_rows
from maasdam.core import PAST, Signature, TensorEngine, Tensors, TensorSpec
from maasdam.errors import EngineFailure, InvalidTensor, VerificationFailed

Case = tuple[int, Tensors, Tensors]
"""A seed, a batch, and what the source answers."""
Tried = dict[tuple[int, Sizes], tuple[Tensors, Tensors]]
RANGES: tuple[tuple[float, float] | None, ...] = (None, (0.0, 1.0), (0.0, 255.0), (-30.0, 30.0))
"""Of numbers whose range nothing tells: around zero first, then what pixels and measurements are like."""


def trials(source: TensorEngine, seeds: tuple[int, ...], folder: Path | None, tolerance: Tolerance) -> Iterator[Case]:
    """Cases for every seed and every set of sizes. Raises EngineFailure or InvalidTensor at once where it takes none."""
    signature, tried = _liveliest(source, seeds, folder, tolerance)

    def cases() -> Iterator[Case]:
        for seed in seeds:
            for sizes in proof_sizes(signature):
                known = tried.pop((seed, sizes), None)
                yield (seed, *(known or accepted(source.run, signature, sizes, seed=seed, folder=folder)))

    return cases()


def _liveliest(
    source: TensorEngine, seeds: tuple[int, ...], folder: Path | None, tolerance: Tolerance
) -> tuple[Signature, Tried]:
    """The source's signature with the first range in which all outputs vary, else the one in which most do; and its cases."""
    failure: EngineFailure | InvalidTensor | None = None
    found: list[tuple[int, Signature, Tried]] = []
    names = [s.name for s in source.signature.outputs]
    ranged = in_rows(source.run, source.signature, folder, proof_sizes(source.signature)[0])
    for plain, span in product(dict.fromkeys((ranged, source.signature)), RANGES):
        signature = Signature(tuple(_within(s, span) for s in plain.inputs), plain.outputs)
        if span is not None and signature == plain:
            continue  # it has no input whose range could be another
        try:
            tried = _try(source, signature, seeds, folder)
        except (EngineFailure, InvalidTensor) as error:
            failure = failure or error
            continue
        lively = _lively(tried, names, tolerance)
        found.append((lively, signature, tried))
        if lively == len(names):
            break
    if not found:
        assert failure is not None
        raise failure
    _, signature, tried = max(found, key=lambda each: each[0])  # the first of equals
    return signature, tried


def _within(spec: TensorSpec, span: tuple[float, float] | None) -> TensorSpec:
    is_free = span and spec.dtype.startswith("float") and spec.value_range is None
    return replace(spec, value_range=span) if is_free and not spec.name.startswith(PAST) and "mask" not in spec.name else spec


def _try(source: TensorEngine, signature: Signature, seeds: tuple[int, ...], folder: Path | None) -> Tried:
    """Enough cases to see outputs vary: items of one batch, or else seeds."""
    sizes = proof_sizes(signature)
    return {
        (seed, each): accepted(source.run, signature, each, seed=seed, folder=folder)
        for seed in (seeds[:1] if len(sizes) > 1 else seeds)
        for each in sizes
    }


def _lively(tried: Tried, names: list[str], tolerance: Tolerance) -> int:
    """How many outputs vary enough to prove something; -1 where one is no number."""
    proof = Proof(tolerance, names)
    try:
        for (seed, _), (batch, answer) in tried.items():
            proof.add(seed, batch, answer, answer)
    except VerificationFailed:
        return -1
    return proof.lively()
