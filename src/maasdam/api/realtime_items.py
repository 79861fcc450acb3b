"""What is said between two pauses, written down while it is said. Knows sound, hearings of it and words; no events.

    sound -> heard again as it grows -> words that two hearings in a row agree on: told, and not taken back
          -> longer than PIECE_SECONDS: cut where it is quietest, the piece heard for good
          -> committed: the rest heard for good -> the transcript

A piece is heard again when it has grown by a quarter, at most three seconds: in all some five times its length, so the work
grows with the length of speech and not with its square.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from maasdam.api.measured import measured
from maasdam.api.realtime_settings import SessionSettings
from maasdam.core import SPEECH_RECOGNITION, AudioPayload, Entry, Facts, Transcript, Units
from maasdam.errors import InvalidInput
from maasdam.operations.parts import Parts
from maasdam.tasks.pcm import quietest, recording

PIECE_SECONDS = 28.0
"""The longest that is heard at once: within what Whisper hears at once, and CTC models without windows."""
SHORTEST_PIECE_SECONDS = 15.0
GROWN_SECONDS, GROWN_SHARE, MOST_GROWN_SECONDS = 0.5, 0.25, 3.0
"""By how much a piece has grown when it is heard again."""
SHORTEST_SECONDS = 0.1
"""What is shorter is heard with silence behind it, as far as this."""


@dataclass(slots=True)
class SpokenItem:
    """One stretch of speech. What it holds of sound is what is not heard for good."""

    id: str
    wanted: SessionSettings
    parts: Parts
    sound: bytearray = field(default_factory=bytearray)
    """Samples of 16 bits of the current piece."""
    samples: int = 0
    """All that it was given."""
    is_committed: bool = False
    is_dropped: bool = False
    is_over: bool = False
    """It failed: what else comes is thrown away."""
    is_asked: bool = False
    """A model was asked, so it has a row."""
    _texts: list[str] = field(default_factory=list)
    """Of the pieces that were heard for good."""
    _for_good: int = 0
    """Samples of those."""
    _heard: int = 0
    """Samples of the current piece when it was heard last."""
    _passed: int = 0
    """The same of a hearing that failed."""
    _before: list[str] = field(default_factory=list)
    """The words of that hearing."""
    _told: list[str] = field(default_factory=list)
    """Words of the current piece that were given out."""
    _has_told: bool = False

    @property
    def seconds(self) -> float:
        """Of all that it was given."""
        return self.samples / self.wanted.rate

    @property
    def heard(self) -> Units:
        """What of it a model has heard."""
        return Units(audio_seconds=(self._for_good + self._heard) / self.wanted.rate if self._for_good + self._heard else None)

    @property
    def transcript(self) -> str:
        """What was heard for good."""
        return " ".join(text for text in self._texts if text)

    @property
    def is_due(self) -> bool:
        """Whether there is something to hear."""
        if self.is_over or self.is_dropped:
            return False
        if self.is_committed or self.is_long:
            return True
        last = max(self._heard, self._passed)
        least = min(max(GROWN_SECONDS, GROWN_SHARE * last / self.wanted.rate), MOST_GROWN_SECONDS)
        return len(self.sound) // 2 - last >= least * self.wanted.rate

    @property
    def is_long(self) -> bool:
        """Whether a piece of it is to be cut off, and heard for good."""
        return len(self.sound) > 2 * PIECE_SECONDS * self.wanted.rate

    def add(self, samples: bytes) -> None:
        """More of it."""
        self.samples += len(samples) // 2
        if not self.is_over:
            self.sound += samples

    def pass_over(self) -> None:
        """A hearing of what there is failed: the next is of more."""
        self._passed = len(self.sound) // 2

    async def hear(self, seconds: float) -> str:
        """Hear what is due, each hearing within so many seconds; what can be told now, "" is nothing. Raises what inference
        raises."""
        count = self._place_to_cut() if self.is_long else len(self.sound) // 2
        is_for_good = self.is_committed or self.is_long
        text = await self._asked(bytes(self.sound[: 2 * count]), seconds) if count else ""
        if is_for_good:
            self._texts.append(text)
            self._for_good += count
            del self.sound[: 2 * count]
            words, told = text.split(), self._told
            self._heard, self._passed, self._before, self._told = 0, 0, [], []
            return self._joined(words[len(told) :]) if words[: len(told)] == told else ""
        self._heard = count
        return self._agreed(text.split())

    async def _asked(self, samples: bytes, seconds: float) -> str:
        rate = self.wanted.rate
        samples += bytes(max(0, 2 * round(SHORTEST_SECONDS * rate) - len(samples)))
        self.is_asked = True
        chunk = await self.parts.ask(AudioPayload(recording(samples, rate), self.wanted.language), seconds)
        assert isinstance(chunk.value, Transcript)
        return chunk.value.text

    def _place_to_cut(self) -> int:
        import numpy as np

        rate = self.wanted.rate
        return quietest(
            np.frombuffer(bytes(self.sound), "<i2"), rate, int(SHORTEST_PIECE_SECONDS * rate), int(PIECE_SECONDS * rate)
        )

    def _agreed(self, words: list[str]) -> str:
        """Words that this hearing and the one before agree on, from where was told; those that were told stay."""
        both = 0
        while both < min(len(words), len(self._before)) and words[both] == self._before[both]:
            both += 1
        self._before = words
        if both <= len(self._told) or words[: len(self._told)] != self._told:
            return ""
        new, self._told = words[len(self._told) : both], words[:both]
        return self._joined(new)

    def _joined(self, words: list[str]) -> str:
        space = " " if self._has_told and words else ""
        self._has_told = self._has_told or bool(words)
        return space + " ".join(words)


def check_hears(facts: Facts) -> None:
    """Raise InvalidInput where a replica writes down no speech."""
    if facts.task != SPEECH_RECOGNITION:
        raise InvalidInput(f"this model does {facts.task or 'raw tensors'}, not {SPEECH_RECOGNITION}; name one that does")


def usage_of(entry: Entry) -> dict[str, object]:
    """OpenAI's usage of a transcript."""
    return {"type": "duration", "seconds": entry.audio_seconds, "maasdam": measured(entry)}
