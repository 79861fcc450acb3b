"""What inspection finds out: the nouns of this room.

Knows names and facts. Refuses to know files or how any layout is read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from maasdam.core import PAST, Axis, Format, Layout, Signature, TensorSpec


@dataclass(frozen=True, slots=True)
class Risk:
    """One thing that loading the model could do to its host.

    "blocked" is refused; where `liftable`, --trust turns it into a "warning".
    """

    severity: Literal["info", "warning", "blocked"]
    what: str
    liftable: bool = False


@dataclass(frozen=True, slots=True)
class Reading:
    """What one layout's reader found in the files."""

    format: Format
    layout: Layout
    files: Mapping[str, Path]
    """Every model file that serving needs: its name in an artifact -> where it lies now."""
    signature: Signature | None = None
    task: str | None = None
    architecture: str | None = None
    parameters: int | None = None
    """How many numbers the weights hold; None where it can't be read cheaply."""
    precision: str | None = None
    """numpy's name of the dtype most weights have."""
    labels: int | None = None
    risks: tuple[Risk, ...] = ()
    notes: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What the engine should know beyond the signature."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a source is, read from its metadata alone."""

    source: str
    path: Path
    format: Format
    layout: Layout
    task: str | None
    """Hugging Face's name of the task; None where nothing says it."""
    architecture: str | None
    signature: Signature | None
    """None for models that generate, and where the files don't say."""
    parameters: int | None
    size_bytes: int
    """The model and processor files that serving needs."""
    precision: str | None
    labels: int | None
    risks: tuple[Risk, ...]
    notes: tuple[str, ...]
    files: tuple[str, ...] = ()
    """Their names in an artifact."""

    @property
    def blocked(self) -> tuple[Risk, ...]:
        """The risks that forbid loading it."""
        return tuple(risk for risk in self.risks if risk.severity == "blocked")

    def to_json(self) -> dict[str, Any]:
        """A JSON object; unknown facts are null."""
        return {field.name: getattr(self, field.name) for field in fields(self)} | {
            "path": str(self.path),
            "signature": self.signature.to_json() if self.signature else None,
            "risks": [asdict(risk) for risk in self.risks],
            "notes": list(self.notes),
            "files": list(self.files),
        }


def told_apart(inputs: Sequence[TensorSpec], first_axes: Sequence[str]) -> tuple[TensorSpec, ...]:
    """`inputs` with what their open first axes count, by the files' own names of these axes, where the names differ.

    Nodes and edges of a graph are of two numbers; rows of one batch go by one name, or by none.
    """
    names = {name for spec, name in zip(inputs, first_axes, strict=True) if spec.shape and spec.shape[0] is None}
    if len(names - {""}) < 2:
        return tuple(inputs)
    return tuple(
        replace(spec, rows_of=name) if name and spec.shape and spec.shape[0] is None else spec
        for spec, name in zip(inputs, first_axes, strict=True)
    )


FEWEST = 2
"""A least size up to this says nothing: torch gives it to axes that it knows nothing of."""


def with_axes(inputs: Sequence[TensorSpec], axes: Sequence[Sequence[Axis | None]]) -> tuple[TensorSpec, ...]:
    """`inputs` with their open axes, where these say more than that the first is a batch and the next a length.

    That is: one name at several places (a state that has the batch second), several at one (nodes and edges), or a range.
    """
    by_name: dict[str, set[int]] = defaultdict(set)
    by_place: dict[int, set[str]] = defaultdict(set)
    says_sizes = False
    for spec, own in zip(inputs, axes, strict=True):
        for number, axis in enumerate(own):
            if axis is not None:
                place = number if len(spec.shape) == 4 else min(number, 1)
                by_name[axis.name].add(place)
                by_place[place].add(axis.name)
                says_sizes = says_sizes or axis.least > FEWEST or axis.most is not None
    several = [len(own) for own in by_name.values()] + [len(own) for own in by_place.values()]
    tells = says_sizes or max(several, default=0) > 1
    if not tells or any(spec.name.startswith(PAST) for spec in inputs):
        return tuple(inputs)
    return tuple(replace(spec, axes=tuple(own)) if any(own) else spec for spec, own in zip(inputs, axes, strict=True))
