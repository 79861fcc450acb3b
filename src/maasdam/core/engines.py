"""What an engine is asked, and what it must be able to do."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from maasdam.core.answers import Mark, Scored
from maasdam.core.batching import Batching
from maasdam.core.requests import Admitted, Cost
from maasdam.core.sampling import PLAIN, Constraint, Sampling
from maasdam.core.tensors import Signature, Tensors

if TYPE_CHECKING:
    from maasdam.core.tensors import type_array


@dataclass(frozen=True, slots=True)
class SequenceRequest:
    """What a sequence engine is given: prepared inputs ("input_ids" [1, T] int64; or "waveform" [1, S] float32)."""

    id: str
    inputs: Tensors
    sampling: Sampling = PLAIN
    deadline: float | None = None
    owner: str = ""
    """Whose it is: the key's id, "" where the service asks for none."""
    admitted: Admitted | None = None
    """What holds the answer to the sampling's constraint, where it has one."""


class Tokens(NamedTuple):
    """What a sequence engine gives as it comes. `text` only from engines that decode by themselves (Whisper)."""

    token_ids: tuple[int, ...]
    text: str | None = None
    finish_reason: str | None = None
    segments: tuple[Mapping[str, Any], ...] = ()
    cost: Cost | None = None
    """What the request took so far."""
    language: str | None = None
    """What is spoken, where the engine found out or was told."""
    scores: tuple[Scored, ...] = ()
    """Of `token_ids`, where they were asked for."""
    prompt_scores: tuple[Scored, ...] = ()
    """Of the whole prompt, once, where it is echoed with them."""
    end: Scored | None = None
    """Of the token that ended it, which is not among `token_ids`."""
    cached_tokens: int | None = None
    """See `Units`."""
    marks: tuple[Mark, ...] = ()
    """Of `text`, where they were asked for."""


class Meter(Protocol):
    """Tells what work took. Thread-safe."""

    def exclude_this_thread(self) -> None:
        """Say that the calling thread's CPU time is not an engine's."""
        ...

    def start(self) -> int:
        """Open a span."""
        ...

    def stop(self, span: int) -> Cost:
        """Close it; what was spent meanwhile, shared with other spans that were open."""
        ...


@runtime_checkable
class TensorEngine(Protocol):
    """Runs one batch of tensors. Thread-safe: several threads may call `run` at once."""

    signature: Signature

    def run(self, batch: Tensors) -> dict[str, type_array]:
        """Outputs by name, first axis the batch. Raises EngineFailure (ours) when the engine breaks."""
        ...

    def precisions(self) -> dict[str, int]:
        """How many operators run at each precision ("f32", "i8"), as far as the engine tells."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


@runtime_checkable
class SequenceEngine(Protocol):
    """Continuous batching of its own: text generation, Whisper."""

    context_length: int
    meter: Meter
    """In whose spans it computes: its own at first, the process's where several engines work side by side."""

    def start(self, request: SequenceRequest, hear: Callable[[Tokens | BaseException], None]) -> Callable[[], object]:
        """Begin. `hear` is told of tokens as they come, in the event loop that asks: the last say why they are the last; or
        of what went wrong. Then it hears no more; nor once what this gives was called, which cancels the generation.
        """
        ...

    def submit(self, request: SequenceRequest) -> AsyncGenerator[Tokens]:
        """Yield tokens as they come; closing the iterator cancels the generation."""
        ...

    def close(self) -> None:
        """Stop its thread and free what it holds; requests in flight end with EngineFailure."""
        ...


@runtime_checkable
class Able(Protocol):
    """An engine or a processor that says what its model can, in the words of /v1/models."""

    abilities: Mapping[str, bool]


@runtime_checkable
class TryingEngine(Protocol):
    """An engine that puts requests together by itself, and has tried whether an answer depends on what is beside it."""

    batching: Batching
    """What it found; OF_ITS_ENGINE where there was nothing to try."""
    rounds: bool
    """Whether it rounds activations, having found so."""


@runtime_checkable
class TellingEngine(Protocol):
    """A sequence engine that can be opened with what tells the likeliest tokens."""

    @property
    def likeliest_bytes(self) -> int | None:
        """What that takes, measured; None where it is not there."""
        ...


@runtime_checkable
class HoldingEngine(Protocol):
    """A sequence engine that can hold its answers to a form."""

    def admit(self, constraint: Constraint) -> Future[Admitted]:
        """What `SequenceRequest.admitted` takes, once it is known that the engine can keep to it. Its errors: InvalidField,
        which names the caller's field, EngineFailure. Raises Overloaded.
        """
        ...


Engine = TensorEngine | SequenceEngine
