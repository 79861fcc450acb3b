"""Messages both ways over one socket between a worker and its supervisor. Knows frames and who waits for what; no meaning.

    frame = length (4 bytes, big-endian), [number, message or null, answer or null]      number 0 wants no answer

What is sent first is handled first: handlers are begun in the order in which messages came.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import cast

import msgspec

from maasdam.errors import MaasdamError
from maasdam.workers.messages import Answer, Message, Refused, Told

log = logging.getLogger("maasdam.workers")

_LENGTH = struct.Struct(">I")


class Envelope(msgspec.Struct, frozen=True, array_like=True):
    """What travels."""

    number: int
    message: Message | None = None
    answer: Answer | None = None


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Envelope).decode

Handle = Callable[[Message], Awaitable[Told]]


class Channel(asyncio.Protocol):
    """One end. `closed` is set once the other end is gone."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._number = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self.closed = asyncio.Event()

    async def open(self, end: socket.socket) -> None:
        """Use this end of a pair from now on."""
        end.setblocking(False)
        await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=end)

    def note(self, message: Message) -> None:
        """Send what wants no answer; nothing happens where nobody is there."""
        self._send(Envelope(0, message))

    async def ask(self, message: Message, seconds: float | None) -> Told:
        """What is answered. Raises TimeoutError, ConnectionError where the other end is gone, MaasdamError as it was there."""
        if self._transport is None or self.closed.is_set():
            raise ConnectionError("nobody is there")
        self._number += 1
        number = self._number
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        self._send(Envelope(number, message))
        try:
            async with asyncio.timeout(seconds):
                told: Answer = await answer
        finally:
            self._waiting.pop(number, None)
        if isinstance(told, Refused):
            raise told.error
        return told

    def close(self) -> None:
        """Say nothing more."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self._buffer += data
        while len(self._buffer) >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(self._buffer)
            end = _LENGTH.size + size
            if len(self._buffer) < end:
                return
            envelope = _decode(bytes(self._buffer[_LENGTH.size : end]))
            del self._buffer[:end]
            self._take(envelope)

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self.closed.set()
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(ConnectionError("whoever should answer has ended"))

    def _take(self, envelope: Envelope) -> None:
        if envelope.message is not None:
            task = asyncio.ensure_future(self._answer(envelope.number, envelope.message))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif envelope.answer is not None:
            waiting = self._waiting.get(envelope.number)
            if waiting is not None and not waiting.done():
                waiting.set_result(envelope.answer)

    async def _answer(self, number: int, message: Message) -> None:
        answer: Answer
        try:
            answer = await self._handle(message)
        except Exception as error:
            if not isinstance(error, MaasdamError):
                log.exception("%s could not be done", type(message).__name__)
            answer = Refused.of(error)
        if number:
            self._send(Envelope(number, None, answer))

    def _send(self, envelope: Envelope) -> None:
        if self._transport is not None and not self._transport.is_closing():
            data = _encode(envelope)
            self._transport.write(_LENGTH.pack(len(data)) + data)
