"""What callers get, one kind each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from maasdam.core.tensors import Tensors

if TYPE_CHECKING:
    from maasdam.core.tensors import type_array


@dataclass(frozen=True, slots=True)
class Label:
    """One class and its probability (0-1)."""

    label: str
    label_id: int
    score: float


@dataclass(frozen=True, slots=True)
class Classification:
    """The top classes, best first."""

    labels: tuple[Label, ...]


class Box(NamedTuple):
    """A thing in a picture, and where: pixels of the upright picture, from its upper left corner."""

    label: str
    label_id: int
    score: float
    """0 to 1."""
    xmin: float
    ymin: float
    xmax: float
    ymax: float


class Boxes(NamedTuple):
    """What was found in a picture, the surest first."""

    boxes: tuple[Box, ...]


@dataclass(frozen=True, slots=True)
class Transcript:
    """What was said, or the next of it; `segments` hold {"start", "end", "text"} in seconds where the model gives times.

    Where the engine tells more of a segment it holds that too: "words" [{"word", "start", "end"}] where they were asked for,
    "tokens", "seek" (frames of 10 ms), "temperature", "avg_logprob", "compression_ratio", "no_speech_prob".
    """

    text: str
    segments: tuple[Mapping[str, Any], ...] = ()
    language: str | None = None
    """ISO 639-1 ("en"), as asked for or as heard; None where the model tells none."""
    marks: tuple[Mark, ...] = ()
    """Of its tokens of text, where they were asked for."""

    def later(self, seconds: float) -> Transcript:
        """The same of sound that begins so much later in its recording."""
        return replace(self, segments=later(self.segments, seconds)) if seconds and self.segments else self


def later(segments: Iterable[Mapping[str, Any]], seconds: float) -> tuple[Mapping[str, Any], ...]:
    """A transcript's segments, so much later."""

    def moved(timed: Mapping[str, Any]) -> dict[str, Any]:
        return {**timed, **{name: round(timed[name] + seconds, 3) for name in ("start", "end") if timed.get(name) is not None}}

    return tuple(
        moved(segment)
        | ({"words": [moved(word) for word in segment["words"]]} if "words" in segment else {})
        | ({"seek": segment["seek"] + round(seconds * 100)} if "seek" in segment else {})
        for segment in segments
    )


def whole_transcript(pieces: Sequence[Transcript]) -> Transcript:
    """Pieces put together, in the language that the last of them names."""
    language = next((piece.language for piece in reversed(pieces) if piece.language), None)
    segments = tuple(segment for piece in pieces for segment in piece.segments)
    marks = tuple(mark for piece in pieces for mark in piece.marks)
    return Transcript("".join(piece.text for piece in pieces).strip(), segments, language, marks)


class Vector(NamedTuple):
    """What a text means, as numbers: of its own length, or 1 where the model says so."""

    values: type_array
    """[D] float32."""
    cut: int = 0
    """Tokens that were cut off its end."""


class Relevance(NamedTuple):
    """How well a document answers a query, 0 to 1."""

    score: float
    cut: int = 0
    """Tokens that were cut off the document."""


class Span(NamedTuple):
    """A stretch of a text that a model found, or what it would put there."""

    text: str
    start: int
    """Where in the text that was read it begins, characters."""
    end: int
    score: float
    """0 to 1."""
    label: str | None = None
    number: int | None = None
    """Of the token, where it is one that would be put there."""


class Spans(NamedTuple):
    """Stretches of a text, in the task's own order."""

    spans: tuple[Span, ...]
    cut: int = 0
    """Tokens that were cut off the text."""


class Spelled(NamedTuple):
    """A text as tokens."""

    token_ids: tuple[int, ...]
    text: str | None = None
    """Where ids were asked about."""
    names: tuple[str, ...] = ()


class Scored(NamedTuple):
    """How likely a model found a token, before temperature, penalties and masks: natural logarithms."""

    token_id: int
    logprob: float | None
    """None: nothing stands before it."""
    likeliest: tuple[tuple[int, float], ...] = ()
    """The likeliest in its place, best first, as many as asked for."""


class Mark(NamedTuple):
    """One token of a text, and how likely the model found it: a natural logarithm, None of a prompt's first."""

    data: bytes
    """What it says; of a control token its name."""
    at: int
    """Where in the text it begins, characters."""
    logprob: float | None
    likeliest: tuple[tuple[bytes, float], ...] = ()
    """What would have been likeliest in its place, best first, as far as asked for."""
    is_control: bool = False
    """A control token, which has no text."""
    is_end: bool = False
    """The token that ended the text, and is not part of it."""

    def scored(self, score: Scored, spelled: Callable[[int], bytes]) -> Mark:
        """The same with how likely its token was."""
        return self._replace(logprob=score.logprob, likeliest=tuple((spelled(i), value) for i, value in score.likeliest))


class ToolCall(NamedTuple):
    """A call that an answer makes, whole."""

    number: int
    """Among the calls of its answer, from 0."""
    id: str
    name: str
    arguments: str
    """A JSON object."""


class TextPiece(NamedTuple):
    """The next stretch of a generated text. `finish_reason` ("stop", "length", "tool_calls") is set on the last one."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str | None = None
    marks: tuple[Mark, ...] = ()
    """Of its tokens, and of the prompt's where that is echoed, where they were asked for."""
    reasoning: str = ""
    """What stands apart from the text, before it."""
    reasoning_tokens: int | None = None
    """Of its tokens those that reason, with the words around that; None from models that have no such words."""
    calls: tuple[ToolCall, ...] = ()
    """Of the tools that the payload names."""


class CustomAnswer(NamedTuple):
    """Of a user's own task."""

    json: str
    """The answer."""
    score: float | None = None
    """How right it is, by the task's own `score`, where the payload says what would be."""


Answer = Tensors | Classification | Boxes | Transcript | TextPiece | Vector | Relevance | Spans | Spelled | CustomAnswer
