"""How far two sets of outputs are apart. Knows arrays; never engines, tasks or limits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from maasdam.core import Signature, Tensors
from maasdam.pipeline.likeness import are_whole, differ_in_ones, same_but_no_number, tops

if TYPE_CHECKING:
    from maasdam.core import type_array


@dataclass(slots=True)
class Parity:
    """Gathers one example after the other. Before the first everything is None."""

    examples: int = 0
    max_abs_diff: float | None = None
    cosines: list[float] = field(default_factory=list)
    agreements: list[bool] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """What makes a comparison worthless: NaN, other shapes."""
    signature: Signature | None = None
    """Of the reference: where it leaves an axis of an output open, that output may be a list whose length the data decide."""

    def add(self, name: str, reference: Sequence[Tensors], candidate: Sequence[Tensors], agrees: bool | None) -> None:
        """One example's outputs, reference and candidate in the same order."""
        self.examples += 1
        if agrees is not None:
            self.agreements.append(agrees)
        self.problems += _of_another_rank(name, reference, candidate)
        reference, candidate = self._without_lists(reference, candidate)
        wanted, got = flat(reference), flat(candidate)
        if wanted.shape != got.shape:
            self.problems.append(f"the output for '{name}' has {got.size} numbers where the reference's has {wanted.size}")
            return
        if wanted.size and not np.isfinite(wanted).any():
            self.problems.append(f"the reference's output for '{name}' holds NaN or infinity and no number")
            return
        same = same_but_no_number(wanted, got)  # an infinity that both give (a masked logit)
        wanted[same], got[same] = 0, 0
        if not np.isfinite(got).all():
            self.problems.append(f"the candidate's output for '{name}' holds NaN or infinity")
            return
        if not np.isfinite(wanted).all():
            self.problems.append(f"the reference's output for '{name}' holds NaN or infinity")
            return
        if wanted.size:
            difference = float(np.abs(wanted - got).max())
            self.max_abs_diff = difference if self.max_abs_diff is None else max(self.max_abs_diff, difference)
            agreement = _agreement(reference, candidate)
            self.cosines.append(cosine(wanted, got) if agreement is None else agreement)

    def _without_lists(
        self, reference: Sequence[Tensors], candidate: Sequence[Tensors]
    ) -> tuple[Sequence[Tensors], Sequence[Tensors]]:
        """Both without the outputs that are lists of another length in each: `Fidelity` looks for their rows."""
        lists = {
            name
            for one, other in zip(reference, candidate, strict=False)
            for name in one.keys() & other.keys()
            if self._may_be_a_list(name, one[name].shape, other[name].shape)
        }
        if not lists:
            return reference, candidate
        one, other = ([{n: a for n, a in t.items() if n not in lists} for t in side] for side in (reference, candidate))
        return one, other

    def _may_be_a_list(self, name: str, one: tuple[int, ...], other: tuple[int, ...]) -> bool:
        if self.signature is None or one == other or len(one) != len(other):
            return False
        shape = next((s.shape for s in self.signature.outputs if s.name == name), ())
        differ = [i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b]
        return len(shape) == len(one) and len(differ) == 1 and shape[differ[0]] is None

    @property
    def cosine(self) -> float | None:
        """Mean over the examples; of class numbers alone, the share that are equal."""
        return sum(self.cosines) / len(self.cosines) if self.cosines else None

    @property
    def agreement(self) -> float | None:
        """Share of examples with the same answer."""
        return sum(self.agreements) / len(self.agreements) if self.agreements else None

    def to_json(self) -> dict[str, Any]:
        """As the report holds it."""
        return {
            "max_abs_diff": self.max_abs_diff,
            "cosine": self.cosine,
            "agreement": self.agreement,
            "examples": self.examples,
        }


def _of_another_rank(name: str, reference: Sequence[Tensors], candidate: Sequence[Tensors]) -> list[str]:
    """Outputs whose places can't be told: of more or fewer axes than the reference's, beside axes of one."""
    return [
        f"the output '{key}' for '{name}' has shape {list(other[key].shape)} where the reference's has {list(one[key].shape)}"
        for one, other in zip(reference, candidate, strict=False)
        for key in one
        if key in other and one[key].ndim != other[key].ndim and not differ_in_ones(one[key].shape, other[key].shape)
    ]


def _agreement(reference: Sequence[Tensors], candidate: Sequence[Tensors]) -> float | None:
    """Share of equal tops where all that is told are class numbers, between which there is no angle; None for other outputs."""
    pairs = [(one[name], other[name]) for one, other in zip(reference, candidate, strict=False) for name in one]
    if not all(one.shape == other.shape and are_whole(one, other) for one, other in pairs):
        return None
    found = [tops(one, other) for one, other in pairs]
    rows = sum(count for count, _ in found)
    return sum(same for _, same in found) / rows if rows else None


def flat(outputs: Sequence[Tensors]) -> type_array:
    """All floating-point outputs as one float64 vector, in order; integers where there are no others."""
    arrays = [a for tensors in outputs for a in tensors.values()]
    floats = [a for a in arrays if a.dtype.kind == "f"] or [a for a in arrays if a.dtype.kind in "iu"]
    return np.concatenate([a.astype(np.float64).ravel() for a in floats]) if floats else np.zeros(0)


def cosine(a: type_array, b: type_array) -> float:
    """1.0 for equal vectors, two of zeros too; 0.0 where one alone is zero."""
    if np.array_equal(a, b):
        return 1.0
    lengths = float(np.linalg.norm(a)) * float(np.linalg.norm(b))
    if lengths == 0:
        return 0.0
    return max(-1.0, min(1.0, float(np.dot(a, b)) / lengths)) if math.isfinite(lengths) else 0.0
