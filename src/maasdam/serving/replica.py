"""The running copy of one version: engine + processor + scheduler (tensors), or engine + processor (sequences).

Knows payloads, tensors and chunks. Refuses to know endpoints, keys, money and HTTP.

    payload -prepare (bounded thread pool)-> tensors -scheduler-> outputs -finish (pool)-> answer, one chunk
    payload -prepare-> input_ids or waveform -SequenceEngine.start-> tokens -text stream-> chunk, chunk, ...

Decoding happens per payload and before batching, so that bad bytes fail only their sender.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, Protocol, TypeVar, cast

import numpy as np

from maasdam import grammars
from maasdam.core import (
    PLAIN,
    UNTRIED,
    Able,
    Admitted,
    Answer,
    AudioPayload,
    Batching,
    Checked,
    Chunk,
    Constraint,
    Cost,
    Echo,
    EchoingProcessor,
    Facts,
    HoldingEngine,
    Payload,
    PiecewiseProcessor,
    Processor,
    ReadingProcessor,
    Request,
    Scored,
    Section,
    Sections,
    SequenceEngine,
    SequenceRequest,
    Signature,
    SpellingProcessor,
    SpellPayload,
    TalkingProcessor,
    TellingEngine,
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
    WithoutNan,
    total_cost,
    whole_transcript,
)
from maasdam.engines.generating import heard, piece_of, transcript_piece, with_echo
from maasdam.engines.mailbox import as_they_come, told
from maasdam.errors import EngineFailure, InvalidField, InvalidInput, InvalidPayload, MaasdamError, Overloaded, TooLarge
from maasdam.serving.answer_reader import AnswerReader
from maasdam.serving.executions import Executions
from maasdam.serving.scheduler import Ran, Scheduler
from maasdam.tasks import TASKS, task_of
from maasdam.telemetry.meter import CpuMeter

log = logging.getLogger("maasdam.serving")
Result = TypeVar("Result")

SMALL_BYTES = 256 * 1024
"""Tensors up to this size are checked in the event loop: a hop to a thread would cost more."""

SIDE_BY_SIDE = 16
"""Payloads of one request that are worked on at once: a request of a thousand texts is no crowd, and leaves room for others."""
PARTS_AHEAD = 2
"""Of one payload, that are computed or wait for it at once: others' requests come between."""
OVER = object()
KINDS_KEPT = 64
"""Of tensors that fit."""
TOO_LONG_DECODING_SECONDS = 0.02
"""Of CPU time for the text of one step."""
MUCH_TOO_LONG_SECONDS = 0.2
"""Of any time."""


Done = Callable[["list[Chunk] | BaseException"], None]
"""Told, in the event loop, of a whole answer: one chunk a payload; or of what went wrong."""
Hear = Callable[["Chunk | BaseException"], None]
"""Told, in the event loop, of each piece of an answer as it comes, the last of which says so; or of what went wrong."""
Cancel = Callable[[], Sequence[Chunk]]
"""Ends an answer, of which `done` hears nothing any more; the newest chunk of each payload until then, to be metered."""


@dataclass(frozen=True, slots=True)
class Gone:
    """Why a replica can answer nothing more, though nobody closed it."""

    reason: str
    """A sentence: what ended it."""
    is_crash: bool
    """False: it left on its own, because it was idle or another needed its room."""


WhenGone = Callable[[Gone], None]
Prepared = tuple[dict[str, Any], Units, "Echo | None", "tuple[str, str, bool] | None"]
"""See `_prompt`."""


