"""How often the process of one version crashed. Knows times and reasons; never processes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

MOST = 3
"""So many crashes within WINDOW_SECONDS are the model's own: it is not brought up again."""
WINDOW_SECONDS = 60.0
PAUSE_SECONDS = 1.0
"""Before it is brought up after its second crash; after the first there is none."""


class Crashes:
    """Of one version, since it was deployed."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._times: deque[float] = deque(maxlen=MOST)

    def add(self) -> None:
        """It crashed."""
        self._times.append(self._clock())

    @property
    def _recent(self) -> int:
        return sum(at > self._clock() - WINDOW_SECONDS for at in self._times)

    @property
    def are_too_many(self) -> bool:
        """Whether it is not to be brought up again."""
        return self._recent >= MOST

    @property
    def pause(self) -> float:
        """Seconds to wait before it is."""
        return PAUSE_SECONDS * max(self._recent - 1, 0)
