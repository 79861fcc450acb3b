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
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, TypeVar, cast

import numpy as np

from maasdam.core import (
    UNTRIED,
    Batching,
    Checked,
    Chunk,
    Facts,
    Payload,
    Processor,
    Request,
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
    Units,
    total_cost,
)
from maasdam.engines.generating import text_of, transcript_of
from maasdam.errors import EngineFailure, InvalidInput, InvalidPayload, MaasdamError, Overloaded, TooLarge
from maasdam.serving.scheduler import Executions, Ran, Scheduler, settle
from maasdam.tasks import TASKS, task_of
from maasdam.telemetry.meter import CpuMeter

log = logging.getLogger("maasdam.serving")
Result = TypeVar("Result")

SMALL_BYTES = 256 * 1024
"""Tensors up to this size are checked in the event loop: a hop to a thread would cost more."""

TOO_LONG_DECODING_SECONDS = 0.02
"""Of CPU time for the text of one step."""


Done = Callable[["list[Chunk] | BaseException"], None]
"""Told, in the event loop, of a whole answer: one chunk a payload; or of what went wrong."""
Cancel = Callable[[], Sequence[Chunk]]
"""Ends an answer, of which `done` hears nothing any more; the newest chunk of each payload until then, to be metered."""


class Replica(Protocol):
    """What the router and `operations.infer` see of the running copy of one version. Nothing else of it is reached into."""

    facts: Facts
    in_flight: int
    """Leases on it: the router counts them."""

    @property
    def waiting(self) -> int:
        """Of the requests, those that wait for the engine, where that is known."""
        ...

    def submit(self, request: Request, done: Done) -> Cancel:
        """Begin a whole answer to all payloads. Raises what is known to be wrong at once; `done` hears of the rest."""
        ...

    def answer(self, request: Request) -> AsyncGenerator[Chunk]:
        """Chunks of the answer to a request's only payload, as they come; closing the generator cancels."""
        ...

    @property
    def executions(self) -> Executions | None:
        """What its engine has run; None where the engine puts requests together by itself."""
        ...

    def close(self) -> None:
        """Free what it holds; blocks until the batch in flight is done."""
        ...