class Replica(Protocol):
    """What the router and `operations.infer` see of the running copy of one version. Nothing else of it is reached into."""

    facts: Facts
    in_flight: int
    """Leases on it: the router counts them."""
    when_gone: WhenGone | None
    """The router's; told in the event loop, once at most. What runs in this process never goes by itself."""

    load_seconds: dict[str, float]
    """What it took until it was up, by phase, see `phases`; {} where it was up already."""

    @property
    def memory_bytes(self) -> int | None:
        """What its process holds, as measured; None where that is this process, in which nobody can tell."""
        ...

    @property
    def waiting(self) -> int:
        """Of the requests, those that wait for the engine, where that is known."""
        ...

    def submit(self, request: Request, done: Done) -> Cancel:
        """Begin a whole answer to all payloads. Raises what is known to be wrong at once; `done` hears of the rest."""
        ...

    def stream(self, request: Request, hear: Hear) -> Callable[[], object]:
        """Begin the answer to a request's only payload, in pieces. Raises and tells as `submit` does. What this gives
        cancels: `hear` hears nothing any more."""
        ...

    def answer(self, request: Request) -> AsyncGenerator[Chunk]:
        """What `stream` tells, to be awaited; closing the generator cancels."""
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

    memory_bytes = None

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
        longest = processor.longest if isinstance(processor, ReadingProcessor) else None
        task = processor.task if processor else None
        can: Mapping[str, bool] = processor.abilities if isinstance(processor, Able) else {}
        self.facts = Facts(engine.signature, longest, task, batching, labels or {}, abilities=can)
        self.in_flight = 0
        self.when_gone: WhenGone | None = None
        self.load_seconds: dict[str, float] = {}
        self._engine = engine
        self._processor = processor
        self._pool = pool
        self._queue_size = queue_size
        self._preparing = 0
        self._checked: Signature = engine.signature
        self._fitted: dict[tuple[Any, ...], int] = {}
        """Names, types and sizes of tensors that were found to fit, and how many items those are."""
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
    def running_since(self) -> float | None:
        """When the oldest batch that runs now began, by `time.perf_counter`."""
        return self._scheduler.running_since

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
            turns = asyncio.Semaphore(SIDE_BY_SIDE)
            return whole([self._answered(one, request.deadline, turns) for one in request.payloads], done)
        items = self._fitting(payload.tensors)

        def tell(outcome: Ran | BaseException) -> None:
            done(outcome if isinstance(outcome, BaseException) else self._chunks(items, outcome))

        item = self._scheduler.submit(Checked(payload.tensors), request.deadline, tell)

        def cancel() -> Sequence[Chunk]:
            self._scheduler.cancel(item)
            return ()

        return cancel

    def stream(self, request: Request, hear: Hear) -> Callable[[], object]:
        """See `Replica`: one chunk, or one a part and the last."""
        if isinstance(self._processor, PiecewiseProcessor) and not isinstance(request.payloads[0], TensorPayload):
            return told(self._answered(request.payloads[0], request.deadline, asyncio.Semaphore()), hear, _is_last)
        return self.submit(request, lambda outcome: hear(outcome if isinstance(outcome, BaseException) else outcome[0]))

    def answer(self, request: Request) -> AsyncGenerator[Chunk]:
        """See `Replica`."""
        return chunks_of(self, request)

    async def _answered(self, payload: Payload, deadline: float | None, turns: asyncio.Semaphore) -> AsyncGenerator[Chunk]:
        if isinstance(payload, SpellPayload):
            yield await _spelled(self._processor, payload, self._pool)
            return
        if not isinstance(payload, TensorPayload):
            if self._processor is None:
                raise InvalidInput("this model has no processor; send raw tensors to /v2/models/NAME/infer")
            check_kind(self._processor.task, payload)
            async with turns:
                if self._preparing >= self._queue_size:
                    raise Overloaded(f"{self._preparing} requests are already waiting for this model; try again in a second")
                parts = self._processor.parts(payload) if isinstance(self._processor, PiecewiseProcessor) else None
                if parts is None:
                    yield await self._decoded(payload, deadline)
                    return
                async with aclosing(self._by_parts(payload, parts, deadline)) as chunks:
                    async for chunk in chunks:
                        yield chunk
            return
        await asyncio.get_running_loop().run_in_executor(self._pool, self._checked.check, payload.tensors)
        items = self._items(payload.tensors)
        outcome = self._chunks(items, await self._scheduler.run(Checked(payload.tensors), deadline))
        if isinstance(outcome, BaseException):
            raise outcome
        yield outcome[0]

    def _fitting(self, tensors: Tensors) -> int:
        """How many items tensors are that fit, which those without NaN do as others of their names, types and sizes did."""
        if not isinstance(tensors, WithoutNan):
            self._checked.check(tensors)
            return self._items(tensors)
        kind = tuple([(name, array.dtype, array.shape) for name, array in tensors.items()])
        items = self._fitted.get(kind)
        if items is None:
            self._checked.check(tensors)
            items = self._items(tensors)
            if len(self._fitted) >= KINDS_KEPT:
                self._fitted.clear()
            self._fitted[kind] = items
        return items

    def _items(self, tensors: Tensors) -> int:
        """How many items there are to answer. Raises TooLarge where their answers would be."""
        items = 1
        if self._batches:
            counts = {array.shape[0] for array in tensors.values()}
            items = counts.pop() if len(counts) == 1 else 1  # first axes that differ are of one thing: a graph
        self._refuse_large(items * self._bytes_a_row)
        return items

    def _chunks(self, items: int, ran: Ran) -> list[Chunk] | TooLarge:
        try:
            self._refuse_large(_size(ran.outputs))
        except TooLarge as error:
            return error.with_traceback(None)  # or it would keep the answer
        return [Chunk(ran.outputs, _units(items), True, ran.cost)]

    def _refuse_large(self, size: int) -> None:
        if size > self._max_answer_bytes:
            raise TooLarge(
                f"the answer has at least {size:,} bytes where at most {self._max_answer_bytes:,} are given (setting "
                "max_answer_bytes); ask for less at once"
            )

    async def _decoded(self, payload: Payload, deadline: float | None) -> Chunk:
        assert self._processor is not None
        loop = asyncio.get_running_loop()
        self._preparing += 1
        try:
            prepared, units = await loop.run_in_executor(self._pool, _prepare, self._processor, payload)
        finally:
            self._preparing -= 1
        rans = await side_by_side([self._scheduler.run(tensors, deadline) for tensors in prepared])
        outputs: list[Tensors] = [ran.outputs for ran in rans]
        answer = await loop.run_in_executor(self._pool, self._processor.finish, outputs, payload)
        return Chunk(answer, units, True, total_cost(ran.cost for ran in rans))

    async def _by_parts(self, payload: Payload, parts: Sections, deadline: float | None) -> AsyncGenerator[Chunk]:
        """A chunk a part, in order, while the next ones are made and computed; and a last one, of what it was in all."""
        loop = asyncio.get_running_loop()
        running: deque[asyncio.Task[tuple[Answer, Cost | None]]] = deque()
        cost: Cost | None = None

        async def answered(part: Section) -> tuple[Answer, Cost | None]:
            ran = await self._scheduler.run(part.inputs, deadline)
            finish = cast(PiecewiseProcessor, self._processor).finish_part
            return await loop.run_in_executor(self._pool, finish, ran.outputs, part, payload), ran.cost

        self._preparing += 1
        try:
            coming = iter(parts)
            is_over = False
            while running or not is_over:
                if not is_over and len(running) < PARTS_AHEAD:
                    part = await loop.run_in_executor(self._pool, _next_part, coming)
                    is_over = part is OVER
                    if isinstance(part, Section):
                        running.append(asyncio.ensure_future(answered(part)))
                    continue
                answer, its_cost = await running.popleft()
                cost = total_cost((cost, its_cost))
                yield Chunk(answer, Units(audio_seconds=parts.seconds), False, cost)
        finally:
            self._preparing -= 1
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
        yield Chunk(Transcript(""), Units(audio_seconds=parts.seconds), True, cost)

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
    return joined([partial(told, answer, is_last=_is_last) for answer in answers], done)


