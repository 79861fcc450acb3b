"""Attribute the process's CPU time to the batches that spent it. Knows clocks; never tensors, models or money.

An engine computes on threads of its own that nobody can ask about, so its CPU time is what remains: the process's
CPU time less that of the threads registered as not computing (event loop, decoding). While several batches run at
once each gets an equal share, so that the shares add up to what was spent.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class ComputeClock:
    """Engine CPU-seconds, shared among the spans that are open. Thread-safe."""

    def __init__(self, engine_seconds: Callable[[], float] | None = None) -> None:
        """`engine_seconds` tells the engines' CPU-seconds so far; the default measures this process."""
        self._lock = threading.Lock()
        self._others: list[int] = []
        self._ended_seconds = 0.0
        """Of threads that were excluded and have ended."""
        self._engine_seconds = engine_seconds or self._measure
        self._open: dict[int, float] = {}
        self._next = 0
        self._seen = 0.0

    def exclude_this_thread(self) -> None:
        """Say that the calling thread's CPU time is not an engine's."""
        if sys.platform == "linux":
            with self._lock:
                self._others.append(time.pthread_getcpuclockid(threading.get_ident()))

    @contextmanager
    def without_this_thread(self) -> Iterator[None]:
        """The same for a thread that ends: what it spent stays excluded."""
        self.exclude_this_thread()
        try:
            yield
        finally:
            if sys.platform == "linux":
                with self._lock:
                    self._others.remove(time.pthread_getcpuclockid(threading.get_ident()))
                    self._ended_seconds += time.thread_time()

    def start(self) -> int:
        """Open a span; give the number to `stop`."""
        with self._lock:
            self._settle()
            self._next += 1
            self._open[self._next] = 0.0
            return self._next

    def stop(self, span: int) -> float:
        """Close a span; its CPU-seconds."""
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

    def read(self, span: int) -> float:
        """CPU-seconds of an open span so far."""
        with self._lock:
            self._settle()
            return self._open[span]

    def _settle(self) -> None:
        now = self._engine_seconds()
        spent, self._seen = now - self._seen, now
        if self._open and spent > 0:
            share = spent / len(self._open)
            for span in self._open:
                self._open[span] += share

    def _measure(self) -> float:
        total = time.process_time() - self._ended_seconds
        for clock in self._others:
            try:
                total -= time.clock_gettime(clock)
            except OSError:  # that thread has ended: its time stays in the process's, and is small
                continue
        return total
