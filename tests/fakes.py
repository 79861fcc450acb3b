"""Fakes at the seams: engines with settable delay and failure, processors, a catalog and a ledger in memory."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

import numpy as np

from maasdam.core import (
    Answer,
    AudioPayload,
    Classification,
    Cost,
    ImagePayload,
    Label,
    Meter,
    Payload,
    SequenceRequest,
    Signature,
    Tensors,
    TensorSpec,
    TextPayload,
    Tokens,
    Transcript,
    Units,
)
from maasdam.engines.mailbox import told
from maasdam.errors import ContextExceeded, InvalidPayload, MaasdamError
from maasdam.telemetry.meter import CpuMeter

DOUBLES = Signature((TensorSpec("x", "float32", (None, 2)),), (TensorSpec("y", "float32", (None, 2)),))


class FakeEngine:
    """Doubles its only input. `delay` in seconds a batch; `fails(batch)` true makes it raise."""

    def __init__(
        self, delay: float = 0.0, fails: Callable[[Tensors], bool] = lambda batch: False, signature: Signature = DOUBLES
    ) -> None:
        self.signature = signature
        self.delay = delay
        self.fails = fails
        self.batches: list[int] = []
        self.is_closed = False
        self.gate = threading.Event()
        """Clear it to hold every batch."""
        self.gate.set()

    def run(self, batch: Tensors) -> dict[str, Any]:
        self.gate.wait(30)
        if self.delay:
            time.sleep(self.delay)
        first = next(iter(batch.values()))
        self.batches.append(first.shape[0])
        if self.fails(batch):
            raise RuntimeError("the fake engine was told to fail")
        return {spec.name: first * 2 for spec in self.signature.outputs}

    def precisions(self) -> dict[str, int]:
        return {}

    def close(self) -> None:
        self.is_closed = True


class FakeSequenceEngine:
    """Says the alphabet; `delay` in seconds a token."""

    context_length = 64

    def __init__(self, delay: float = 0.0, fails_after: int | None = None) -> None:
        self.delay = delay
        self.fails_after = fails_after
        self.given = 0
        """Tokens given."""
        self.cancelled: list[str] = []
        self.is_closed = False
        self.meter: Meter = CpuMeter()

    def start(self, request: SequenceRequest, hear: Callable[[Tokens | BaseException], None]) -> Callable[[], object]:
        return told(self.submit(request), hear, lambda tokens: tokens.finish_reason is not None)

    async def submit(self, request: SequenceRequest) -> AsyncGenerator[Tokens]:
        done = False
        try:
            room = self.context_length - request.inputs["input_ids"].shape[1]
            if room < 1:
                raise ContextExceeded(self.context_length - room, self.context_length)
            asked = request.sampling.max_tokens
            limit = min(8 if asked is None else asked, room)
            if limit == 0:
                done = True
                yield Tokens((), finish_reason="length")
            for i in range(limit):
                await asyncio.sleep(self.delay)
                if i == self.fails_after:
                    raise RuntimeError("the fake engine was told to fail")
                done = i == limit - 1
                self.given += 1
                cost = Cost(0.001 * (i + 1), None, "fake") if done else None
                yield Tokens((97 + i % 26,), finish_reason="length" if done else None, cost=cost)
        finally:
            if not done:
                self.cancelled.append(request.id)

    def close(self) -> None:
        self.is_closed = True


class FakeTextStream:
    """Characters by code; ends at a stop string."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        self.taken = 0
        self._stop = stop
        self._text = ""
        self.is_stopped = False

    def feed(self, token_ids: Sequence[int]) -> str:
        self.taken = len(token_ids)
        piece = "".join(chr(token) for token in token_ids)
        self._text += piece
        if any(stop in self._text for stop in self._stop):
            self.is_stopped = True
            return ""
        return piece

    def finish(self) -> str:
        return ""


class FakeProcessor:
    """Images and recordings whose bytes are b"bad" are refused; others become their first two bytes."""

    def __init__(self, task: str) -> None:
        self.task = task

    def prepare(self, payload: Payload) -> list[dict[str, Any]]:
        if isinstance(payload, ImagePayload | AudioPayload):
            if payload.data == b"bad" or not payload.data:
                raise InvalidPayload("these bytes are not an image; send PNG or JPEG")
            return [{"x": np.frombuffer(payload.data[:2], np.uint8).astype(np.float32).reshape(1, 2)}]
        assert isinstance(payload, TextPayload)
        if payload.token_ids is not None:
            ids = list(payload.token_ids)
        else:
            text = payload.prompt if payload.prompt is not None else "".join(m["content"] for m in payload.messages or ())
            ids = list(text.encode())
        return [{"input_ids": np.array([ids], np.int64)}]

    def finish(self, outputs: Sequence[Tensors], payload: Payload) -> Answer:
        row = outputs[0]["y"][0]
        if isinstance(payload, AudioPayload):
            return Transcript(" ".join(str(int(v)) for v in row))
        order = np.argsort(-row)[: payload.top_k if isinstance(payload, ImagePayload) else 1]
        return Classification(tuple(Label(f"label{i}", int(i), float(row[i])) for i in order))

    def units(self, payload: Payload, prepared: Sequence[Tensors]) -> Units:
        if isinstance(payload, TextPayload):
            return Units(prompt_tokens=prepared[0]["input_ids"].shape[-1])
        return Units(audio_seconds=1.5 if isinstance(payload, AudioPayload) else None)

    def stream(self, stop: tuple[str, ...], after: Sequence[int] = (), shows: Any = None) -> FakeTextStream:
        return FakeTextStream(stop)


class FakeOutbox:
    """Rows in a list, durable at once, or as `error` says not."""

    def __init__(self, error: MaasdamError | None = None) -> None:
        self.rows: list[Any] = []
        self.error = error
        self.first_chunks = 0

    def record(self, entry: Any, done: Callable[[BaseException | None], None]) -> int:
        self.rows.append(entry)
        done(self.error)
        return len(self.rows)

    def restate(self, row: int, status: int, error_code: str) -> bool:
        return False

    def first_chunk(self, entry: Any, seconds: float) -> None:
        self.first_chunks += 1
