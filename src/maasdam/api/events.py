"""Server-sent events: how answers that come in pieces are written over HTTP. Knows ASGI; never what a piece says.

hear(event) -> the connection, at once, while the client takes what it is sent
            \\- held -> the request's task -> ASGI: until the answer has begun, while the client is behind, the last one
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import orjson
from fastapi.responses import Response

from maasdam.api.connection import SCOPE_KEY, Connection

STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class EventStream(Response):
    """Sends events as they are told. A client that goes away cancels this task, and so the generation."""

    def __init__(self, failed: Callable[[BaseException], bytes]) -> None:
        """`failed` writes the event where an answer that has begun breaks off."""
        super().__init__()
        self._failed = failed
        self._cancel: Callable[[], None]
        self._held: list[bytes | BaseException] = []
        self._is_over = False
        self._write: Callable[[bytes], bool] | None = None
        """How to send an event past the task, which waits then."""
        self._wake = asyncio.Event()

    async def begun(self, begin: Callable[[Callable[[Any, bool], None]], Callable[[], None]]) -> EventStream:
        """Begin; itself, once the first event is here. Raises an error that comes before it: it has a status of its own."""
        self._cancel = begin(self._hear)
        try:
            await self._wake.wait()
            if isinstance(self._held[0], BaseException):
                raise self._held[0]
        except BaseException:
            self._cancel()
            raise
        return self

    def _hear(self, event: bytes | BaseException, is_last: bool) -> None:
        if not event and not is_last:  # a piece that says nothing
            return
        if self._write is not None and not is_last and self._write(event):  # type: ignore[arg-type]  # an error is the last
            return
        self._write = None
        self._held.append(event)
        self._is_over = is_last
        self._wake.set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        connection: Connection | None = scope.get(SCOPE_KEY)
        try:
            await send({"type": "http.response.start", "status": 200, "headers": STREAM_HEADERS})
            while not self._is_over or self._held:
                await self._wake.wait()
                self._wake.clear()
                held, self._held = self._held, []
                events = [self._failed(one) if isinstance(one, BaseException) else one for one in held]
                is_over = self._is_over
                await send({"type": "http.response.body", "body": b"".join(events), "more_body": not is_over})
                if not self._held and connection is not None:
                    self._write = connection.write_piece
        finally:
            self._write = None
            self._cancel()


def as_event(data: dict[str, Any]) -> bytes:
    """One event that holds this object."""
    return b"data: " + orjson.dumps(data) + b"\n\n"
