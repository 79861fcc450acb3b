"""CPU time that an engine spent, as well as a process can tell.

Knows clocks. An engine computes on threads that nobody can name, so what it spent is what the process spent, less what
the threads known to do other work (event loops) spent. Two engines that compute at the same moment each see both.
"""

from __future__ import annotations

import sys
import threading
import time


class CpuMeter:
    """CPU-seconds of this process without its event loops'. Thread-safe."""

    def __init__(self) -> None:
        self._others: dict[int, int] = {}

    def exclude_this_thread(self) -> None:
        """Say that the calling thread's CPU time is not an engine's."""
        ident = threading.get_ident()
        if sys.platform == "linux" and ident not in self._others:
            self._others = {**self._others, ident: time.pthread_getcpuclockid(ident)}

    def seconds(self) -> float:
        """So far; only differences mean anything."""
        total = time.process_time()
        for ident, clock in self._others.items():
            try:
                total -= time.clock_gettime(clock)
            except OSError:  # that thread has ended
                self._others = {k: v for k, v in self._others.items() if k != ident}
        return total
