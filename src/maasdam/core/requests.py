"""One request on its way: whose it is, what it asks for, what came of it and what that cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import reduce
from typing import Any, NamedTuple

from maasdam.core.answers import Answer
from maasdam.core.batching import Batching
from maasdam.core.payloads import Payload
from maasdam.core.tensors import Signature


class Units(NamedTuple):
    """What is metered of one request. Unmeasured is None, never 0."""

    items: int = 1
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    audio_seconds: float | None = None
    cached_tokens: int | None = None
    """Of the prompt's, those that were computed for another before; None where nothing is shared."""


class Cost(NamedTuple):
    """What a piece of work took. A tuple: one is made for each request of a batch, and must cost little itself."""

    cpu_seconds: float
    """Of the engine."""
    joules: float | None
    """None is unmeasured."""
    method: str
    """How joules were found, or why they were not."""

    def part(self, share: float) -> Cost:
        """A share of it, 0 to 1."""
        return Cost(self.cpu_seconds * share, None if self.joules is None else self.joules * share, self.method)

    def plus(self, other: Cost) -> Cost:
        """Both. Joules of which a part is unknown are unknown."""
        is_known = self.joules is not None and other.joules is not None
        joules = self.joules + other.joules if is_known else None  # type: ignore[operator]  # neither is None then
        return Cost(self.cpu_seconds + other.cpu_seconds, joules, self.method)


def total_cost(costs: Iterable[Cost | None]) -> Cost | None:
    """The sum of those that are known; None where none is."""
    known = [cost for cost in costs if cost is not None]
    return reduce(Cost.plus, known) if known else None


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. `key_id` is None only where authentication is switched off."""

    key_id: str | None
    name: str
    scopes: frozenset[str]


ANONYMOUS = Caller(None, "anonymous", frozenset({"infer", "deploy", "admin"}))
"""Who asks when the service runs with --no-auth on loopback, and who the command line is."""


@dataclass(slots=True)  # not frozen, as little that each request has is: to make a frozen one takes four times as long
class Request:
    """One inference in flight."""

    id: str
    model: str
    """NAME, NAME:VERSION or NAME@ALIAS as the caller wrote it."""
    payloads: tuple[Payload, ...]
    """One, or several of one kind that are answered side by side."""
    caller: Caller
    endpoint: str = ""
    """The door's route, as the ledger has it."""
    deadline: float | None = None
    """Monotonic seconds after which the answer is worthless; None is never. On a wire: the seconds that are left."""


class Chunk(NamedTuple):
    """A piece of an answer as it comes; an answer that does not stream is one chunk with `is_last`."""

    value: Answer
    units: Units
    is_last: bool
    cost: Cost | None = None
    """What it took so far; on the last chunk, in all."""
    number: int = 0
    """Which of the request's payloads it answers."""


@dataclass(slots=True)
class Entry:
    """What a request was and cost; None is unmeasured. It fills while the request is answered, and is left alone once recorded.

    `seconds` is wall time, `compute_seconds` CPU of the engine; `model` as the caller wrote it where there is no such model.
    """

    request_id: str
    at: datetime
    key_id: str | None
    caller: str
    model: str
    endpoint: str
    status: int
    seconds: float
    version: int | None = None
    task: str | None = None
    items: int = 1
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    audio_seconds: float | None = None
    compute_seconds: float | None = None
    joules: float | None = None
    energy_method: str | None = None
    grams_co2e: float | None = None
    price: float | None = None
    currency: str | None = None
    error_code: str | None = None
    """Why it was refused, where it was."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a replica once it is open."""

    signature: Signature | None = None
    """None for sequence engines."""
    context_length: int | None = None
    task: str | None = None
    batching: Batching | None = None
    """Whether callers may be computed together; None where the engine has a way of its own."""
    labels: Mapping[int, str] = field(default_factory=dict)
    """What it calls its classes, by their ids."""
    calls: str | None = None
    """How the model's chat template has tools called, by the format's name; None where it knows no tools."""
    reasons: bool = False
    """Whether it sets reasoning apart from its answers."""
    trouble: str | None = None
    """Why it can answer nothing now, though it is up: another server runs it. None: nothing stands in the way."""
    abilities: Mapping[str, Any] = field(default_factory=dict)
    """What its engine and processor, or another server that runs it, say that it can, in the words of /v1/models."""
    likeliest_bytes: int | None = None
    """What it takes to tell the likeliest tokens, measured; None where nothing is there for that alone."""


class Admitted(NamedTuple):
    """A constraint that an engine can keep to."""

    grammar: str
    """In the engine's own words."""
    memory_bytes: int
    """That the engine will hold of it."""
