"""What a load takes, by phase. Knows names and seconds.

room       others had to leave first (hosts)
fork       a process was made, and began (hosts)
read       the files' bytes were hashed; they are in the system's cache then
import     the engine's library was imported
compile    the engine read and compiled the model; its processor too
try        whether it may be batched, where that was not found before
warm_up    its first answers
other      what is left of the whole
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

PHASES = ("room", "fork", "read", "import", "compile", "try", "warm_up", "other")


class Phases:
    """Of one load, from now on."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._began = time.perf_counter()

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """What is done inside the `with` is of this phase."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began

    @property
    def whole(self) -> float:
        """Seconds so far."""
        return time.perf_counter() - self._began

    def told(self, rest: str = "other") -> dict[str, float]:
        """Seconds by phase; what no phase took is `rest`."""
        left = self.whole - sum(self.seconds.values())
        return {**self.seconds, rest: self.seconds.get(rest, 0.0) + max(left, 0.0)}


def told_seconds(seconds: dict[str, float]) -> str:
    """ "0.81 s: read 0.10, compile 0.45, ..."."""
    parts = [f"{name.replace('_', '-')} {seconds[name]:.2f}" for name in PHASES if seconds.get(name, 0.0) >= 0.005]
    return f"{sum(seconds.values()):.2f} s" + (f": {', '.join(parts)}" if parts else "")
