"""Where speech begins and ends in sound that comes piece by piece. Knows samples and clocks of them; no sockets.

    samples -frames of 32 ms-> how likely each is speech (`Voice`) -two of it-> a turn begins -so much silence-> it ends

Where no detector is installed, speech is what stands out from the quietest that was heard lately.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from maasdam.tasks.voice import FRAME_SECONDS, Voice, detects

if TYPE_CHECKING:
    from maasdam.core import type_array

BEGIN_FRAMES = 2
"""So many frames of speech in a row begin a turn: a click is none."""
QUIET_DB, SPAN_DB = -55.0, 24.0
"""Of full scale: nothing below is speech, in the quietest room; and so far above the room it is speech without a doubt."""
RISE_DB = 3.0 * FRAME_SECONDS
"""How fast a room may get louder: three decibels a second, so that what hums on is no speech for long."""

Likely = Callable[["type_array"], "type_array"]
"""The next samples float32 [S] -> [N], 0 to 1, of each frame that they complete."""


class Turn(NamedTuple):
    """A turn begins, or ends."""

    begins: bool
    place: int
    """Samples since the first that was heard: the first of the speech, or the last of the silence that ended it."""


@dataclass(frozen=True, slots=True)
class TurnSettings:
    """How turns are found; the names are OpenAI's."""

    threshold: float = 0.5
    """Of the likeliness above which a frame is speech, 0 to 1."""
    prefix_padding_ms: int = 300
    """What comes with a turn from before its speech."""
    silence_duration_ms: int = 500
    """So much silence ends a turn."""


class Loudness:
    """How far each frame stands out from the quietest that was heard lately."""

    def __init__(self, rate: int) -> None:
        """`rate` is that of the samples, Hz."""
        import numpy as np

        self._size = round(rate * FRAME_SECONDS)
        self._rest = np.zeros(0, np.float32)
        self._floor = QUIET_DB

    def __call__(self, samples: type_array) -> type_array:
        """See `Likely`."""
        import numpy as np

        there = np.concatenate([self._rest, samples])
        whole = len(there) // self._size * self._size
        frames, self._rest = there[:whole].reshape(-1, self._size), there[whole:]
        out = []
        for level in (10 * np.log10(np.square(frames).mean(axis=1) + 1e-10)).tolist() if whole else ():
            self._floor = max(QUIET_DB, min(level, self._floor + RISE_DB))
            out.append(min(1.0, max(0.0, (level - self._floor) / SPAN_DB)))
        return np.array(out, np.float32)


class TurnFinder:
    """The turns of one speaker."""

    def __init__(self, rate: int, settings: TurnSettings, likely: Likely | None = None) -> None:
        """`rate` in Hz."""
        self._settings = settings
        self._size = round(rate * FRAME_SECONDS)
        self._likely: Likely = likely or (Voice if detects() else Loudness)(rate)
        self._heard = 0
        """Frames."""
        self._loud = self._silent = 0
        """Frames of speech in a row, and of silence."""
        self.is_speaking = False

    def hear(self, samples: bytes) -> Iterator[Turn]:
        """Samples of 16 bits, as they come -> what began and ended in them, in order."""
        import numpy as np

        most = self._settings.silence_duration_ms / 1000 / FRAME_SECONDS
        for likely in self._likely(np.frombuffer(samples, "<i2").astype(np.float32) / 32768).tolist():
            self._heard += 1
            is_speech = likely > self._settings.threshold
            self._loud = self._loud + 1 if is_speech else 0
            self._silent = 0 if is_speech else self._silent + 1
            if not self.is_speaking and self._loud >= BEGIN_FRAMES:
                self.is_speaking = True
                yield Turn(True, (self._heard - self._loud) * self._size)
            elif self.is_speaking and self._silent >= most:
                self.is_speaking = False
                yield Turn(False, self._heard * self._size)

    def end(self) -> None:
        """The turn was ended by somebody else; the next begins with the next speech."""
        self.is_speaking, self._loud = False, 0
