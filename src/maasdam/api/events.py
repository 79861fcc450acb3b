"""Server-sent events: how answers that come in pieces are written over HTTP. Knows ASGI; never what a piece says."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

import orjson
from fastapi.responses import Response

STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class EventStream(Response):
    """Sends events as they come. A client that goes away cancels this task, and so the generation."""

    def __init__(self, events: AsyncGenerator[bytes]) -> None:
        super().__init__()
        self._events = events

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async with aclosing(self._events) as events:
            await send({"type": "http.response.start", "status": 200, "headers": STREAM_HEADERS})
            async for event in events:
                await send({"type": "http.response.body", "body": event, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def following(first: bytes, rest: AsyncGenerator[bytes], failed: Callable[[Exception], bytes]) -> AsyncGenerator[bytes]:
    """The events of one answer, the first of which is here; one that `failed` writes where they break off.

    The one that ends the answer comes only once the ledger has its row.
    """
    async with aclosing(rest):
        yield first
        try:
            async for event in rest:
                yield event
        except Exception as error:
            yield failed(error)


def as_event(data: dict[str, Any]) -> bytes:
    """One event that holds this object."""
    return b"data: " + orjson.dumps(data) + b"\n\n"
