"""The running copy of one version: engine + processor + scheduler (tensors), or engine + processor (sequences).

Knows payloads, tensors and chunks. Refuses to know endpoints, keys, money and HTTP.

    payload -prepare (bounded thread pool)-> tensors -scheduler-> outputs -finish (pool)-> answer, one chunk
    payload -prepare-> input_ids or waveform -SequenceEngine.submit-> tokens -text stream-> chunk, chunk, ...

Decoding happens per payload and before batching, so that bad bytes fail only their sender.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any, Protocol, cast

import numpy as np

from maasdam.core import (
    UNTRIED,
    Batching,
    Chunk,
    Payload,
    Processor,
    Request,
    Sampling,
    SequenceEngine,
    SequenceRequest,
    Signature,
    TensorEngine,
    TensorPayload,
    Tensors,
    TensorSpec,
    TextPayload,
    TextPiece,
    TextStream,
    Tokens,
    Transcript,
    Units,
)
from maasdam.errors import ContextExceeded, EngineFailure, InvalidInput, InvalidPayload, MaasdamError, Overloaded, TooLarge
from maasdam.serving.compute import ComputeClock
from maasdam.serving.scheduler import Ran, Scheduler
from maasdam.tasks import TASKS, task_of

log = logging.getLogger("maasdam.serving")

SMALL_BYTES = 256 * 1024
"""Tensors up to this size are checked in the event loop: a hop to a thread would cost more."""

TOO_LONG_DECODING_SECONDS = 0.02
"""Of CPU time for the text of one step."""


class Replica(Protocol):
    """What the router and `operations.infer` see of a running copy."""

    signature: Signature | None
    """None for sequence engines."""
    context_length: int | None
    batching: Batching | None
    """Whether callers may be computed together; None where the engine has a way of its own."""
    in_flight: int
    """Requests being answered."""

    @property
    def waiting(self) -> int:
        """Of them, those that wait for the engine, where that is known."""
        ...

    def answer(self, request: Request, max_tokens: int) -> AsyncIterator[Chunk]:
        """Chunks of one answer; closing the iterator cancels. `max_tokens` is the limit where the request names none."""
        ...

    def close(self) -> None:
        """Free what it holds; blocks until the batch in flight is done."""
        ...


class TensorReplica:
    """A tensor engine behind a scheduler."""

    context_length: int | None = None

    def __init__(
        self,
        engine: TensorEngine,
        processor: Processor | None,
        *,
        pool: Executor,
        compute: ComputeClock,
        queue_size: int,
        max_answer_bytes: int = 1 << 62,
        threads: int = 1,
        batching: Batching = UNTRIED,
        on_batch: Callable[[int], None] | None = None,
    ) -> None:
        """`batching`: what was found of this engine; unless it is independent, requests run one by one."""
        self.signature: Signature | None = engine.signature
        self.batching: Batching | None = batching
        self.in_flight = 0
        self._engine = engine
        self._processor = processor
        self._pool = pool
        self._queue_size = queue_size
        self._preparing = 0
        self._checked: Signature = engine.signature
        self._max_answer_bytes = max_answer_bytes
        self._bytes_a_row = sum(_bytes_a_row(spec) for spec in engine.signature.outputs)
        first_axes = [spec.shape[:1] for spec in (*engine.signature.inputs, *engine.signature.outputs)]
        self._batches = all(axis == (None,) for axis in first_axes)
        inner = [size for spec in engine.signature.inputs for size in spec.shape[1:]]
        is_fixed = None not in inner
        most = max((one.rows for one in batching.tried), default=1) if batching.is_independent else 1
        self._scheduler = Scheduler(
            engine.run,
            queue_size=queue_size,
            batches=self._batches,
            is_fixed=is_fixed,
            most_rows=(lambda tensors: most) if is_fixed else batching.most_rows,  # a look at the sizes takes microseconds
            threads=threads,
            compute=compute,
            on_batch=on_batch,
        )

    @property
    def waiting(self) -> int:
        """Items queued."""
        return self._scheduler.waiting

    async def answer(self, request: Request, max_tokens: int) -> AsyncIterator[Chunk]:
        """One chunk. Raises InvalidTensor, InvalidPayload, Overloaded, DeadlineExceeded, EngineFailure."""
        self.in_flight += 1
        try:
            if isinstance(request.payload, TensorPayload):
                yield await self._tensors(request.payload, request.deadline)
            else:
                yield await self._payload(request.payload, request.deadline)
        finally:
            self.in_flight -= 1

    async def _tensors(self, payload: TensorPayload, deadline: float | None) -> Chunk:
        tensors = payload.tensors
        if sum(array.nbytes for array in tensors.values()) <= SMALL_BYTES:
            self._checked.check(tensors)
        else:
            await asyncio.get_running_loop().run_in_executor(self._pool, self._checked.check, tensors)
        counts = {array.shape[0] for array in tensors.values()} if self._batches else {1}
        items = counts.pop() if len(counts) == 1 else 1  # first axes that differ are of one thing: a graph
        self._refuse_large(items * self._bytes_a_row)
        ran = await self._scheduler.run(tensors, deadline)
        size = sum(array.nbytes for array in ran.outputs.values())
        if size > self._max_answer_bytes:
            del ran  # or the error's traceback would keep it
            self._refuse_large(size)
        return Chunk(ran.outputs, Units(items=items), True, ran.compute_seconds)

    def _refuse_large(self, size: int) -> None:
        if size > self._max_answer_bytes:
            raise TooLarge(
                f"the answer has at least {size:,} bytes where at most {self._max_answer_bytes:,} are given (setting "
                "max_answer_bytes); ask for less at once"
            )

    async def _payload(self, payload: Payload, deadline: float | None) -> Chunk:
        if self._processor is None:
            raise InvalidInput("this model has no processor; send raw tensors to /v2/models/NAME/infer")
        _check_kind(self._processor.task, payload)
        loop = asyncio.get_running_loop()
        if self._preparing >= self._queue_size:
            raise Overloaded(f"{self._preparing} requests are already waiting for this model; try again in a second")
        self._preparing += 1
        try:
            prepared, units = await loop.run_in_executor(self._pool, _prepare, self._processor, payload)
        finally:
            self._preparing -= 1
        if len(prepared) == 1:
            rans = [await self._scheduler.run(prepared[0], deadline)]
        else:
            rans = await self._all(prepared, deadline)
        outputs: list[Tensors] = [ran.outputs for ran in rans]
        answer = await loop.run_in_executor(self._pool, self._processor.finish, outputs, payload)
        return Chunk(answer, units, True, sum(ran.compute_seconds for ran in rans))

    async def _all(self, prepared: Sequence[Tensors], deadline: float | None) -> list[Ran]:
        tasks = [asyncio.ensure_future(self._scheduler.run(tensors, deadline)) for tensors in prepared]
        try:
            return list(await asyncio.gather(*tasks))
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise

    def close(self) -> None:
        """End the scheduler, then free the engine."""
        self._scheduler.close()
        self._engine.close()


def _bytes_a_row(spec: TensorSpec) -> int:
    """What one row of an output takes at least, as far as its shape tells: open axes after the first may be empty."""
    if spec.dtype == "object" or None in spec.shape[1:]:
        return 0
    size = 2 if spec.dtype == "bfloat16" else np.dtype(spec.dtype).itemsize
    return size * math.prod(cast(tuple[int, ...], spec.shape[1:] if spec.shape[:1] == (None,) else spec.shape))


class SequenceReplica:
    """A sequence engine: text generation, or speech by an engine that decodes by itself."""

    signature: Signature | None = None
    batching: Batching | None = None

    def __init__(
        self,
        engine: SequenceEngine,
        processor: Processor,
        *,
        pool: Executor,
        queue_size: int,
        text_stream: Callable[[tuple[str, ...], Sequence[int]], TextStream] | None = None,
    ) -> None:
        """`text_stream` makes one for stop strings and the prompt's tokens; None where the engine gives text by itself."""
        self.context_length: int | None = engine.context_length
        self.in_flight = 0
        self._engine = engine
        self._processor = processor
        self._pool = pool
        self._queue_size = queue_size
        self._text_stream = text_stream
        self._decodes_apart = False

    @property
    def waiting(self) -> int:
        """0: a sequence engine lets everyone in and shares its steps among them."""
        return 0

    async def answer(self, request: Request, max_tokens: int) -> AsyncIterator[Chunk]:
        """Chunks as they come. Raises InvalidPayload (prompt beyond the context), Overloaded, EngineFailure."""
        if self.in_flight >= self._queue_size:
            raise Overloaded(f"{self.in_flight} requests are already waiting for this model; try again in a second")
        self.in_flight += 1
        try:
            payload = request.payload
            _check_kind(self._processor.task, payload)
            loop = asyncio.get_running_loop()
            prepared, units = await loop.run_in_executor(self._pool, _prepare, self._processor, payload)
            if isinstance(payload, TextPayload):
                chunks = self._generate(request, payload, prepared[0], units, max_tokens)
            else:
                chunks = self._transcribe(request, prepared, units)
            try:
                async for chunk in chunks:
                    yield chunk
            finally:
                await cast(Any, chunks).aclose()
        finally:
            self.in_flight -= 1

    async def _generate(
        self, request: Request, payload: TextPayload, inputs: Tensors, units: Units, max_tokens: int
    ) -> AsyncIterator[Chunk]:
        sampling = self._fit(payload.sampling, inputs["input_ids"].shape[-1], max_tokens)
        if sampling.max_tokens == 0:
            yield Chunk(TextPiece("", (), "length"), replace(units, completion_tokens=0), True, None)
            return
        assert self._text_stream is not None
        stream = self._text_stream(sampling.stop, inputs["input_ids"][0])
        count = 0
        compute: float | None = None
        tokens_iterator = self._engine.submit(SequenceRequest(request.id, inputs, sampling, request.deadline))
        try:
            async for tokens in tokens_iterator:
                compute = tokens.compute_seconds if tokens.compute_seconds is not None else compute
                text = await self._decoded(lambda: stream.feed(tokens.token_ids))  # noqa: B023 - called at once
                taken = tokens.token_ids[: stream.taken]
                count += len(taken)
                reason = "stop" if stream.is_stopped else tokens.finish_reason
                if reason is not None and not stream.is_stopped:
                    text += await self._decoded(stream.finish)
                    reason = "stop" if stream.is_stopped else reason
                piece = TextPiece(text, taken, reason)
                yield Chunk(piece, replace(units, completion_tokens=count), reason is not None, compute)
                if reason is not None:
                    return
        finally:
            await cast(Any, tokens_iterator).aclose()
        raise EngineFailure("the engine ended a generation without saying why")

    async def _decoded(self, call: Callable[[], str]) -> str:
        """The next text: in the event loop, unless this model's decoder has taken long there. It came with the model."""
        if self._decodes_apart:
            return await asyncio.get_running_loop().run_in_executor(self._pool, call)
        began = time.thread_time()
        text = call()
        if time.thread_time() - began > TOO_LONG_DECODING_SECONDS:
            log.warning("a tokenizer's decoder blocked the event loop; this model has threads for it from now on")
            self._decodes_apart = True
        return text

    def _fit(self, sampling: Sampling, prompt: int, max_tokens: int) -> Sampling:
        room = self._engine.context_length - prompt
        if room < 1:
            raise ContextExceeded(prompt, self._engine.context_length)
        return replace(sampling, max_tokens=min(max_tokens if sampling.max_tokens is None else sampling.max_tokens, room))

    async def _transcribe(self, request: Request, prepared: Sequence[Tensors], units: Units) -> AsyncIterator[Chunk]:
        texts: list[str] = []
        segments: list[Mapping[str, Any]] = []
        language: str | None = None
        compute: float | None = None
        for inputs in prepared:
            tokens_iterator: AsyncIterator[Tokens] = self._engine.submit(
                SequenceRequest(request.id, inputs, Sampling(), request.deadline)
            )
            try:
                async for tokens in tokens_iterator:
                    texts.append(tokens.text or "")
                    segments.extend(tokens.segments)
                    language = tokens.language or language
                    if tokens.compute_seconds is not None:
                        compute = (compute or 0.0) + tokens.compute_seconds
            finally:
                await cast(Any, tokens_iterator).aclose()
        yield Chunk(Transcript("".join(texts).strip(), tuple(segments), language), units, True, compute)

    def close(self) -> None:
        """Stop the engine."""
        self._engine.close()


def _prepare(processor: Processor, payload: Payload) -> tuple[list[dict[str, Any]], Units]:
    try:
        prepared = processor.prepare(payload)
        return prepared, processor.units(payload, prepared)
    except MaasdamError:
        raise
    except (MemoryError, RecursionError) as error:
        raise InvalidPayload("the payload is too large to decode; send a smaller one") from error


def _check_kind(name: str, payload: Payload) -> None:
    task = task_of(name)
    if type(payload) in task.payloads:
        return
    if isinstance(payload, TensorPayload):
        raise InvalidInput(f"this model takes no raw tensors; use {task.door}")
    given = " or ".join(other.name for other in TASKS.values() if type(payload) in other.payloads)
    raise InvalidInput(f"this model does {name}, not {given}; use {task.door}")
