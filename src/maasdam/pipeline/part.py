"""One part of an output that is judged by itself: which it is, in which measure, and how much of it survives.

Knows reports' JSON. Refuses to know arrays.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Part:
    """An output, a group of its slices, or one slice, and how it came through."""

    output: str
    axis: int | None = None
    slices: tuple[int, ...] = ()
    """Places along `axis`; none is the whole output."""
    measure: str = "fidelity"
    """"agreement" where the output ranks or lists; "closeness", 1 - the largest difference / the largest value, where nothing
    varied in the source: of all outputs where none did, else of what strayed from what it was."""
    value: float | None = None
    """None: it has no spread over the examples, so nothing can be lost; it is left out."""
    cosine: float | None = None
    max_abs_diff: float | None = None
    largest: float | None = None
    """The source's largest value, whatever its sign."""
    spread: float | None = None
    """Standard deviation over the examples, in the output's own unit."""
    is_constant: bool = False
    """It varied in the source and no longer does."""
    is_one_slice: bool = False
    """One of many slices of a kind: held to half of what is asked of the whole."""

    @property
    def where(self) -> str:
        """Which output, and which slices of it."""
        if self.axis is None:
            return f"output '{self.output}'"
        named = "slice" if len(self.slices) == 1 else "slices"
        return f"output '{self.output}', {named} {_listed(self.slices)} of axis {self.axis}"

    def asked(self, floor: float) -> float:
        """What is asked of it where `floor` is asked of fidelity: a ranking loses half as much, one of many slices twice."""
        if self.measure == "agreement":
            return 1 - (1 - floor) / 2
        return floor / 2 if self.is_one_slice else floor

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Part:
        """From a report. Raises KeyError or TypeError where it was told otherwise."""
        return cls(
            output=row["output"],
            axis=row["axis"],
            slices=tuple(row["slices"] or ()),
            measure=row["measure"],
            value=number(row["value"]),
            cosine=number(row.get("cosine")),
            max_abs_diff=number(row.get("max_abs_diff")),
            spread=number(row.get("spread")),
            is_constant=row["became_constant"],
            is_one_slice=row["one_of_many"],
        )

    def to_json(self) -> dict[str, Any]:
        """As the report holds it."""
        return {
            "output": self.output,
            "axis": self.axis,
            "slices": list(self.slices) or None,
            "measure": self.measure,
            "value": self.value,
            "cosine": self.cosine,
            "max_abs_diff": self.max_abs_diff,
            "spread": self.spread,
            "became_constant": self.is_constant,
            "one_of_many": self.is_one_slice,
        }


def number(value: Any) -> float | None:
    """A finite number, else None: a report from elsewhere may hold anything."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and -math.inf < value < math.inf
    return value if is_number else None


def _listed(slices: Sequence[int]) -> str:
    """0, 1, 2, 5 as "0-2, 5"."""
    runs: list[list[int]] = []
    for at in slices:
        if runs and at == runs[-1][1] + 1:
            runs[-1][1] = at
        else:
            runs.append([at, at])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
