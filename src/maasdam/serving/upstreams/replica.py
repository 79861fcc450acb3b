"""The replica of a model that another server runs. Knows payloads and chunks; never keys, accounts and who asks.

    look, every few seconds -> facts: what it can, or why it can't answer now (`Facts.trouble`)
    request -> words -> client -> the server -> client -> words, checked -> chunk, chunk, last chunk

What a stream has given when it breaks off is metered; nothing is of an answer that is refused here.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager, aclosing, contextmanager, nullcontext, suppress
from dataclasses import replace
from typing import Any

import httpx
import orjson

from maasdam import grammars
from maasdam.core import (
    Artifact,
    AudioPayload,
    Chunk,
    Constraint,
    Facts,
    Payload,
    ReadPayload,
    Request,
    TextPayload,
    TextPiece,
    ToolCall,
)
from maasdam.engines.mailbox import told
from maasdam.errors import (
    DeadlineExceeded,
    InvalidField,
    InvalidInput,
    InvalidModel,
    MaasdamError,
    Overloaded,
    UpstreamFailure,
    UpstreamGone,
)
from maasdam.serving.loading import Files, Loadable
from maasdam.serving.replica import Cancel, Done, Gone, Hear, WhenGone, check_kind, chunks_of, whole
from maasdam.serving.share import Share
from maasdam.serving.upstreams import words
from maasdam.serving.upstreams.calls import SaidCalls, ready
from maasdam.serving.upstreams.client import Client
from maasdam.serving.upstreams.llama import LlamaProcess, opened
from maasdam.serving.upstreams.place import LLAMA, Upstream, read_upstream
from maasdam.settings import Settings
from maasdam.telemetry.meter import CpuMeter

log = logging.getLogger("maasdam.serving")

LOOK_SECONDS = 10.0
"""Between looks at a server that answers; each is a tenth sooner or later, or workers would ask all at once."""
LOOK_AGAIN_SECONDS = 1.0
"""The same of one that does not."""
MOST_IDLE_EVENTS = 1024
"""Of a stream, events that hold no text; as many more as tokens were asked for: it may think without showing it."""
BEHIND_SECONDS = 2.0
"""After the last piece, what it took is waited for so long."""
MOST_EVENTS_BEHIND = 8
ADDED_TOKENS = 128
"""What llama.cpp and a file's template put around a text: a prompt has no more tokens than bytes, but for them."""
_FILES = {b"RIFF": "wav", b"fLaC": "flac", b"OggS": "ogg", b"FORM": "aiff", b"\x1aE\xdf\xa3": "webm"}
LLAMAS_ABILITIES = {"structured_output": False, "top_logprobs": 20}
CONTEXTS = ("max_model_len", "context_length", "max_context_length")
"""What servers call the longest text, of prompt and answer, in their list of models."""


