"""How long work tells where it is."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """How long work tells where it is."""

    def __call__(self, stage: str, done: int = 0, total: int | None = None) -> None:
        """`stage` is a short phrase ("calibrate"); `done` of `total` steps; total None is unknown."""
        ...


def silent(stage: str, done: int = 0, total: int | None = None) -> None:
    """A Progress that says nothing."""
