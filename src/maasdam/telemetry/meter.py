"""What work took: CPU-seconds and joules of this process, shared among the spans that are open. Knows clocks and counters.

An engine computes on threads of its own that nobody can ask about, so its CPU time is what remains: the process's
CPU time less that of the threads registered as not computing (event loop, decoding). While several spans are open each
gets an equal share, of every engine in the process, so that the shares add up to what was spent and nothing is billed twice.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from maasdam.core import Cost


class Power(Protocol):
    """What a meter needs to know of energy."""

    @property
    def rate(self) -> float | None:
        """Joules that a CPU-second takes now; None where nobody can say."""
        ...

    @property
    def method(self) -> str:
        """How that is found, or why it is not."""
        ...


class CpuMeter:
    """One for all engines of a process. Thread-safe. Costs are None in joules where `power` can't tell, or is None."""

    def __init__(self, power: Power | None = None, engine_seconds: Callable[[], float] | None = None) -> None:
        """`engine_seconds` tells the engines' CPU-seconds so far; the default measures this process."""
        self._lock = threading.Lock()
        self._power = power
        self._others: dict[int, int] = {}
        """Of threads that don't compute: their CPU clocks, by ident."""
        self._ended_seconds = 0.0
        """Of threads that were excluded and have ended."""
        self._engine_seconds = engine_seconds or self._measure
        self._open: dict[int, Cost] = {}
        self._next = 0
        self._seen = self._engine_seconds()

    def exclude_this_thread(self) -> None:
        """Say that the calling thread's CPU time is not an engine's."""
        self.exclude(threading.get_ident())

    def exclude(self, ident: int) -> None:
        """The same of another thread of this process, by its ident."""
        if sys.platform == "linux" and ident not in self._others:
            with self._lock:
                self._others[ident] = time.pthread_getcpuclockid(ident)

    @contextmanager
    def without_this_thread(self) -> Iterator[None]:
        """The same for a thread that ends: what it spent stays excluded."""
        self.exclude_this_thread()
        try:
            yield
        finally:
            if sys.platform == "linux":
                with self._lock:
                    self._others.pop(threading.get_ident(), None)
                    self._ended_seconds += time.thread_time()

    def start(self) -> int:
        """Open a span; give the number to `stop`."""
        with self._lock:
            self._settle()
            self._next += 1
            self._open[self._next] = self._cost(0.0)
            return self._next

    def stop(self, span: int) -> Cost:
        """Close a span; what it took."""
        with self._lock:
            self._settle()
            return self._open.pop(span)

    @contextmanager
    def spending(self) -> Iterator[None]:
        """A span for what is nobody's request, so that no request that runs beside it is said to have spent it all."""
        span = self.start()
        try:
            yield
        finally:
            self.stop(span)

    def known(self, cpu_seconds: float) -> Cost:
        """What was spent on a thread that is left out of the spans, and read from its own clock."""
        return self._cost(cpu_seconds)

    def _cost(self, cpu_seconds: float) -> Cost:
        if self._power is None:
            return Cost(cpu_seconds, None, "energy was not measured")
        rate = self._power.rate
        return Cost(cpu_seconds, None if rate is None else cpu_seconds * rate, self._power.method)

    def _settle(self) -> None:
        now = self._engine_seconds()
        spent, self._seen = now - self._seen, now
        if self._open and spent > 0:
            share = self._cost(spent / len(self._open))
            for span, cost in self._open.items():
                self._open[span] = cost.plus(share)

    def _measure(self) -> float:
        total = time.process_time() - self._ended_seconds
        for clock in list(self._others.values()):
            try:
                total -= time.clock_gettime(clock)
            except OSError:  # that thread has ended: its time stays in the process's, and is small
                continue
        return total
