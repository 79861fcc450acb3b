"""What engines have run, counted. Knows rows and seconds; never what ran."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

MOST_SIZES = 64
"""Of batches, that are counted apart."""


@dataclass(slots=True)
class Executions:
    """What one engine has run since it was opened; a run that failed is not among it."""

    items: int = 0
    """Requests, or parts of one."""
    rows: int = 0
    batches: int = 0
    seconds: float = 0.0
    """Of the batches, in the engine."""
    waited: float = 0.0
    """Of the items, from when they came until their batch began."""
    last: float = 0.0
    """When the last one ended, seconds since 1970; 0 is never."""
    by_rows: dict[int, tuple[int, float]] = field(default_factory=dict)
    """Batches and their seconds by how many rows they had, of the first MOST_SIZES sizes."""

    def clear(self) -> None:
        """Begin anew: what ran so far was no caller's."""
        self.items = self.rows = self.batches = 0
        self.seconds = self.waited = self.last = 0.0
        self.by_rows.clear()

    def add(self, came: Sequence[float], rows: int, seconds: float) -> None:
        """One batch has run, whose items came at these moments."""
        now = time.perf_counter()
        self.items += len(came)
        self.rows += rows
        self.batches += 1
        self.seconds += seconds
        self.waited += len(came) * (now - seconds) - sum(came)
        self.last = time.time()
        self._count(rows, 1, seconds)

    def join(self, other: Executions) -> None:
        """Add up what two engines of one version have run."""
        self.items += other.items
        self.rows += other.rows
        self.batches += other.batches
        self.seconds += other.seconds
        self.waited += other.waited
        self.last = max(self.last, other.last)
        for rows, (batches, seconds) in list(other.by_rows.items()):
            self._count(rows, batches, seconds)

    def since(self, before: Executions) -> Executions:
        """What was run between."""
        by_rows = {rows: (0, 0.0) for rows in self.by_rows} | before.by_rows
        return Executions(
            self.items - before.items,
            self.rows - before.rows,
            self.batches - before.batches,
            self.seconds - before.seconds,
            self.waited - before.waited,
            self.last,
            {
                rows: (count - by_rows[rows][0], seconds - by_rows[rows][1])
                for rows, (count, seconds) in list(self.by_rows.items())
                if count > by_rows[rows][0]
            },
        )

    def _count(self, rows: int, batches: int, seconds: float) -> None:
        so_far, before = self.by_rows.get(rows, (0, 0.0))
        if so_far or len(self.by_rows) < MOST_SIZES:
            self.by_rows[rows] = so_far + batches, before + seconds