def joined(begins: Sequence[Callable[[Hear], Callable[[], object]]], done: Done) -> Cancel:
    """The same of what begins that `Hear` is told of. Raises what one of them does, with the others ended."""
    return _Whole(begins, done).cancel


def chunks_of(replica: Replica, request: Request) -> AsyncGenerator[Chunk]:
    """What `Replica.stream` tells, to be awaited; closing the generator cancels."""
    return as_they_come(lambda hear: replica.stream(request, hear), _is_last)


class _Whole:
    """Answers in pieces, side by side, each folded into one chunk. Where one fails the others end."""

    def __init__(self, begins: Sequence[Callable[[Hear], Callable[[], object]]], done: Done) -> None:
        self._done: Done | None = done
        self._pieces: list[list[Chunk]] = [[] for _ in begins]
        self._left = len(begins)
        self._cancels: list[Callable[[], object]] = []
        try:
            for i, begin in enumerate(begins):
                if self._done is not None:
                    self._cancels.append(begin(partial(self._hear, i)))
        except BaseException:
            self.cancel()
            raise

    def cancel(self) -> Sequence[Chunk]:
        """See `Cancel`."""
        self._done = None
        for cancel in self._cancels:
            cancel()
        return [pieces[-1] for pieces in self._pieces if pieces]

    def _hear(self, i: int, chunk: Chunk | BaseException) -> None:
        done = self._done
        if done is None:
            return
        if isinstance(chunk, BaseException):
            self.cancel()
            done(chunk)
            return
        self._pieces[i].append(chunk)
        if chunk.is_last:
            self._left -= 1
            if not self._left:
                self._done = None
                done([_folded(pieces) for pieces in self._pieces])


