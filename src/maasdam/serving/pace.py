"""Learn how many rows a batch should hold. Knows rows and seconds; never models, queues or HTTP.

Batching made a multilayer perceptron 36 times faster and a convolutional network slower on the same processor, so
nobody can say beforehand. Each batch that runs is a measurement; the best size is the smallest one whose seconds
per row are within a tenth of the best seen. A larger one is tried while larger has kept being better, and again
now and then, since one slow measurement may have been another process.
"""

from __future__ import annotations

MOST_ROWS = 256
CLOSE_ENOUGH = 1.1
TRY_AGAIN_AFTER = 256  # batches


class Pace:
    """Seconds per row by batch size, in powers of two. Not thread-safe: its owner holds a lock."""

    def __init__(self, most_rows: int = MOST_ROWS) -> None:
        self._most = most_rows
        self._seconds_per_row: dict[int, float] = {}
        self._batches = 0

    @property
    def cap(self) -> int:
        """Rows that the next batch may hold."""
        if not self._seconds_per_row:
            return 1
        best = min(self._seconds_per_row.values())
        chosen = min(size for size, seconds in self._seconds_per_row.items() if seconds <= best * CLOSE_ENOUGH)
        largest = max(self._seconds_per_row)
        if chosen == largest or self._batches % TRY_AGAIN_AFTER == TRY_AGAIN_AFTER - 1:
            chosen *= 2
        return min(chosen, self._most)

    @property
    def seconds_alone(self) -> float | None:
        """A batch of one, None before the first."""
        return self._seconds_per_row.get(1)

    def learn(self, rows: int, seconds: float) -> None:
        """A batch of `rows` took `seconds` of wall time."""
        self._batches += 1
        size = 1 << (rows.bit_length() - 1)
        per_row = seconds / rows
        known = self._seconds_per_row.get(size, per_row)
        # what slows a batch down is mostly others' doing: believe a faster one at once and a slower one gradually
        self._seconds_per_row[size] = per_row if per_row <= known else known + 0.1 * (per_row - known)
