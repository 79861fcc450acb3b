"""How far two sets of outputs are apart. Knows arrays; never engines, tasks or limits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from maasdam.core import Tensors

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

    def add(self, name: str, reference: Sequence[Tensors], candidate: Sequence[Tensors], agrees: bool | None) -> None:
        """One example's outputs, reference and candidate in the same order."""
        self.examples += 1
        if agrees is not None:
            self.agreements.append(agrees)
        wanted, got = flat(reference), flat(candidate)
        if not np.isfinite(got).all():
            self.problems.append(f"the candidate's output for '{name}' holds NaN or infinity")
            return
        if not np.isfinite(wanted).all():
            self.problems.append(f"the reference's output for '{name}' holds NaN or infinity")
            return
        if wanted.shape != got.shape:
            self.problems.append(f"the output for '{name}' has {got.size} numbers where the reference's has {wanted.size}")
            return
        if wanted.size:
            difference = float(np.abs(wanted - got).max())
            self.max_abs_diff = difference if self.max_abs_diff is None else max(self.max_abs_diff, difference)
            self.cosines.append(cosine(wanted, got))

    @property
    def cosine(self) -> float | None:
        """Mean over the examples."""
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
