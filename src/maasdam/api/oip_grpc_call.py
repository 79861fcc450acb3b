"""One gRPC call: who sends it, its message, its answer or its refusal, and what is noted of it.

Knows grpc.aio's contexts, keys, ids and deadlines. Refuses to know the server (`oip_grpc`), what each call answers
(`oip_grpc_methods`) and the messages' fields (`oip_proto`).

    headers -> Rpc -> who calls? -> message -> the method's answer -> message
                \\- refused before the message is read
    whatever happened -> one line in the log, one count, and a row in the ledger, as for HTTP
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import grpc
from structlog.contextvars import bind_contextvars

from maasdam.api import errors, oip_proto
from maasdam.api.access import KEY_HEADERS, Gate, secret_of
from maasdam.api.body import IN_THE_LOOP, BodyLimits
from maasdam.api.correlation import id_headers, trace_of, well_formed
from maasdam.api.entrance import new_request_id
from maasdam.api.measured import measured_headers
from maasdam.api.oip_call import OipCall, name_of
from maasdam.core import ANONYMOUS, Caller, Chunk, Entry
from maasdam.errors import BodyTooSlow, InvalidInput, MaasdamError, Overloaded, TooLarge
from maasdam.operations.infer import CLIENT_CLOSED, CLIENT_GONE
from maasdam.operations.requests import note_refusal
from maasdam.operations.service import Service
from maasdam.telemetry.requests import LONGEST, Ended

T = TypeVar("T")

LARGE = IN_THE_LOOP + 1
"""What belongs in a thread whatever its size."""
MOST_CALLS = 8192
"""With a key that are open at once, idle streams too: each takes 25 KB."""
MOST_STRANGERS = 256
"""Streams without a key: of these who is here stays."""
MOST_PROBES = 1024
"""Other calls without a key: of these the newest is answered, as each ends by itself but one that means to stay."""
LONGEST_MESSAGE = 600
"""Of a status, characters: it travels in a header, where a character may take twelve bytes."""
NO_MESSAGE = "no_message"
"""What the log says of a call that ended before its message was here: its caller went away, or gRPC refused the message."""
GATHER_SECONDS = 0.002
"""A request waits for those that come beside it until so long none came."""
MOST_GATHERED = 64
TRY_EVERY = 8
"""Once in so many times more are waited for than came together before."""
KEYS = tuple(name.decode() for name in KEY_HEADERS)

Trailers = tuple[tuple[str, str | bytes], ...]


@dataclass(frozen=True, slots=True)
class Method:
    """One call that is offered: its name, the scope of its key, the class of its request, and what answers it."""

    name: str
    scope: str | None
    takes: Any
    answer: Callable[[Rpc, Any, Any], Awaitable[Any]] | None = None
    """Given the call, its message and gRPC's context; None: it is told apart by its name."""
    needs_key: bool = True
    lasts: bool = False
    """Whether it is open for as long as its caller likes."""