class UpstreamReplica:
    """One model of one server. Made and used in one event loop; `close` may be called from any thread."""

    running_since = executions = None
    waiting = 0

    def __init__(
        self,
        client: Client,
        place: Upstream,
        task: str,
        *,
        pool: Executor,
        queue_size: int,
        max_tokens: int,
        seconds: float,
        process: LlamaProcess | None = None,
        has_template: bool = True,
        stall_seconds: float = 0.0,
    ) -> None:
        """`max_tokens` where a request names no limit; `seconds` between two pieces of a stream, at most; `pool` has the
        threads that check forms. `process`: it is llama.cpp's, which began and ends with this; `has_template` is its file's;
        it is ended when it does not answer for `stall_seconds` (0: never).
        """
        self.facts = Facts(None, None, task, trouble="it was not asked yet")
        self.in_flight = 0
        self.when_gone: WhenGone | None = None
        self.load_seconds: dict[str, float] = {}
        self._client = client
        self._process = process
        self._has_template = has_template
        self._place = place
        self._task = task
        self._pool = pool
        self._queue_size = queue_size
        self._max_tokens = max_tokens
        self._seconds = seconds
        self._answering = 0
        self._listed: tuple[str, ...] = ()
        self._vocabulary: int | None = None
        self._stall_seconds = stall_seconds
        self._loop = asyncio.get_running_loop()
        self._is_due = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None

    @property
    def memory_bytes(self) -> int | None:
        """Of llama.cpp's process; None of another's."""
        return None if self._process is None else self._process.memory_bytes

    async def begin(self) -> None:
        """Look at the server, and from now on again and again. One that is not there is looked for."""
        await self._look()
        self._watching = asyncio.create_task(self._watch())
        if self._process is not None:
            self._process.when_over(self._crashed)

    def submit(self, request: Request, done: Done) -> Cancel:
        """See `Replica`. Raises Overloaded, InvalidInput; `done` may hear of UpstreamFailure, UpstreamGone, DeadlineExceeded,
        and of what the server says that a caller did wrong: InvalidField, TooLarge, TooManyRequests."""
        for payload in request.payloads:
            self._check_asked(payload)
        if isinstance(request.payloads[0], ReadPayload):
            asking = asyncio.ensure_future(self._tell_vectors(request, done))

            def cancel() -> tuple[Chunk, ...]:
                asking.cancel()
                return ()  # nothing is known of it until all is

            return cancel
        return whole([self._whole(request, payload) for payload in request.payloads], done)

    def stream(self, request: Request, hear: Hear) -> Callable[[], object]:
        """See `Replica`; raises and tells as `submit` does."""
        (payload,) = request.payloads
        self._check_asked(payload)
        if isinstance(payload, ReadPayload):
            return self.submit(request, lambda told: hear(told if isinstance(told, BaseException) else told[0]))
        is_text = isinstance(payload, TextPayload)
        pieces = self._streamed(request, payload) if is_text else self._whole(request, payload)  # type: ignore[arg-type]  # it is
        return told(pieces, hear, lambda chunk: chunk.is_last)

    def answer(self, request: Request) -> AsyncGenerator[Chunk]:
        """See `Replica`."""
        return chunks_of(self, request)

    def close(self) -> None:
        """Close the connections to it."""
        with suppress(RuntimeError):  # the loop is closed, and all with it
            asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(5.0)
        if self._process is not None:
            self._process.close()

    def _crashed(self, reason: str) -> None:
        """The process that was its own is gone. From a thread."""

        def tell() -> None:
            if self.when_gone is not None:
                self.when_gone(Gone(reason, True))

        with suppress(RuntimeError):  # the loop is closed, and nobody hears
            self._loop.call_soon_threadsafe(tell)

    async def _end(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
        await self._client.close()

    async def _watch(self) -> None:
        seen = self._loop.time()
        while True:
            seconds = (LOOK_SECONDS if self.facts.trouble is None else LOOK_AGAIN_SECONDS) * random.uniform(0.9, 1.1)
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._is_due.wait()
            self._is_due.clear()
            try:
                await self._look()
            except Exception:  # or nobody would ever look again
                log.exception("can't look at an upstream; trying again")
            if self.facts.trouble is None:
                seen = self._loop.time()
            elif self._process is not None and 0 < self._stall_seconds < self._loop.time() - seen:
                self._process.kill()  # it hangs; another is started

    async def _look(self) -> None:
        try:
            models = await self._client.models()
            if self._place.model not in models:
                raise UpstreamFailure(f"the upstream has no model '{self._place.model:.100}' any more")
        except MaasdamError as error:
            self._is_in_trouble(error)
            return
        if self.facts.trouble is not None:
            log.info("upstream %s: model %s is there", self._place.url, self._place.model)
        told_of = models[self._place.model]
        self._listed = tuple(models)
        self._vocabulary = _vocabulary(told_of)
        abilities = _abilities(told_of) if self._process is None else LLAMAS_ABILITIES
        reasons = abilities.get("reasoning") is True
        self.facts = Facts(None, _context(told_of), self._task, calls=_format(told_of), reasons=reasons, abilities=abilities)

    def _is_in_trouble(self, error: MaasdamError) -> None:
        trouble = str(error)
        if self.facts.trouble != trouble:
            log.warning("upstream %s: model %s can't answer: %s", self._place.url, self._place.model, trouble)
        self.facts = replace(self.facts, trouble=trouble)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """While a request is with the server. What tells of its death is looked into at once."""
        if self._answering >= self._queue_size:
            raise Overloaded(f"{self._answering} requests are already with this model's server; try again in a second")
        self._answering += 1
        try:
            yield
        except UpstreamGone as error:
            self._is_in_trouble(error)
            self._is_due.set()  # and from then on every second
            raise
        except (UpstreamFailure, DeadlineExceeded):
            self._is_due.set()
            raise
        finally:
            self._answering -= 1

    async def _whole(self, request: Request, payload: Payload) -> AsyncGenerator[Chunk]:
        with self._asking():
            if isinstance(payload, AudioPayload):
                yield await self._heard(request, payload)
                return
            assert isinstance(payload, TextPayload)
            most = self._most(payload)
            path, content, headers = await self._text(request, payload, most, streams=False)
            async with self._room(payload, most):
                answer = await self._client.whole(path, content, headers)
            said = words.said_whole(answer, payload, self._listed, self._place.model, most)
            calls = SaidCalls(payload)
            calls.take(said.calls, is_whole=True)
            text = words.check_echo(payload, said.text)
            words.Stops(payload.sampling.stop).see(text)
            piece = await self._ended(payload, text, said, calls, bool(said.marks))
            yield Chunk(piece, words.units_of(payload, said.usage, said.reasoning + text + calls.text, 0, most), True)

    async def _streamed(self, request: Request, payload: TextPayload) -> AsyncGenerator[Chunk]:
        """Pieces as they come; the last is held until it is known what they took. All are, where a call must be made: nothing
        is said before that is seen."""
        most = self._most(payload)
        path, content, headers = await self._text(request, payload, most, streams=True)
        written: list[str] = []
        held: list[words.Said] = []
        calls = SaidCalls(payload)
        stops = words.Stops(payload.sampling.stop)
        pieces = idle = called = 0
        has_marks = False
        usage: tuple[int | None, int | None] = (None, None)
        last: words.Said | None = None
        with self._asking():
            async with self._room(payload, most), aclosing(self._client.events(path, content, headers)) as events:
                while (event := await self._next(events, last is not None)) is not None:
                    usage = _newer(words.usage_of(event), usage)
                    if last is None and isinstance(event, dict) and event.get("error"):
                        raise self._client.broken_off(event)
                    said = words.said_next(event, payload, self._listed, self._place.model, most) if last is None else None
                    if said is not None and said.calls:
                        calls.take(said.calls)
                        called += 1
                    elif said is None or not (said.text or said.reasoning or said.marks or said.finish_reason):
                        idle += 1
                        if idle > most + MOST_IDLE_EVENTS:
                            raise UpstreamFailure("the upstream's stream goes on without saying anything")
                        continue
                    pieces += bool(said.text or said.reasoning)
                    if pieces > most + payload.sampling.echo:
                        raise UpstreamFailure(f"the upstream writes on beyond the {most} tokens that were asked for")
                    if not payload.sampling.echo:
                        stops.see(said.text)
                    written.append(said.text)
                    has_marks = has_marks or bool(said.marks)
                    held.append(said)
                    if said.finish_reason is not None:
                        last = said
                        idle = most + MOST_IDLE_EVENTS - MOST_EVENTS_BEHIND
                    elif not payload.calling.least and (said.text or said.reasoning or said.marks):
                        units = words.units_of(payload, (usage[0], None), "", pieces + called, most)
                        yield Chunk(words.piece(words.joined(held)), units, False)
                        held = []
            if last is None:
                raise UpstreamFailure("the upstream's stream broke off")
            text = words.check_echo(payload, "".join(written))
            if payload.sampling.echo:
                words.Stops(payload.sampling.stop).see(text)
            piece = await self._ended(payload, text, words.joined(held), calls, has_marks)
            yield Chunk(piece, words.units_of(payload, usage, text + calls.text, pieces + called, most), True)

    def _room(self, payload: TextPayload, most: int) -> AbstractAsyncContextManager[None]:
        """In the cache of a process of ours."""
        return (
            nullcontext()
            if self._process is None
            else self._process.room.kept(words.prompt_bytes(payload) + most + ADDED_TOKENS)
        )

    async def _next(self, events: AsyncGenerator[Any], is_ended: bool) -> Any:
        """The next event; None at the end. Bytes that are none don't count: they may come for ever.

        Behind the last of an answer only what it took may come: it is whole without that.
        """
        try:
            async with asyncio.timeout(min(self._seconds, BEHIND_SECONDS) if is_ended else self._seconds):
                return await anext(events, None)
        except TimeoutError:
            if is_ended:
                return None
            raise DeadlineExceeded("the upstream said nothing for too long; try again when it is less busy") from None
        except MaasdamError:
            if is_ended:
                return None
            raise

    async def _tell_vectors(self, request: Request, done: Done) -> None:
        """All texts are one request: vectors are made side by side there."""
        payloads = [payload for payload in request.payloads if isinstance(payload, ReadPayload)]
        try:
            with self._asking():
                body = orjson.dumps(words.asked_vectors(payloads, self._place.model))
                answer = await self._client.whole("/embeddings", body, {"x-request-id": request.id})
                chunks = words.vectors(answer, payloads)
        except Exception as error:
            done(error)
        else:
            done(chunks)

    async def _heard(self, request: Request, payload: AudioPayload) -> Chunk:
        suffix = "mp4" if payload.data[4:8] == b"ftyp" else _FILES.get(payload.data[:4], "mp3")
        files = {"file": (f"audio.{suffix}", payload.data, "application/octet-stream")}
        form = httpx.Request("POST", "http://x", data=words.asked_audio(payload, self._place.model), files=files)
        headers = {"content-type": form.headers["content-type"], "x-request-id": request.id}
        answer = await self._client.whole("/audio/transcriptions", form.read(), headers)
        transcript, units = words.heard(answer, payload)
        return Chunk(transcript, units, True)

    async def _text(
        self, request: Request, payload: TextPayload, most: int, streams: bool
    ) -> tuple[str, bytes, Mapping[str, str]]:
        if payload.tools:
            await asyncio.get_running_loop().run_in_executor(self._pool, ready, payload)
        path = "/chat/completions" if words.is_chat(payload) else "/completions"
        body = words.asked_text(payload, self._place.model, most, streams)
        if self._process is not None:
            body = words.for_llama(body, payload.sampling)
        return path, orjson.dumps(body), {"x-request-id": request.id}

    def _check_asked(self, payload: Payload) -> None:
        check_kind(self._task, payload)
        if isinstance(payload, AudioPayload):
            _check_audio(payload)
        if isinstance(payload, TextPayload) and self._process is not None:
            self._check_llama(payload)

    def _check_llama(self, payload: TextPayload) -> None:
        """What llama.cpp's server does not keep to, though it takes it."""
        if payload.tools:
            what = "'tools' can't be asked of this model, which llama.cpp runs here"
            raise InvalidField(what, "tools", "unsupported_parameter")
        asked = ("echo", "min_tokens", "stop_token_ids", "constraint")
        name = next((one for one in asked if getattr(payload.sampling, one)), None)
        if name is not None:
            constraint = payload.sampling.constraint
            field = name if constraint is None else constraint.field
            raise InvalidField(f"'{field}' is not kept to by this model's engine, llama.cpp", field, "unsupported_parameter")
        if payload.sampling.max_tokens == 0:
            raise InvalidField("'max_tokens' is 0, and llama.cpp writes a token at least; send 1", "max_tokens")
        beyond = next((t for t, _ in payload.sampling.logit_bias if t >= (self._vocabulary or 1 << 31)), None)
        if beyond is not None:
            raise InvalidField(f"'logit_bias' names token {beyond}; the model has {self._vocabulary:,}", "logit_bias")
        if payload.messages is not None and not self._has_template:
            raise InvalidInput("this model's file has no chat template; use POST /v1/completions")

    def _most(self, payload: TextPayload) -> int:
        sampling = payload.sampling
        return max(self._max_tokens, sampling.min_tokens) if sampling.max_tokens is None else sampling.max_tokens

    async def _ended(self, payload: TextPayload, text: str, last: words.Said, calls: SaidCalls, has_marks: bool) -> TextPiece:
        """The last of an answer, if all of it is what was asked for: before it is said to be whole."""
        sampling, reason = payload.sampling, str(last.finish_reason)
        made: tuple[ToolCall, ...] = ()
        if payload.tools:
            made, reason = await asyncio.get_running_loop().run_in_executor(self._pool, calls.whole, reason)
        if sampling.logprobs is not None and text and not has_marks:
            raise UpstreamFailure("the upstream left out the log-probabilities that were asked for")
        is_cut = reason == "length"
        is_call = is_cut and bool(payload.tools) and grammars.may_be_call(text)
        if sampling.constraint is not None and reason in ("stop", "length") and not is_call:
            loop = asyncio.get_running_loop()
            why = await loop.run_in_executor(self._pool, _wrong, sampling.constraint, text, is_cut or bool(sampling.stop))
            if why is not None:
                raise UpstreamFailure(f"the upstream wrote what '{sampling.constraint.field}' does not allow: {why}")
        return words.piece(last._replace(finish_reason=reason), made)


def _check_audio(payload: AudioPayload) -> None:
    """Raise InvalidField for what servers take without a word and not all keep to."""
    for name, is_asked in (
        ("include", payload.logprobs),
        ("chunking_strategy", payload.pauses is not None and payload.pauses.cuts_short),
        ("model", payload.translates),
    ):
        if is_asked:
            what = "it translates nothing; POST /v1/audio/transcriptions" if name == "model" else "leave it out"
            raise InvalidField(f"'{name}' can't be asked of this model, which another server runs: {what}", name)


def _wrong(constraint: Constraint, text: str, may_be_cut: bool) -> str | None:
    """What is wrong with a text, in words; None: nothing. One that its length or a stop string cut may be a beginning."""
    wrong = grammars.check(constraint, text)
    return None if wrong is not None and may_be_cut and grammars.may_be_begun(constraint, text) else wrong


def _newer(new: tuple[int | None, int | None], old: tuple[int | None, int | None]) -> tuple[int | None, int | None]:
    prompt, completion = (o if n is None else n for n, o in zip(new, old, strict=True))
    return prompt, completion


def _context(told_of: Mapping[str, Any]) -> int | None:
    meta = told_of.get("meta")
    values = [told_of.get(name) for name in CONTEXTS] + [meta.get("n_ctx") if isinstance(meta, dict) else None]
    return next((v for v in values if isinstance(v, int) and not isinstance(v, bool) and 0 < v < 1 << 31), None)


def _vocabulary(told_of: Mapping[str, Any]) -> int | None:
    meta = told_of.get("meta")
    words = meta.get("n_vocab") if isinstance(meta, dict) else None
    return words if isinstance(words, int) else None


def _abilities(told_of: Mapping[str, Any]) -> Mapping[str, Any]:
    said = told_of.get("capabilities")
    return {str(k)[:64]: v for k, v in list(said.items())[:32] if isinstance(v, bool | int)} if isinstance(said, dict) else {}


def _format(told_of: Mapping[str, Any]) -> str | None:
    """How it calls tools, as another Maasdam says it."""
    said = told_of.get("capabilities")
    named = said.get("tools") if isinstance(said, dict) else None
    return named[:64] if isinstance(named, str) else None


class UpstreamLoader:
    """Opens replicas of upstreams. Call it with a version."""

    def __init__(self, store: Files, settings: Settings, meter: CpuMeter) -> None:
        self._store = store
        self._settings = settings
        self._meter = meter

    async def __call__(self, version: Loadable) -> UpstreamReplica:
        """A replica; another's server may be away, which it says then. Raises NotFound, and what `open` raises."""
        return await self.open(await asyncio.to_thread(self._store.intact, version.digest))

    async def open(self, artifact: Artifact) -> UpstreamReplica:
        """The same of an artifact. Raises InvalidModel, and of GGUF files MissingExtra, LimitExceeded, Crashed."""
        settings = self._settings
        seconds, most = settings.request_timeout_seconds, settings.queue_size
        bounds = {"most_bytes": settings.max_json_media_bytes, "most_connections": most}
        pool = Share(f"check {artifact.digest[:19]}", self._meter.without_this_thread)
        limits: dict[str, Any] = {"queue_size": most, "max_tokens": settings.max_tokens}
        process: LlamaProcess | None = None
        if artifact.engine == LLAMA:
            process = await opened(artifact, settings)
        place = process.upstream if process else read_upstream(artifact.path)
        client = Client(place, **bounds, answer_seconds=seconds, key=process.key if process else None)
        has_template = bool(artifact.settings.get("has_template", True))
        more: dict[str, Any] = {"process": process, "has_template": has_template, "stall_seconds": settings.host_stall_seconds}
        replica = UpstreamReplica(client, place, str(artifact.task), pool=pool, seconds=seconds, **limits, **more)
        try:
            await replica.begin()
            if process is not None and replica.facts.trouble is not None:
                raise InvalidModel(f"llama.cpp does not answer: {replica.facts.trouble}")
        except BaseException:
            await asyncio.to_thread(replica.close)
            raise
        return replica