class TensorReplica:
    """A tensor engine behind a scheduler."""

    def __init__(
        self,
        engine: TensorEngine,
        processor: Processor | None,
        *,
        pool: Executor,
        meter: CpuMeter,
        queue_size: int,
        max_answer_bytes: int = 1 << 62,
        threads: int = 1,
        batching: Batching = UNTRIED,
        labels: Mapping[int, str] | None = None,
    ) -> None:
        """`batching`: what was found of this engine; unless it is independent, requests run one by one."""
        self.facts = Facts(engine.signature, None, processor.task if processor else None, batching, labels or {})
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
            meter=meter,
        )

    @property
    def waiting(self) -> int:
        """Items queued."""
        return self._scheduler.waiting

    @property
    def executions(self) -> Executions:
        """What the engine has run."""
        return self._scheduler.executions

    def submit(self, request: Request, done: Done) -> Cancel:
        """See `Replica`. Tensors go to the scheduler at once; what must be decoded takes the way of threads.

        Raises InvalidTensor, Overloaded, NotReady; `done` may hear of InvalidPayload, DeadlineExceeded, EngineFailure too.
        """
        payload = request.payloads[0]
        if not isinstance(payload, TensorPayload) or _size(payload.tensors) > SMALL_BYTES:
            return whole([self._answered(one, request.deadline) for one in request.payloads], done)
        self._checked.check(payload.tensors)
        items = self._items(payload.tensors)

        def tell(outcome: Ran | BaseException) -> None:
            done(outcome if isinstance(outcome, BaseException) else self._chunks(items, outcome))

        item = self._scheduler.submit(Checked(payload.tensors), request.deadline, tell)

        def cancel() -> Sequence[Chunk]:
            self._scheduler.cancel(item)
            return ()

        return cancel

    async def answer(self, request: Request) -> AsyncGenerator[Chunk]:
        """One chunk. Raises what `submit` does, and what it tells."""
        future: asyncio.Future[list[Chunk]] = asyncio.get_running_loop().create_future()
        cancel = self.submit(request, partial(settle, future))
        try:
            (chunk,) = await future
        finally:
            cancel()
        yield chunk

    async def _answered(self, payload: Payload, deadline: float | None) -> AsyncGenerator[Chunk]:
        if not isinstance(payload, TensorPayload):
            yield await self._decoded(payload, deadline)
            return
        await asyncio.get_running_loop().run_in_executor(self._pool, self._checked.check, payload.tensors)
        items = self._items(payload.tensors)
        outcome = self._chunks(items, await self._scheduler.run(Checked(payload.tensors), deadline))
        if isinstance(outcome, BaseException):
            raise outcome
        yield outcome[0]

    def _items(self, tensors: Tensors) -> int:
        """How many items there are to answer. Raises TooLarge where their answers would be."""
        counts = {array.shape[0] for array in tensors.values()} if self._batches else {1}
        items = counts.pop() if len(counts) == 1 else 1  # first axes that differ are of one thing: a graph
        self._refuse_large(items * self._bytes_a_row)
        return items

    def _chunks(self, items: int, ran: Ran) -> list[Chunk] | TooLarge:
        try:
            self._refuse_large(_size(ran.outputs))
        except TooLarge as error:
            return error.with_traceback(None)  # or it would keep the answer
        return [Chunk(ran.outputs, Units(items=items), True, ran.cost)]

    def _refuse_large(self, size: int) -> None:
        if size > self._max_answer_bytes:
            raise TooLarge(
                f"the answer has at least {size:,} bytes where at most {self._max_answer_bytes:,} are given (setting "
                "max_answer_bytes); ask for less at once"
            )

    async def _decoded(self, payload: Payload, deadline: float | None) -> Chunk:
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
        rans = await side_by_side([self._scheduler.run(tensors, deadline) for tensors in prepared])
        outputs: list[Tensors] = [ran.outputs for ran in rans]
        answer = await loop.run_in_executor(self._pool, self._processor.finish, outputs, payload)
        return Chunk(answer, units, True, total_cost(ran.cost for ran in rans))

    def close(self) -> None:
        """End the scheduler, then free the engine."""
        self._scheduler.close()
        self._engine.close()


async def side_by_side(parts: Sequence[Coroutine[Any, Any, Result]]) -> list[Result]:
    """What each gives, in order. Where one fails the others are cancelled, and over, before its error is raised."""
    if len(parts) == 1:
        return [await parts[0]]
    tasks = [asyncio.ensure_future(part) for part in parts]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


def whole(answers: Sequence[AsyncGenerator[Chunk]], done: Done) -> Cancel:
    """Have answers that come in pieces given whole: what `Replica.submit` promises, of what `Replica.answer` gives."""
    return _Whole(answers, done).cancel


class _Whole:
    """Answers in pieces, each folded into one chunk, in a task."""

    def __init__(self, answers: Sequence[AsyncGenerator[Chunk]], done: Done) -> None:
        self._newest: dict[int, Chunk] = {}
        self._done = done
        self._task = asyncio.ensure_future(side_by_side([self._fold(i, answer) for i, answer in enumerate(answers)]))
        self._task.add_done_callback(self._tell)

    def cancel(self) -> Sequence[Chunk]:
        """See `Cancel`."""
        self._task.cancel()
        return list(self._newest.values())

    def _tell(self, task: asyncio.Task[list[Chunk]]) -> None:
        if not task.cancelled():
            self._done(task.exception() or task.result())

    async def _fold(self, i: int, answer: AsyncGenerator[Chunk]) -> Chunk:
        """The pieces of text joined, other answers as they are."""
        async with aclosing(answer) as chunks:
            texts: list[str] = []
            token_ids: list[int] = []
            async for chunk in chunks:
                self._newest[i] = chunk
                if not isinstance(chunk.value, TextPiece):
                    return chunk
                texts.append(chunk.value.text)
                token_ids.extend(chunk.value.token_ids)
                if chunk.is_last:
                    return replace(chunk, value=TextPiece("".join(texts), tuple(token_ids), chunk.value.finish_reason))
        raise EngineFailure("the answer ended without a last piece")