class Gathering:
    """Lets requests that come side by side begin together. Belongs to one event loop.

    grpc.aio brings them one by one, each in a turn of the loop: so each would be a batch, a sync of the disk and a journal's
    record of its own. Those who come alone are not made to wait: it is learned how many come together.
    """

    __slots__ = ("_beginnings", "_had", "_timer", "_times", "_wants")

    def __init__(self) -> None:
        self._beginnings: list[Callable[[], None]] = []
        self._wants = 1
        """So many are likely to come together."""
        self._times = 0
        """So often they came since more were tried."""
        self._had = 0
        """How many were here when the clock was set."""
        self._timer: asyncio.TimerHandle | None = None

    def add(self, begin: Callable[[], None], in_flight: int) -> None:
        """Call `begin` now or very soon; of `in_flight` requests it is one."""
        self._beginnings.append(begin)
        count = len(self._beginnings)
        if count >= min(max(self._wants, in_flight), MOST_GATHERED):
            self._times += 1
            if self._times >= TRY_EVERY:
                self._wants, self._times = 2 * count, 0
            self._begin()
        elif self._timer is None:
            self._wait()

    def _wait(self) -> None:
        self._had = len(self._beginnings)
        self._timer = asyncio.get_running_loop().call_later(GATHER_SECONDS, self._late)

    def _late(self) -> None:
        if len(self._beginnings) > self._had:
            self._wait()
            return
        self._wants = max(self._had, self._wants // 2)
        self._begin()

    def _begin(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        beginnings, self._beginnings = self._beginnings, []
        for begin in beginnings:
            begin()


OPEN, OPEN_STREAM = Method("", None, None, needs_key=False), Method("", None, None, needs_key=False, lasts=True)
"""Of calls that anybody may make, and that are answered elsewhere."""


@dataclass(slots=True)
class Calls:
    """What all calls of one door share."""

    service: Service
    gate: Gate
    limits: BodyLimits
    is_idle: asyncio.Event
    """Set while nothing is in flight."""
    open: int = 0
    """Calls that need a key, whether or not their message is here."""
    strangers: int = 0
    """Streams that need none."""
    probes: dict[Rpc, asyncio.Task[Any] | None] = field(default_factory=dict)
    """Other calls that need none, the oldest first."""
    in_flight: int = 0
    """Requests whose message is here."""
    held: int = 0
    """Bytes of those."""
    gathering: Gathering = field(default_factory=Gathering)

    def take(self, size: int) -> None:
        """A message is here."""
        self.in_flight += 1
        self.held += size
        self.is_idle.clear()

    def give_back(self, size: int) -> None:
        """It is answered."""
        self.in_flight -= 1
        self.held -= size
        if not self.in_flight:
            self.is_idle.set()

    def check_size(self, name: str, data: bytes) -> None:
        """Raise TooLarge or Overloaded before a message is parsed that would take too much memory."""
        size = len(data)
        if size > self.limits.any.most:
            raise self.limits.any.error(size)
        if size > IN_THE_LOOP:
            if name not in ("ModelInfer", "ModelStreamInfer"):
                raise TooLarge(f"the message has {size} bytes; {name} takes at most {IN_THE_LOOP}")
            oip_proto.check_outline(data, self.limits.json_tensors.most)
        if self.held > self.limits.held_bytes:
            raise Overloaded(f"the service holds {self.held} bytes of requests already; send this again in a second")

    async def off_loop(self, work: Callable[..., T], size: int, *given: Any) -> T:
        """The result of `work`, which is done in a thread where there is much of it."""
        if size <= IN_THE_LOOP:
            return work(*given)
        return await asyncio.get_running_loop().run_in_executor(self.service.pool, work, *given)


class Rpc:
    """A call whose headers are here, and gRPC's handler of it: one message is read and one written."""

    __slots__ = (
        "began",
        "caller",
        "calls",
        "id",
        "makes_room",
        "metadata",
        "method",
        "model",
        "name",
        "reason",
        "refused",
        "status",
    )

    request_streaming, response_streaming = True, False
    """So that its message is not read before its key is, nor waited for without end."""
    request_deserializer = response_serializer = None

    def __init__(self, calls: Calls, name: str, method: Method | None, metadata: Mapping[str, str | bytes]) -> None:
        self.calls = calls
        self.name = name[:LONGEST]
        self.method = method
        self.metadata = metadata
        self.id = new_request_id()
        self.began = time.perf_counter()
        self.caller: Caller = ANONYMOUS
        self.model: str | None = None
        self.status = 200
        self.reason: str | None = None
        self.makes_room = False
        """Whether it is ended for another."""
        self.refused: Exception | None = None
        """Why nobody is to answer it, whoever calls."""

    @property
    def endpoint(self) -> str:
        """As log and ledger have it."""
        return f"grpc:{self.name}"

    def header(self, name: str) -> bytes | None:
        """A header's value."""
        value = self.metadata.get(name)
        return value.encode() if isinstance(value, str) else value

    def trailers(self, *more: tuple[str, str | bytes]) -> Trailers:
        """Its ids, and more, as trailing metadata."""
        ids = id_headers(self.id, self.header("x-request-id"), self.header("traceparent"))
        return (*((name.decode(), value) for name, value in ids), *more)

    def again(self) -> Rpc:
        """The same for one request of a stream."""
        one = Rpc(self.calls, self.name, self.method, self.metadata)
        one.caller = self.caller
        return one

    def seconds(self, left: float | None) -> float:
        """A request's time: ours, or what the caller's deadline leaves of it."""
        most = self.calls.service.settings.request_timeout_seconds
        return most if left is None else min(most, left)

    # ---- one message each way -------------------------------------------------------------------------------------------

    async def stream_unary(self, messages: Any, context: Any) -> bytes:
        """gRPC asks for the answer, as bytes."""
        calls, size = self.calls, -1
        self.enter()
        try:
            await self.admit()
            data = bytes(await self.message(context))
            size = len(data)
            calls.take(size)
            calls.check_size(self.name, data)
            return await self._answer(data, context)
        except asyncio.CancelledError:
            await self.cancelled(context, is_here=size >= 0)
            raise
        except Exception as error:
            await self.refuse(error, context)
            raise AssertionError("refused") from error
        finally:
            self.leave()
            if size >= 0:
                calls.give_back(size)
            self.end()

    def enter(self) -> None:
        """It is open from now on."""
        calls, method = self.calls, self.method
        if method is None or method.needs_key:
            calls.open += 1
        elif method.lasts:
            calls.strangers += 1
        else:
            if len(calls.probes) >= MOST_PROBES:
                oldest = next(iter(calls.probes))
                task = calls.probes.pop(oldest)
                assert task is not None
                oldest.makes_room = True
                task.cancel()
            calls.probes[self] = asyncio.current_task()

    def leave(self) -> None:
        """It is not any more."""
        calls, method = self.calls, self.method
        if method is None or method.needs_key:
            calls.open -= 1
        elif method.lasts:
            calls.strangers -= 1
        else:
            calls.probes.pop(self, None)

    async def admit(self) -> None:
        """Find out who calls. Raises Unauthenticated, Forbidden, Overloaded, and why the call is not offered."""
        method, gate = self.method, self.calls.gate
        if method is None or method.needs_key:
            if self.calls.open > MOST_CALLS:
                more = "close streams that are idle, or try again in a second"
                raise Overloaded(f"{MOST_CALLS} calls are open already; {more}")
            secret = secret_of(*[self.header(name) for name in KEYS])
            scope = None if method is None else method.scope
            caller = gate.remembered(secret, scope)
            if caller is None:
                caller = await gate.admit(secret)
                self.caller = caller
                gate.permit(caller, scope)
            self.caller = caller
        elif method.lasts and self.calls.strangers > MOST_STRANGERS:
            raise Overloaded(f"{MOST_STRANGERS} streams without a key are open already; try again in a second")
        if self.refused is not None:
            raise self.refused

    async def message(self, context: Any) -> Any:
        """The one message. Raises BodyTooSlow, InvalidInput, CancelledError where none comes any more."""
        deadlines, task, is_late = self.calls.service.inference.deadlines, asyncio.current_task(), False
        assert task is not None

        def late() -> None:
            nonlocal is_late
            is_late = True
            task.cancel()

        seconds = self.calls.limits.seconds
        timer = deadlines.add(time.monotonic() + seconds, late)
        try:
            data = await context.read()
        except asyncio.CancelledError:
            if not is_late:
                raise
            raise BodyTooSlow(f"the message did not arrive within {seconds:g} s; send it faster") from None
        finally:
            deadlines.remove(timer)
        if data is grpc.aio.EOF:
            await asyncio.sleep(0.05)  # a caller that went away, or gRPC that refused the message, cancels this
            raise InvalidInput("the call has no message; send one")
        return data

    async def _answer(self, data: bytes, context: Any) -> bytes:
        method = self.method
        assert method is not None
        if method.name == "ModelInfer":
            done = await self._at_once(data, context.time_remaining()) if len(data) <= IN_THE_LOOP else None
            answer, entry = done or await self._inferred(data, context)
            context.set_trailing_metadata(self.trailers(*_cost(entry)))
            return answer
        assert method.answer is not None
        bind_contextvars(request_id=self.id)  # the context is this call's own: grpc.aio starts a task for each
        reply = await method.answer(self, await self.calls.off_loop(oip_proto.parsed, len(data), method.takes, data), context)
        context.set_trailing_metadata(self.trailers())
        return bytes(reply.SerializeToString())

    # ---- inference ------------------------------------------------------------------------------------------------------

    async def _at_once(self, data: bytes, left: float | None) -> tuple[bytes, Entry] | None:
        """The answer, by callbacks; None where the long way has to say what is wrong, or there is much to do."""
        method, inference = self.method, self.calls.service.inference
        assert method is not None
        cancel: Callable[[], None] | None = None
        future: asyncio.Future[tuple[bytes, Entry] | None] = asyncio.get_running_loop().create_future()

        def begin() -> None:
            nonlocal cancel
            if future.done():  # its caller went away while it waited for others
                return
            try:
                cancel = inference.begin(request, call.check, partial(self._write, call), partial(_settle, future))
            except Exception:  # the long way says what it is
                _settle(future, None)

        try:
            asked = oip_proto.parsed(method.takes, data)
            self.model = asked.model_name[:LONGEST]
            call = oip_proto.decode(asked)
            request = call.request(self.id, self.caller, self.endpoint, self.seconds(left))
        except MaasdamError:
            return None
        if call.wants_classes:
            return None
        self.calls.gathering.add(begin, self.calls.in_flight)
        try:
            return await future
        finally:
            if cancel is not None:
                cancel()  # of what is over nothing comes

    def _write(self, call: OipCall, chunks: list[Chunk], entry: Entry, written: Callable[[Any], None]) -> None:
        reply = call.reply(chunks, entry)
        if reply.nbytes <= IN_THE_LOOP:
            written((oip_proto.encode(reply).SerializeToString(), entry))
            return
        self.calls.service.in_thread(lambda: (_encoded(reply), entry), written)

    async def _inferred(self, data: bytes, context: Any) -> tuple[bytes, Entry]:
        assert self.method is not None
        bind_contextvars(request_id=self.id)
        asked = await self.calls.off_loop(oip_proto.parsed, len(data), self.method.takes, data)
        response, entry = await self.whole(await self.call(asked), context.time_remaining())
        return response.SerializeToString(), entry

    async def call(self, asked: Any, of_wire: tuple[str, ...] = (), may_stream: bool = False) -> OipCall:
        """A ModelInferRequest's call. Raises what is wrong with it; that there is no such model before anything else."""
        self.model = asked.model_name[:LONGEST]
        try:
            return await self.calls.off_loop(oip_proto.decode, asked.ByteSize(), asked, of_wire, may_stream)
        except InvalidInput:
            self.calls.service.check_model(name_of(asked.model_name, asked.model_version))
            raise

    async def whole(self, call: OipCall, left: float | None) -> tuple[Any, Entry]:
        """A call's answer, as a ModelInferResponse, and what it cost."""
        off_loop = self.calls.off_loop

        async def write(chunks: list[Chunk], entry: Entry) -> tuple[Any, Entry]:
            reply = await off_loop(call.reply, LARGE if call.wants_classes else 0, chunks, entry)
            return await off_loop(oip_proto.encode, reply.nbytes, reply), entry

        request = call.request(self.id, self.caller, self.endpoint, self.seconds(left))
        return await self.calls.service.inference.whole(request, write, call.check)

    # ---- what is noted and refused --------------------------------------------------------------------------------------

    def end(self) -> None:
        """The call is over: its line and its count."""
        trace, theirs = trace_of(self.header("traceparent")), well_formed(self.header("x-request-id"))
        seconds, key = time.perf_counter() - self.began, self.caller.key_id
        self.calls.service.outbox.ended(
            Ended(self.id, trace, "gRPC", self.endpoint, self.status, seconds, key, self.model or None, self.reason, theirs)
        )

    async def noted(self, error: Exception) -> errors.Refusal:
        """What may be shown of an error; the row of one that a valid key caused is written."""
        refused = errors.refusal(error, self.id)
        self.status, self.reason = refused.status, refused.code
        await self._note(refused.code)
        return refused

    async def refuse(self, error: Exception, context: Any) -> None:
        """End a call with an error's code and message. Does not return."""
        refused = await self.noted(error)
        after = refused.retry_after_seconds
        more = (("maasdam-error", refused.code), *(() if after is None else (("retry-after", f"{max(1, round(after))}"),)))
        code = grpc.StatusCode[error.grpc_status if isinstance(error, MaasdamError) else MaasdamError.grpc_status]
        await context.abort(code, refused.message[:LONGEST_MESSAGE], self.trailers(*more))

    async def cancelled(self, context: Any, is_here: bool) -> None:
        """Its caller went away; or it is ended for a newer one, which gRPC would tell nobody of."""
        if self.makes_room:
            await self.refuse(Overloaded(f"{MOST_PROBES} calls without a key are open, and this was the oldest"), context)
        await self.gone(is_here)

    async def gone(self, is_here: bool) -> None:
        """Its caller went away, or gRPC refused its message: the row is written here where no model was asked yet."""
        if self.reason is None:
            self.status = CLIENT_CLOSED
            if not is_here:
                self.reason = NO_MESSAGE
            if self.reason is not None or (self.method is not None and self.method.answer is None):
                await self._note(self.reason or CLIENT_GONE)

    async def _note(self, code: str) -> None:
        if self.caller.key_id is None:
            return
        await note_refusal(
            self.calls.service,
            self.id,
            self.caller,
            model=self.model or "",
            endpoint=self.endpoint,
            status=self.status,
            code=code,
            seconds=time.perf_counter() - self.began,
        )


def _settle(future: asyncio.Future[Any], outcome: Any) -> None:
    if future.done():
        return
    if isinstance(outcome, BaseException):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


def _encoded(reply: Any) -> bytes:
    return bytes(oip_proto.encode(reply).SerializeToString())


def _cost(entry: Entry) -> Trailers:
    return tuple((name.decode(), value) for name, value in measured_headers(entry))