def _folded(pieces: Sequence[Chunk]) -> Chunk:
    """Pieces of text joined; another answer as it is."""
    last = pieces[-1]
    if isinstance(last.value, Transcript):
        return last._replace(value=whole_transcript([cast(Transcript, piece.value) for piece in pieces]))
    if not isinstance(last.value, TextPiece):
        return last
    texts = [cast(TextPiece, piece.value) for piece in pieces]
    ids = tuple(token for text in texts for token in text.token_ids)
    marks = tuple(mark for text in texts for mark in text.marks)
    thought = [text.reasoning_tokens for text in texts if text.reasoning_tokens is not None]
    calls = tuple(call for text in texts for call in text.calls)
    whole, reasoning = "".join(text.text for text in texts), "".join(text.reasoning for text in texts)
    tokens = sum(thought) if thought else None
    return last._replace(value=TextPiece(whole, ids, last.value.finish_reason, marks, reasoning, tokens, calls))


def _is_last(chunk: Chunk) -> bool:
    return chunk.is_last


def _size(tensors: Mapping[str, Any]) -> int:
    size = 0
    for array in tensors.values():  # a list of them costs each small request a third of a microsecond
        size += array.nbytes
    return size


@lru_cache(maxsize=64)
def _units(items: int) -> Units:
    return Units(items=items)


def _bytes_a_row(spec: TensorSpec) -> int:
    """What one row of an output takes at least, as far as its shape tells: open axes after the first may be empty."""
    if spec.dtype == "object" or None in spec.shape[1:]:
        return 0
    size = 2 if spec.dtype == "bfloat16" else np.dtype(spec.dtype).itemsize
    return size * math.prod(cast(tuple[int, ...], spec.shape[1:] if spec.shape[:1] == (None,) else spec.shape))


