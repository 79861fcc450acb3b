"""What callers give, one kind each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from maasdam.core.sampling import PLAIN, Sampling
from maasdam.core.tensors import Tensors


@dataclass(slots=True)
class TensorPayload:
    """Raw tensors, as the Open Inference Protocol sends them."""

    tensors: Tensors


@dataclass(frozen=True, slots=True)
class ImagePayload:
    """One encoded image (PNG, JPEG, WebP, GIF, BMP, TIFF, AVIF)."""

    data: bytes
    top_k: int | None = None
    """At most so many labels or boxes; None is what is usual of the task."""
    labels: tuple[str, ...] | None = None
    """Which of these it shows, of a model that reads labels too; () where none were sent, None: its vector is wanted."""
    template: str | None = None
    """What is read for a label, which stands for "{}"; None is the task's own."""
    threshold: float | None = None
    """Of a model that finds things: the least score (0-1) of what is told. None is the model's own."""


@dataclass(frozen=True, slots=True)
class Pauses:
    """How a recording is cut where nobody speaks: half a minute is heard at once, and silence not at all."""

    threshold: float = 0.3
    """How likely speech must be to count as such, 0 to 1."""
    before: float = 1.0
    """Seconds that are heard before somebody speaks."""
    silence: float = 3.0
    """Seconds without speech that end a piece."""
    cuts_short: bool = False
    """Whether recordings of half a minute or less are cut too; else one is heard whole where anybody speaks in it."""


@dataclass(frozen=True, slots=True)
class AudioPayload:
    """One encoded recording (WAV, AIFF, FLAC, OGG, MP3, MP4, WebM, AAC)."""

    data: bytes
    language: str | None = None
    timestamps: bool = False
    """Whether the times of single words are asked for; those of segments come anyway where the model gives any."""
    top_k: int | None = None
    """Of a model that tells classes of sound apart; None is what is usual."""
    pauses: Pauses | None = None
    """None: all of it is heard, whoever speaks."""
    translates: bool = False
    """What is said is written in English, whatever it is said in."""
    prompt: str = ""
    """What was said before it, or words as they are to be spelled."""
    temperature: float = 0.0
    """0 is greedy."""
    logprobs: bool = False
    """How likely each token was is asked for."""

    @property
    def sampling(self) -> Sampling:
        """How its text is to be written, by an engine that writes by itself."""
        return Sampling(temperature=self.temperature, logprobs=0 if self.logprobs else None)


@dataclass(frozen=True, slots=True)
class Calling:
    """How tools may be called: at least and at most so many times; of no tool but `only`, where one is named."""

    least: int = 0
    most: int | None = None
    only: str | None = None


@dataclass(frozen=True, slots=True)
class TextPayload:
    """What to continue: exactly one of a plain prompt, chat messages ({"role", "content"}) or token ids."""

    prompt: str | None = None
    messages: tuple[Mapping[str, Any], ...] | None = None
    token_ids: tuple[int, ...] | None = None
    sampling: Sampling = PLAIN
    is_another: bool = False
    """Another answer to the prompt of the payload before it, which is metered for it."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """That the answer to messages may call, as OpenAI has them: {"type": "function", "function": {"name", "parameters", …}}."""
    calling: Calling = Calling()
    template: Mapping[str, Any] = field(default_factory=dict)
    """Variables for the model's chat template."""


@dataclass(frozen=True, slots=True)
class ReadPayload:
    """A text that is read, not continued: words or token ids, alone or with a second one (query and document)."""

    text: str | tuple[int, ...]
    beside: str | None = None
    role: str | None = None
    """Which of the model's own prompts stands before it ("query"); None is its default, "" none."""
    top_k: int = 5
    cuts: bool = False
    """What is beyond the model's length is cut off, and told; else it is refused."""
    dimensions: int | None = None
    """So many numbers of a vector, where the model was trained for its beginning to stand for it."""


@dataclass(frozen=True, slots=True)
class SpellPayload:
    """What a model's tokenizer is asked, and no engine: of a text or a chat its tokens, of token ids their text."""

    text: str | None = None
    messages: tuple[Mapping[str, Any], ...] | None = None
    token_ids: tuple[int, ...] | None = None
    is_framed: bool = True
    """The control tokens that the model is used to see around a text are added."""
    shows: bool = False
    """What each token is called is told too."""


@dataclass(frozen=True, slots=True)
class CustomPayload:
    """What a user's own task is given: the bytes of a file, or a value in JSON."""

    data: bytes
    is_file: bool = True
    truth: str | None = None
    """What is right, in JSON, where that is known: of examples."""


Payload = TensorPayload | ImagePayload | AudioPayload | TextPayload | ReadPayload | SpellPayload | CustomPayload
