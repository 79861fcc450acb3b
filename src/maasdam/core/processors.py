"""What makes tensors or tokens of payloads, and answers of what engines give."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from maasdam.core.answers import Answer, Mark, Spelled
from maasdam.core.engines import Tokens
from maasdam.core.payloads import Payload, SpellPayload, TextPayload
from maasdam.core.requests import Units
from maasdam.core.tensors import Tensors

if TYPE_CHECKING:
    from maasdam.core.tensors import type_array


@dataclass(frozen=True, slots=True)
class Example:
    """One evaluation example: a payload and what is right (label id, transcription, or None for text and tensors)."""

    name: str
    payload: Payload
    truth: Any = None


@dataclass(frozen=True, slots=True)
class Score:
    """A metric over examples."""

    metric: str
    value: float
    examples: int
    extra: Mapping[str, float] = field(default_factory=dict)
    shares: tuple[tuple[float, float], ...] = ()
    """(above, below) of each example: `value` is the sum of the first over the sum of the second. () where it is not."""


class Processor(Protocol):
    """Translates payloads of one task to and from tensors, with the model's own files."""

    task: str

    def prepare(self, payload: Payload) -> list[dict[str, type_array]]:
        """1 payload -> N inputs, each with batch 1. Raises InvalidPayload when the caller's bytes are no good."""
        ...

    def finish(self, outputs: Sequence[Tensors], payload: Payload) -> Answer:
        """N outputs (batch 1 each) -> 1 answer."""
        ...

    def units(self, payload: Payload, prepared: Sequence[Tensors]) -> Units:
        """What this payload is metered as (for text: prompt tokens)."""
        ...


class TextStream(Protocol):
    """Token ids to text pieces that never split a character; ends at a stop string."""

    is_stopped: bool
    taken: int
    """Of the tokens last fed, how many belong to the answer."""

    def feed(self, token_ids: Sequence[int]) -> str:
        """The text that is now certain."""
        ...

    def finish(self) -> str:
        """What was held back."""
        ...


class Section(NamedTuple):
    """The inputs of one part of a payload."""

    inputs: dict[str, type_array]
    """Of batch 1."""
    start: float
    """Where in the payload it begins, seconds."""


class Sections(Protocol):
    """Of one payload, made as they are asked for: it may be hours long."""

    seconds: float
    """That were read until now."""

    def __iter__(self) -> Iterator[Section | None]:
        """None wherever there is no part yet, so that whoever asks can stop. Raises InvalidPayload."""
        ...


@runtime_checkable
class PiecewiseProcessor(Processor, Protocol):
    """Of a task whose payloads are answered part by part."""

    def parts(self, payload: Payload) -> Sections | None:
        """None: `prepare` makes all of this one."""
        ...

    def finish_part(self, outputs: Tensors, part: Section, payload: Payload) -> Answer:
        """The answer to one part, as it goes behind those before it."""
        ...


@runtime_checkable
class ReadingProcessor(Processor, Protocol):
    """Of a task that reads texts of a bounded length."""

    longest: int | None
    """Tokens; None is any."""


@runtime_checkable
class SpellingProcessor(Processor, Protocol):
    """Of a task whose models have a tokenizer."""

    def spell(self, payload: SpellPayload) -> Spelled:
        """Tokens of a text, or the text of tokens. Raises InvalidPayload."""
        ...


@runtime_checkable
class WritingProcessor(Processor, Protocol):
    """Of a task that writes text by tokens."""

    def stream(
        self,
        stop: tuple[str, ...] = (),
        after: Sequence[int] = (),
        *,
        least: int = 0,
        marks_from: int | None = None,
        shows: Collection[str] | None = (),
    ) -> TextStream:
        """The text of tokens as they come, up to the first stop string that ends behind the first `least` of them. `after` are
        the prompt's. Where so many characters as `marks_from` are before it, it is a `MarkedStream`. Control tokens of `shows`
        have a text, all where that is None.
        """
        ...


@runtime_checkable
class TalkingProcessor(WritingProcessor, Protocol):
    """Of a task that answers messages by a chat template."""

    calls: str | None
    reasons: bool
    """See `Facts`."""

    def dialect(self, payload: TextPayload) -> str | None:
        """The format in which the answer to it calls tools; None where it has none. Raises InvalidField where none can be."""
        ...

    def thinking(self, prompt: Sequence[int]) -> tuple[str, str, bool] | None:
        """What stands around reasoning in the answer to a prompt of these tokens, and whether the prompt has begun it; None:
        no reasoning comes.
        """
        ...


class MarkedStream(TextStream, Protocol):
    """A text stream that says where in the text each token is."""

    def marked(self, tokens: Tokens, text: str, is_last: bool) -> tuple[Mark, ...]:
        """The marks of what `text`, the tokens' last fed, makes certain."""
        ...


class Echo(NamedTuple):
    """A prompt as it stands before its answer, its tokens in it, and how any token is spelled."""

    text: str
    marks: tuple[Mark, ...]
    """Without log-probabilities."""
    spelled: Callable[[int], bytes]


@runtime_checkable
class EchoingProcessor(Processor, Protocol):
    """A processor that can put the prompt before its answer."""

    def echo(self, payload: Payload, ids: Sequence[int]) -> Echo:
        """Of a payload, and the tokens that it was prepared to."""
        ...