class SequenceReplica:
    """A sequence engine: text generation, or speech by an engine that decodes by itself."""

    memory_bytes = running_since = None

    def __init__(
        self,
        engine: SequenceEngine,
        processor: Processor,
        *,
        pool: Executor,
        queue_size: int,
        max_tokens: int = 256,
        text_stream: Callable[..., TextStream] | None = None,
    ) -> None:
        """`max_tokens` are written where a request names no limit.

        `text_stream` makes one for stop strings and the prompt's tokens (see `WritingProcessor`); None where the engine gives
        text by itself.
        """
        self._talks = processor if isinstance(processor, TalkingProcessor) else None
        talk: dict[str, Any] = {} if self._talks is None else {"calls": self._talks.calls, "reasons": self._talks.reasons}
        if isinstance(engine, Able):
            talk["abilities"] = engine.abilities
        held = engine.likeliest_bytes if isinstance(engine, TellingEngine) else None
        self.facts = Facts(None, engine.context_length, processor.task, likeliest_bytes=held, **talk)
        self.in_flight = 0
        self.when_gone: WhenGone | None = None
        self.load_seconds: dict[str, float] = {}
        self._answering = 0
        self._max_tokens = max_tokens
        self._engine = engine
        self._processor = processor
        self._pool = pool
        self._queue_size = queue_size
        self._text_stream = text_stream
        self._decodes_apart = False
        self._clock = time.perf_counter

    @property
    def waiting(self) -> int:
        """0: a sequence engine lets everyone in and shares its steps among them."""
        return 0

    @property
    def executions(self) -> None:
        """Its steps are its own."""
        return None

    def submit(self, request: Request, done: Done) -> Cancel:
        """See `Replica`: the pieces that `stream` tells, joined. Raises Overloaded."""
        return joined([partial(self.stream, replace(request, payloads=(payload,))) for payload in request.payloads], done)

    def stream(self, request: Request, hear: Hear) -> Callable[[], object]:
        """See `Replica`. Raises Overloaded; `hear` may be told of InvalidPayload (prompt beyond the context), EngineFailure."""
        if self._answering >= self._queue_size:
            raise Overloaded(f"{self._answering} requests are already waiting for this model; try again in a second")
        (payload,) = request.payloads
        if isinstance(payload, SpellPayload):
            return told(_spelling(self._processor, payload, self._pool), hear, _is_last)
        check_kind(self._processor.task, payload)
        if isinstance(payload, TextPayload):
            return _Text(self, request, payload, hear).cancel
        return told(self._transcribed(request, payload), hear, _is_last)

    def answer(self, request: Request) -> AsyncGenerator[Chunk]:
        """See `Replica`."""
        return chunks_of(self, request)

    async def _transcribed(self, request: Request, payload: Payload) -> AsyncGenerator[Chunk]:
        self._answering += 1
        try:
            loop = asyncio.get_running_loop()
            sampling = payload.sampling if isinstance(payload, AudioPayload) else PLAIN
            parts = self._processor.parts(payload) if isinstance(self._processor, PiecewiseProcessor) else None
            if parts is None:
                prepared, units = await loop.run_in_executor(self._pool, _prepare, self._processor, payload)
                async with aclosing(heard(self._engine, prepared, request.id, sampling, request.deadline)) as pieces:
                    async for tokens, cost in pieces:
                        yield Chunk(transcript_piece(tokens), units, tokens.finish_reason is not None, cost)
                return
            before: Cost | None = None
            language: str | None = None
            coming = iter(parts)
            while (part := await loop.run_in_executor(self._pool, _next_part, coming)) is not OVER:
                if not isinstance(part, Section):
                    continue
                if language is not None:  # what the first part is in, all of them are in
                    part.inputs.setdefault("language", np.array([language], dtype=object))
                so_far = before
                async with aclosing(heard(self._engine, [part.inputs], request.id, sampling, request.deadline)) as pieces:
                    async for tokens, cost in pieces:
                        so_far = total_cost((before, cost))
                        language = language or tokens.language
                        said = transcript_piece(tokens).later(part.start)
                        yield Chunk(said, Units(audio_seconds=parts.seconds), False, so_far)
                before = so_far
            yield Chunk(Transcript("", (), language), Units(audio_seconds=parts.seconds), True, before)
        finally:
            self._answering -= 1

    def _note_slow_decoder(self, seconds: float) -> None:
        """The decoder came with the model. What took long by the clock may have waited for the processor: of the next, its
        time is asked for, by a call of the system that quick tokens need not pay."""
        if self._clock is time.perf_counter and seconds < MUCH_TOO_LONG_SECONDS:
            self._clock = time.thread_time
            return
        log.warning("a tokenizer's decoder blocked the event loop; this model has threads for it from now on")
        self._decodes_apart = True

    def close(self) -> None:
        """Stop the engine."""
        self._engine.close()


