"""One timer for all requests of an event loop. Knows clocks and calls; never what is late.

A timer of the loop's own for each request costs more than many answers do; here one is set for the next hundredth of a
second in which anything is due, and an answer that comes in time takes its entry out again.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import time
from collections.abc import Callable

TICKS = 100
"""A second. Nobody is called before the time, nor more than one of these after it."""

Late = Callable[[], object]


class Deadlines:
    """Belongs to one event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._due: dict[int, dict[int, Late]] = {}
        """By tick, in which they were added."""
        self._ticks: list[int] = []
        self._number = 0
        self._timer: asyncio.TimerHandle | None = None

    def add(self, at: float, late: Late) -> tuple[int, int]:
        """Have `late` called at the monotonic second `at`, unless what this gives is given to `remove` before."""
        tick = math.ceil(at * TICKS)
        self._number += 1
        due = self._due.get(tick)
        if due is None:
            due = self._due[tick] = {}
            heapq.heappush(self._ticks, tick)
            if self._ticks[0] == tick:
                self._set()
        due[self._number] = late
        return tick, self._number

    def remove(self, entry: tuple[int, int]) -> None:
        """It came in time."""
        due = self._due.get(entry[0])
        if due is not None:
            due.pop(entry[1], None)

    def _set(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        seconds = max(self._ticks[0] / TICKS - self._clock(), 0.0)
        self._timer = asyncio.get_running_loop().call_later(seconds + 0.001, self._call)

    def _call(self) -> None:
        self._timer = None
        now = self._clock() * TICKS
        while self._ticks and (self._ticks[0] <= now or not self._due[self._ticks[0]]):
            for late in self._due.pop(heapq.heappop(self._ticks)).values():
                late()
        if self._ticks:
            self._set()
