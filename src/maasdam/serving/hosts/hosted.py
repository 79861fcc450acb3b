"""A replica in an engine host, as the process that asks sees it. Knows messages and callbacks; believes nothing it is told.

A tensor request costs no task and no future: it goes out with all others of its turn, and its answer is told by a call.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from maasdam.core import Chunk, Facts, Request, Signature, TensorPayload, TextPiece, Transcript
from maasdam.errors import Crashed, EngineFailure, Left, MaasdamError, NotReady, Overloaded
from maasdam.serving.executions import Executions
from maasdam.serving.hosts import wire
from maasdam.serving.hosts.channel import HostChannel
from maasdam.serving.hosts.keeper import HostAddress, Keeper
from maasdam.serving.hosts.memory import Borrowed, lent
from maasdam.serving.replica import SMALL_BYTES, Cancel, Done, Gone, Hear, WhenGone, chunks_of, joined
from maasdam.serving.scheduler import MOST_INLINE_ITEMS
from maasdam.serving.share import apart

log = logging.getLogger("maasdam.serving")

MOST_UNSENT_BYTES = 64 * 1024 * 1024
"""A host that does not read gets no more."""
BLOCKING_BYTES = 2 * 1024 * 1024
"""What is larger is not copied in the event loop."""
MOST_PIECES_BYTES = 16 * 1024 * 1024
"""Of one answer in pieces, each counted as PIECE_BYTES and its text: they may wait for a slow reader."""
PIECE_BYTES = 64
SLACK_BYTES = 1024 * 1024
"""That an answer takes beside its tensors."""


class _Asked:
    """A request in flight: who hears of its answer, whole or in pieces."""

    __slots__ = ("count", "done", "hear", "room")

    def __init__(self, done: Done | None, hear: Hear | None, count: int) -> None:
        self.done = done
        self.hear = hear
        self.count = count
        """Of its payloads."""
        self.room = MOST_PIECES_BYTES


class HostReplica:
    """See `Replica`. Made by `opened`."""

    def __init__(
        self,
        name: str,
        address: HostAddress,
        keeper: Keeper,
        *,
        queue_size: int,
        max_answer_bytes: int,
        on_left: Callable[[], None] = lambda: None,
    ) -> None:
        """Connect to a host; `on_left` is called once it is left. Raises OSError where nobody listens."""
        self.facts = Facts()
        self.in_flight = 0
        self._when_gone: WhenGone | None = None
        self._gone: Gone | None = None
        self.waiting = 0
        self.memory_bytes: int | None = None
        self.load_seconds: dict[str, float] = {}
        self.host_id = address.id
        self._name = name
        self._keeper = keeper
        self._on_left = on_left
        self._most = queue_size + MOST_INLINE_ITEMS
        self._checked: Signature | None = None
        self._executions: Executions | None = None
        self._copying: set[asyncio.Task[None]] = set()
        self._asked: dict[int, _Asked] = {}
        self._numbers = itertools.count(1)
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._ending: asyncio.Task[None] | None = None
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            sock.connect(address.path)
        except OSError:
            sock.close()
            raise
        most = max_answer_bytes + SLACK_BYTES
        self._channel: HostChannel[wire.FromHost] = HostChannel(sock, wire.FromHost, self._hear, self._lose, most_bytes=most)

    async def opened(self) -> None:
        """Wait until the host has loaded its model. Raises what loading raised, Crashed where it died of it."""
        await self._ready

    @property
    def when_gone(self) -> WhenGone | None:
        """See `Replica`."""
        return self._when_gone

    @when_gone.setter
    def when_gone(self, call: WhenGone | None) -> None:
        self._when_gone = call
        if call is not None and self._gone is not None:
            self._loop.call_soon(self._say_gone, self._gone)

    @property
    def executions(self) -> Executions | None:
        """What the host told of what its engine has run: at most a moment old."""
        return self._executions

    def submit(self, request: Request, done: Done) -> Cancel:
        """See `Replica`. Raises InvalidTensor, Overloaded, NotReady."""
        if self._checked is None:
            return joined([partial(self.stream, replace(request, payloads=(one,))) for one in request.payloads], done)
        number = self._ask(request, done, None, len(request.payloads))

        def cancel() -> Sequence[Chunk]:
            self._stop(number)
            return ()

        return cancel

    def stream(self, request: Request, hear: Hear) -> Callable[[], object]:
        """See `Replica`. Raises as `submit`."""
        return partial(self._stop, self._ask(request, None, hear, 1))

    def answer(self, request: Request) -> AsyncGenerator[Chunk]:
        """See `Replica`."""
        return chunks_of(self, request)

    def close(self) -> None:
        """Leave the host; returns once it has ended, where nobody else holds it. Not in the event loop."""
        asyncio.run_coroutine_threadsafe(self.leave(), self._loop).result()

    async def leave(self) -> None:
        """The same, in the event loop."""
        self._channel.close()
        self._fail_all(NotReady("this model is being taken down; send the request again"))
        self._on_left()
        await self._keeper.release(self.host_id)

    def _ask(self, request: Request, done: Done | None, hear: Hear | None, count: int) -> int:
        if not self._channel.is_open:
            if self._gone is not None and not self._gone.is_crash:
                raise Left(f"the process that ran {self._name} left: {self._gone.reason}")
            raise NotReady(f"the process that ran {self._name} is gone; it is being brought up again, try in a second")
        if len(self._asked) >= self._most or self._channel.unsent_bytes > MOST_UNSENT_BYTES:
            raise Overloaded(f"{len(self._asked)} requests are already waiting for this model; try again in a second")
        said: list[Any] = []
        body: list[wire.Buffer] = []
        at = 0
        for payload in request.payloads:
            is_checked = False
            if isinstance(payload, TensorPayload) and self._checked is not None:
                is_checked = sum(tensor.nbytes for tensor in payload.tensors.values()) <= SMALL_BYTES
                if is_checked:
                    self._checked.check(payload.tensors)
            one, body, at = wire.payload_given(payload, is_checked, body, at)
            said.append(one)
        number = next(self._numbers)
        seconds = None if request.deadline is None else request.deadline - time.monotonic()
        ask = wire.Ask(number, request.id, seconds, hear is not None, said, owner=request.caller.key_id or "")
        if at > BLOCKING_BYTES:
            self._apart(self._lend(ask, body))
        else:
            self._channel.send(ask, body, at)
        self._asked[number] = _Asked(done, hear, count)
        return number

    def _apart(self, work: Coroutine[Any, Any, None]) -> None:
        """What copies much does so in a thread."""
        task = asyncio.ensure_future(work)
        self._copying.add(task)
        task.add_done_callback(self._copying.discard)

    async def _lend(self, ask: wire.Ask, body: Sequence[wire.Buffer]) -> None:
        try:
            handle = await apart("lending", lent, body)
            if ask.number in self._asked:
                self._channel.send(ask, handle=handle)
            else:  # nobody waits for it any more
                os.close(handle)
        except Exception as error:
            self._tell(ask.number, EngineFailure(f"the request could not be passed on: {error}"))

    async def _copy(self, number: int, parts: Sequence[wire.AnswerPart], memory: Borrowed) -> None:
        try:
            chunks = await apart("copying", lambda: [self._chunk(part, memory) for part in parts])
        except Exception as error:
            self._channel.hang_up(error)
        else:
            asked = self._asked.pop(number, None)
            if asked is not None and asked.done is not None:
                _told(asked.done, chunks)
        finally:
            memory.close()

    def _stop(self, number: int) -> None:
        if self._asked.pop(number, None) is not None:
            self._channel.send(wire.Stop(number))

    def _hear(self, message: wire.FromHost, memory: wire.Memory) -> None:
        """Raises Garbled."""
        match message:
            case wire.WholeAnswer(number, parts):
                asked = self._asked.get(number)
                if asked is not None and asked.done is not None:
                    if len(parts) != asked.count:
                        raise wire.Garbled(f"{len(parts)} answers to {asked.count} questions")
                    if isinstance(memory, Borrowed) and memory.size > BLOCKING_BYTES:
                        self._apart(self._copy(number, parts, memory.kept()))
                        return
                    chunks = [self._chunk(part, memory) for part in parts]
                    del self._asked[number]
                    _told(asked.done, chunks)
            case wire.AnswerPiece(number, part):
                asked = self._asked.get(number)
                if asked is not None and asked.hear is not None:
                    chunk = self._chunk(part, memory)
                    if chunk.is_last:
                        del self._asked[number]
                    elif not isinstance(chunk.value, TextPiece | Transcript):
                        raise wire.Garbled("a piece of what has no pieces")
                    else:
                        asked.room -= PIECE_BYTES * (1 + len(chunk.value.marks)) + len(chunk.value.text)
                        if asked.room < 0:
                            raise wire.Garbled(f"an answer in pieces of more than {MOST_PIECES_BYTES:,} bytes")
                    _told(asked.hear, chunk)
            case wire.Failed(number, why):
                self._tell(number, wire.error_of(why))
            case wire.HasRun():
                self.waiting = message.waiting
                if self._executions is not None:
                    self._executions.join(message.executions())
            case wire.Holds(held):
                self.memory_bytes = held
            case wire.Ready(facts, counts, seconds) if not self._ready.done():
                self.facts, self.load_seconds = facts, seconds
                self._checked = facts.signature
                self._executions = Executions() if counts else None
                self._ready.set_result(None)
            case wire.Unable(why) if not self._ready.done():
                self._ready.set_exception(wire.error_of(why))
            case wire.Goodbye(reason):
                self._say_gone(Gone(reason, is_crash=False))
            case _:
                raise wire.Garbled("a message out of turn")

    def _chunk(self, part: wire.AnswerPart, memory: wire.Memory) -> Chunk:
        chunk = wire.chunk_of(part, memory)
        if isinstance(part.value, wire.ArrayList):
            outputs = () if self._checked is None else self._checked.outputs
            kinds = {spec.name: spec.dtype for spec in outputs}
            if kinds != {array.name: array.dtype for array in part.value.arrays}:
                raise wire.Garbled("tensors that are no outputs of this model")
        return chunk

    def _tell(self, number: int, error: BaseException) -> None:
        asked = self._asked.pop(number, None)
        call = None if asked is None else asked.done or asked.hear
        if call is not None:
            _told(call, error)

    def _fail_all(self, error: MaasdamError) -> None:
        for number in list(self._asked):
            self._tell(number, error)

    def _lose(self, why: str) -> None:
        """The host hung up, or what it says can't be read."""
        self._fail_all(NotReady(f"the process that ran {self._name} is gone; it is being brought up again, try in a second"))
        self._ending = asyncio.ensure_future(self._find_out(why))

    async def _find_out(self, why: str) -> None:
        end = await self._keeper.ended(self.host_id)
        reason = f"{end.reason}, because {why}" if why else end.reason
        if not self._ready.done():
            self._ready.set_exception(Crashed(f"while {self._name} was loaded, its process {reason}"))
        self._say_gone(Gone(f"its process {reason}", end.is_crash))

    def _say_gone(self, gone: Gone) -> None:
        self._gone = gone
        when_gone, self._when_gone = self._when_gone, None
        if when_gone is not None:
            when_gone(gone)


def _told(call: Callable[[Any], None], what: Any) -> None:
    """Whoever waits may fail at it; the others must hear of theirs."""
    try:
        call(what)
    except Exception:
        log.exception("what came of a request could not be given to it")