def _size(tensors: Mapping[str, Any]) -> int:
    return sum(array.nbytes for array in tensors.values())


def _bytes_a_row(spec: TensorSpec) -> int:
    """What one row of an output takes at least, as far as its shape tells: open axes after the first may be empty."""
    if spec.dtype == "object" or None in spec.shape[1:]:
        return 0
    size = 2 if spec.dtype == "bfloat16" else np.dtype(spec.dtype).itemsize
    return size * math.prod(cast(tuple[int, ...], spec.shape[1:] if spec.shape[:1] == (None,) else spec.shape))


class SequenceReplica:
    """A sequence engine: text generation, or speech by an engine that decodes by itself."""

    def __init__(
        self,
        engine: SequenceEngine,
        processor: Processor,
        *,
        pool: Executor,
        queue_size: int,
        max_tokens: int = 256,
        text_stream: Callable[[tuple[str, ...], Sequence[int]], TextStream] | None = None,
    ) -> None:
        """`max_tokens` are written where a request names no limit.

        `text_stream` makes one for stop strings and the prompt's tokens; None where the engine gives text by itself.
        """
        self.facts = Facts(None, engine.context_length, processor.task)
        self.in_flight = 0
        self._answering = 0
        self._max_tokens = max_tokens
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

    @property
    def executions(self) -> None:
        """Its steps are its own."""
        return None

    def submit(self, request: Request, done: Done) -> Cancel:
        """See `Replica`: the pieces that `answer` gives, joined."""
        return whole([self.answer(replace(request, payloads=(payload,))) for payload in request.payloads], done)

    async def answer(self, request: Request) -> AsyncGenerator[Chunk]:
        """Chunks as they come. Raises InvalidPayload (prompt beyond the context), Overloaded, EngineFailure."""
        if self._answering >= self._queue_size:
            raise Overloaded(f"{self._answering} requests are already waiting for this model; try again in a second")
        self._answering += 1
        try:
            (payload,) = request.payloads
            _check_kind(self._processor.task, payload)
            loop = asyncio.get_running_loop()
            prepared, units = await loop.run_in_executor(self._pool, _prepare, self._processor, payload)
            if isinstance(payload, TextPayload):
                chunks = self._generate(request, payload, prepared[0], units)
            else:
                chunks = self._transcribe(request, prepared, units)
            async with aclosing(chunks):
                async for chunk in chunks:
                    yield chunk
        finally:
            self._answering -= 1

    async def _generate(self, request: Request, payload: TextPayload, inputs: Tensors, units: Units) -> AsyncGenerator[Chunk]:
        sampling = payload.sampling
        if sampling.max_tokens is None:
            sampling = replace(sampling, max_tokens=self._max_tokens)
        assert self._text_stream is not None
        stream = self._text_stream(sampling.stop, inputs["input_ids"][0])
        asked = SequenceRequest(request.id, inputs, sampling, request.deadline)
        count = 0
        async with aclosing(text_of(self._engine, asked, stream, self._decoded)) as pieces:
            async for piece, cost in pieces:
                count += len(piece.token_ids)
                yield Chunk(piece, replace(units, completion_tokens=count), piece.finish_reason is not None, cost)

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

    async def _transcribe(self, request: Request, prepared: Sequence[Tensors], units: Units) -> AsyncGenerator[Chunk]:
        transcript, tokens = await transcript_of(self._engine, prepared, request.id, request.deadline)
        yield Chunk(transcript, units, True, total_cost(each.cost for each in tokens))

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