class _Text:
    """One text that is being written, told piece by piece: no task, and nothing that is awaited for a token."""

    def __init__(self, replica: SequenceReplica, request: Request, payload: TextPayload, hear: Hear) -> None:
        self._replica = replica
        self._request = request
        self._sampling = payload.sampling
        self._is_another = payload.is_another
        self._echo: Echo | None = None
        """Until it is given out, with the first piece."""
        self._prompt_scores: tuple[Scored, ...] = ()
        self._hear: Hear | None = hear
        self._units = Units()
        self._words: TextStream
        self._stop: Callable[[], object] | None = None
        self._cost: Cost | None = None
        self._count = 0
        self._later: deque[Tokens | BaseException] = deque()
        """Behind tokens whose text is made in a thread."""
        self._admitting: Future[Admitted] | None = None
        self._written: list[str] = []
        """The text until now, of one that is held to a form."""
        self._payload = payload
        self._dialect: str | None = None
        """How its calls are written, where it may make some."""
        self._reading: AnswerReader | None = None
        self._is_held = self._sampling.constraint is not None
        """Whether the engine keeps to the constraint; else it is only checked."""
        talks = None if payload.messages is None else replica._talks
        if payload.sampling.logit_bias:
            raise _unable("logit_bias", "engine has no hook for it")
        if payload.tools:
            self._expect_calls(talks)
        constraint = self._sampling.constraint
        then: Callable[[Any], object] = self._begin
        if constraint is not None and self._is_held:
            if talks is not None and talks.reasons:
                then = self._admit  # what reasoning there is the prompt shows
            else:
                self._admitting = self._holding(constraint).admit(constraint)
                then = self._wait
        replica._answering += 1
        asyncio.get_running_loop().run_in_executor(
            replica._pool, _prompt, replica._processor, payload, talks
        ).add_done_callback(then)

    def _expect_calls(self, talks: TalkingProcessor | None) -> None:
        payload = self._payload
        self._dialect = None if talks is None else talks.dialect(payload)
        if self._dialect is None:
            raise InvalidField("'tools': this model has no chat template, so it can't be told of tools", "tools")
        form, beside = grammars.FORMATS[self._dialect], self._sampling.constraint
        wanted = grammars.calls_wanted(form, payload.tools, payload.calling, "tools", beside)
        if wanted is not None:
            self._sampling = replace(self._sampling, constraint=wanted)
            self._is_held = payload.calling.least > 0 or beside is not None or isinstance(self._replica._engine, HoldingEngine)

    def _holding(self, constraint: Constraint) -> HoldingEngine:
        engine = self._replica._engine
        if not isinstance(engine, HoldingEngine):
            raise InvalidField(f"'{constraint.field}': this model's engine holds no answer to a form", constraint.field)
        return engine

    def _admit(self, prepared: asyncio.Future[Prepared]) -> None:
        """Ask for the form with the reasoning before it."""
        if self._hear is None:
            return self._begin(prepared)
        constraint = self._sampling.constraint
        assert constraint is not None
        try:
            constraint = replace(constraint, thinking=prepared.result()[3])
            self._sampling = replace(self._sampling, constraint=constraint)
            self._admitting = self._holding(constraint).admit(constraint)
        except BaseException as error:
            return self._fail(error)
        return self._wait(prepared)

    def cancel(self) -> None:
        """End it; nothing more is told."""
        if self._hear is not None:
            self._hear = None
            self._replica._answering -= 1
            if self._stop is not None:
                self._stop()
            elif self._admitting is not None:
                self._admitting.cancel()

    def _wait(self, prepared: asyncio.Future[Prepared]) -> None:
        """Until it is known that the engine can keep to the form."""
        assert self._admitting is not None
        asyncio.wrap_future(self._admitting).add_done_callback(lambda verdict: self._begin(prepared, verdict))

    def _begin(
        self,
        prepared: asyncio.Future[Prepared],
        verdict: asyncio.Future[Admitted] | None = None,
    ) -> None:
        for future in (prepared, verdict):  # where one fails, or nobody listens, the other is not asked: asyncio would say so
            future is None or future.cancelled() or future.exception()
        if self._hear is None:
            return
        replica, sampling = self._replica, self._sampling
        try:
            inputs, self._units, self._echo, thinking = prepared.result()
            if thinking is not None or self._dialect is not None:
                self._reading = AnswerReader(self._payload, self._dialect, thinking)
            if self._is_another:
                self._units = self._units._replace(prompt_tokens=0)
            if sampling.max_tokens is None:
                sampling = replace(sampling, max_tokens=max(replica._max_tokens, sampling.min_tokens))
            more: dict[str, Any] = {"least": sampling.min_tokens} if sampling.min_tokens else {}
            if sampling.logprobs is not None:
                more["marks_from"] = 0 if self._echo is None else len(self._echo.text)
            if verdict is not None or self._reading is not None:  # a form says control tokens too, by their words
                more["shows"] = None if verdict is not None or self._reading is None else self._reading.shows
            assert replica._text_stream is not None
            self._words = replica._text_stream(sampling.stop, inputs["input_ids"][0], **more)
            admitted = None if verdict is None else verdict.result()
            asked = SequenceRequest(
                self._request.id, inputs, sampling, self._request.deadline, self._request.caller.key_id or "", admitted
            )
            self._stop = replica._engine.start(asked, self._take)
        except BaseException as error:
            self._fail(error)

    def _take(self, tokens: Tokens | BaseException) -> None:
        """The engine's next."""
        replica = self._replica
        sampling = self._sampling
        if sampling.logprobs is not None and isinstance(tokens, Tokens):
            self._prompt_scores = tokens.prompt_scores or self._prompt_scores
            if tokens.token_ids and not tokens.scores:
                tokens = _unable(sampling.logprobs_field, "engine tells no log-probabilities")
        if self._later or replica._decodes_apart:
            self._later.append(tokens)
            if len(self._later) == 1:
                self._work_apart()
        elif isinstance(tokens, BaseException):
            self._fail(tokens)
        else:
            began = replica._clock()
            try:
                piece = piece_of(tokens, self._words)
            except Exception as error:
                self._fail(error)
                return
            took = replica._clock() - began
            if took > TOO_LONG_DECODING_SECONDS:
                replica._note_slow_decoder(took)
            elif replica._clock is not time.perf_counter:
                replica._clock = time.perf_counter
            self._give(piece, tokens)

    def _work_apart(self) -> None:
        tokens = self._later[0]
        if isinstance(tokens, BaseException):
            self._fail(tokens)
            return

        def decoded(piece: asyncio.Future[TextPiece]) -> None:
            try:
                self._give(piece.result(), tokens)
            except BaseException as error:
                self._fail(error)
            self._later.popleft()
            if self._later and self._hear is not None:
                self._work_apart()

        pool = self._replica._pool
        asyncio.get_running_loop().run_in_executor(pool, piece_of, tokens, self._words).add_done_callback(decoded)

    def _give(self, piece: TextPiece, tokens: Tokens) -> None:
        hear, units, is_last = self._hear, self._units, piece.finish_reason is not None
        if hear is None:
            return
        self._count += len(piece.token_ids)
        self._cost = tokens.cost or self._cost
        constraint = self._sampling.constraint
        is_stopped = piece.finish_reason == "stop"
        if constraint is not None:
            self._written.append(piece.text)
        if self._reading is not None:
            try:
                read = self._reading.read(piece)
            except Exception as error:
                self._fail(error)
                return
            if read is None:
                return
            piece = read
        if self._echo is not None:
            piece, self._echo = with_echo(piece, self._echo, self._prompt_scores), None
        cached = 0 if self._is_another and tokens.cached_tokens is not None else tokens.cached_tokens
        units = Units(units.items, units.prompt_tokens, self._count, units.audio_seconds, cached)
        chunk = Chunk(piece, units, is_last, self._cost)
        if constraint is not None and is_stopped:
            self._check(constraint, chunk)
            return
        if is_last:
            self.cancel()
        hear(chunk)

    def _check(self, constraint: Constraint, last: Chunk) -> None:
        """Whether it is what was asked for, before it is said to be whole. What a stop string cut is a beginning."""

        def checked(wrong: asyncio.Future[str | None]) -> None:
            try:
                why = wrong.result()
                if why is not None:
                    raise EngineFailure(f"the engine wrote what '{constraint.field}' does not allow: {why}")
            except BaseException as error:
                self._fail(error)
                return
            hear = self._hear
            if hear is not None:
                self.cancel()
                hear(last)

        given = (constraint, "".join(self._written), self._words.is_stopped)
        asyncio.get_running_loop().run_in_executor(self._replica._pool, _wrong, *given).add_done_callback(checked)

    def _fail(self, error: BaseException) -> None:
        hear = self._hear
        if hear is not None:
            self.cancel()
            hear(error)


