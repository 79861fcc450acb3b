"""A recording cut where nobody speaks, as it comes. Knows samples and how likely speech is; never files or models.

    blocks of samples --Voice--> how likely speech is, by frames --> pieces of at most LONGEST_SECONDS, with where they begin

What is silent for long is in no piece, and a recording in which nobody speaks has none. Speech without pauses is cut where it
is quietest. No more is held than the piece that is being heard.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from maasdam.core import Pauses
from maasdam.tasks.voice import FRAME_SECONDS, Voice

if TYPE_CHECKING:
    from maasdam.core import type_array

LONGEST_SECONDS = 30.0
"""What Whisper hears at once; attention over more would take memory with its square."""
SHORTEST_CUT_SECONDS = 15.0
"""Speech without pauses is cut no earlier."""
SMOOTHED = 8
"""Frames that are looked at together, to find where it is quietest: a quarter of a second."""
RELEASE = 0.15
"""Speech goes on until it is less likely by so much than it had to be to begin."""
BREATH_SECONDS, BREATH_THRESHOLD = 2.0, 0.1
"""In a recording as short as that there is speech unless it is surely none: who cut it so meant something, and a word that
begins with the first sample is hard to tell. Of 2,700 single words the least likely has 0.12."""


class Spoken(NamedTuple):
    """A stretch of a recording."""

    start: float
    """Seconds into it."""
    samples: type_array
    """[S] float32."""


def pieces(blocks: Iterable[type_array], rate: int, pauses: Pauses) -> Iterator[Spoken | None]:
    """Blocks of samples [S] at `rate` Hz -> pieces, each as soon as it is known; None wherever there is none yet.

    A recording no longer than LONGEST_SECONDS is one piece, unless `pauses` says that it is cut too.
    """
    import numpy as np

    coming = iter(blocks)
    first: list[type_array] = []
    if not pauses.cuts_short:
        length = 0
        for block in coming:
            first.append(block)
            length += len(block)
            yield None
            if length > LONGEST_SECONDS * rate:
                break
        else:
            samples = np.concatenate(first) if first else np.zeros(0, np.float32)
            least = min(pauses.threshold, BREATH_THRESHOLD) if length <= BREATH_SECONDS * rate else pauses.threshold
            if (Voice(rate)(samples, is_last=True) >= least).any():
                yield Spoken(0.0, samples)
            return
    cutter = _Cutter(rate, pauses)
    for source in (first, coming):
        for block in source:
            yield from cutter.feed(block)
            yield None
    yield from cutter.feed(np.zeros(0, np.float32), is_last=True)


class _Cutter:
    """Where one recording is cut. Frames are counted from its beginning; samples are kept from frame `_from` on."""

    def __init__(self, rate: int, pauses: Pauses) -> None:
        import numpy as np

        self._rate = rate
        self._voice = Voice(rate)
        self._threshold, self._release = pauses.threshold, max(pauses.threshold - RELEASE, min(0.01, pauses.threshold))
        self._before, self._silence = _frames(pauses.before), max(1, _frames(pauses.silence))
        self._longest, self._shortest = _frames(LONGEST_SECONDS), _frames(SHORTEST_CUT_SECONDS)
        self._samples = np.zeros(0, np.float32)
        self._likely = np.zeros(0, np.float32)
        self._from = 0
        self._next = 0
        """The frame that is looked at next."""
        self._begin: int | None = None
        """Of the piece that somebody speaks in now."""
        self._end = 0
        """Of the last piece."""
        self._quiet = 0
        """Frames without speech until now."""

    def feed(self, block: type_array, is_last: bool = False) -> Iterator[Spoken]:
        """The next samples -> the pieces that end in them."""
        import numpy as np

        self._samples = np.concatenate([self._samples, block])
        self._likely = np.concatenate([self._likely, self._voice(block, is_last)])
        while self._next < self._from + len(self._likely):
            frame, likely = self._next, self._likely[self._next - self._from]
            self._next += 1
            if self._begin is None:
                if likely >= self._threshold:
                    self._begin, self._quiet = max(self._end, frame - self._before, 0), 0
                continue
            self._quiet = 0 if likely >= self._release else self._quiet + 1
            if self._quiet >= self._silence:
                yield self._cut()
            elif frame + 1 - self._begin >= self._longest:
                at = self._quietest(self._begin + self._shortest, frame + 1)
                yield self._cut(at)
                self._begin, self._next, self._quiet = at, at, 0
        if is_last and self._begin is not None:
            yield self._cut()
        self._forget(self._next - self._before if self._begin is None else self._begin)

    def _cut(self, end: int | None = None) -> Spoken:
        """End the piece, where nothing else is said as long after somebody spoke as it begins before."""
        assert self._begin is not None
        end = self._next - max(0, self._quiet - self._before) if end is None else end
        begin, self._begin, self._end = self._begin, None, end
        return Spoken(begin * FRAME_SECONDS, self._samples[self._at(begin) : self._at(end)])

    def _quietest(self, first: int, last: int) -> int:
        """The frame where speech is least likely and it is least loud, of those from `first` to `last`."""
        import numpy as np

        likely = self._likely[first - self._from : last - self._from]
        loud = np.array([np.square(self._samples[self._at(i) : self._at(i + 1)]).mean() for i in range(first, last)]) ** 0.5
        score = likely + loud / max(float(loud.max()), 1e-9)
        return first + SMOOTHED // 2 + int(np.convolve(score, np.ones(SMOOTHED), "valid").argmin())

    def _at(self, frame: int) -> int:
        """Where among the samples that are kept a frame begins."""
        return round(frame * FRAME_SECONDS * self._rate) - round(self._from * FRAME_SECONDS * self._rate)

    def _forget(self, frame: int) -> None:
        """What was before a frame."""
        frame = max(frame, self._from)
        self._samples, self._likely = self._samples[self._at(frame) :].copy(), self._likely[frame - self._from :]
        self._from = frame


def _frames(seconds: float) -> int:
    return round(seconds / FRAME_SECONDS)