def _wrong(constraint: Constraint, text: str, is_cut: bool) -> str | None:
    """What is wrong with an answer, in words; None: nothing."""
    if is_cut:
        return None if grammars.is_begun(constraint, text) else "it is no beginning of what is allowed"
    return grammars.check(constraint, text)


def _next_part(parts: Iterator[Section | None]) -> Section | object | None:
    """The next part, None where there is none yet, OVER at the end."""
    try:
        return next(parts, OVER)
    except MemoryError as error:
        raise InvalidPayload("the payload is too large to decode; send a smaller one") from error


def _prepare(processor: Processor, payload: Payload) -> tuple[list[dict[str, Any]], Units]:
    try:
        prepared = processor.prepare(payload)
        return prepared, processor.units(payload, prepared)
    except MaasdamError:
        raise
    except (MemoryError, RecursionError) as error:
        raise InvalidPayload("the payload is too large to decode; send a smaller one") from error


def _prompt(processor: Processor, payload: TextPayload, talks: TalkingProcessor | None) -> Prepared:
    """A text's inputs, the prompt as it stands before the answer where that is asked for, and what reasoning it leads to."""
    (inputs,), units = _prepare(processor, payload)
    sampling = payload.sampling
    thinking = None if talks is None else talks.thinking(inputs["input_ids"][0])
    if not sampling.echo and sampling.logprobs is None:
        return inputs, units, None, thinking
    if not isinstance(processor, EchoingProcessor):
        raise _unable("echo" if sampling.echo else sampling.logprobs_field, "processor can't show tokens")
    return inputs, units, processor.echo(payload, inputs["input_ids"][0]) if sampling.echo else None, thinking


def _unable(name: str, why: str) -> InvalidField:
    return InvalidField(f"'{name}' can't be kept to: this model's {why}", name, "unsupported_parameter")


async def _spelled(processor: Processor | None, payload: SpellPayload, pool: Executor) -> Chunk:
    """What a tokenizer says: no engine computes anything, and nothing is metered but that it was asked."""
    if not isinstance(processor, SpellingProcessor):
        raise InvalidInput("this model has no tokenizer here: it reads no text")
    return Chunk(await asyncio.get_running_loop().run_in_executor(pool, processor.spell, payload), Units(), True)


async def _spelling(processor: Processor | None, payload: SpellPayload, pool: Executor) -> AsyncGenerator[Chunk]:
    yield await _spelled(processor, payload, pool)


def check_kind(name: str, payload: Payload) -> None:
    """Raise InvalidInput unless a task's models take this kind of payload."""
    task = task_of(name)
    if type(payload) in task.payloads:
        return
    if isinstance(payload, TensorPayload):
        raise InvalidInput(f"this model takes no raw tensors; use {task.door}")
    if isinstance(payload, SpellPayload):
        raise InvalidInput("this model's tokens can't be told: its tokenizer is on the server that runs it")
    given = " or ".join(other.name for other in TASKS.values() if type(payload) in other.payloads)
    raise InvalidInput(f"this model does {name}, not {given}; use {task.door}")
