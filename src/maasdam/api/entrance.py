"""The outermost layer: every request passes here. Knows ASGI, request ids, keys and limits; never models.

connection -> request id -> who calls? -> body within limits? -> the tensor route, or the application
                                                \\- refused: the door's own error, nothing behind ran
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import orjson
from structlog.contextvars import bind_contextvars

from maasdam.api import body as bodies
from maasdam.api import errors
from maasdam.api.access import Gate
from maasdam.api.body import BodyLimits, Disconnected, Message, Receive
from maasdam.api.connection import SCOPE_KEY, Connection
from maasdam.core import Caller
from maasdam.errors import InvalidInput, NotReady, Overloaded, TooLarge

log = logging.getLogger("maasdam.api")

Scope = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

CALLER, REQUEST_ID = "maasdam.caller", "maasdam.request_id"
LINGER_SECONDS = 5.0
LINGER_BYTES = 1 << 30
"""After a refusal, what a client still sends is thrown away so long, so that it gets to read the refusal."""


class Entrance:
    """An ASGI application around another."""

    def __init__(self, inside: App, tensors: App, gate: Gate, limits: BodyLimits, json_depth: int) -> None:
        """`tensors` answers POST /v2/models/.../infer below the framework; `inside` everything else."""
        self._inside = inside
        self._tensors = tensors
        self._gate = gate
        self._limits = limits
        self._json_depth = json_depth

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; lifespan events pass through."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._inside(scope, receive, send)
            else:
                await send({"type": "websocket.close", "code": 1003})
            return
        request_id = new_request_id()
        scope[REQUEST_ID] = request_id
        reply = _Reply(send, request_id)
        connection: Connection | None = scope.get(SCOPE_KEY)
        bind_contextvars(request_id=request_id)  # the context is this request's own: uvicorn starts a task for each
        if connection is None:
            await self._answer(scope, receive, reply)
            return
        task = asyncio.current_task()
        assert task is not None
        connection.on_close = task.cancel
        try:
            if not connection.is_closed:
                await self._answer(scope, receive, reply)
        except asyncio.CancelledError:
            if not connection.is_closed and not reply.is_started:  # the client waits, but the time to finish is over
                stopping = NotReady("the service is stopping and this took too long to finish; send it again")
                await self._refuse(stopping, scope, receive, reply)
        finally:
            connection.on_close = None

    async def _answer(self, scope: Scope, receive: Receive, reply: _Reply) -> None:
        path: str = scope["path"]
        headers = scope["headers"]
        try:
            caller = await self._gate.admit(path, headers)
            scope[CALLER] = caller
            bodies.check_length(headers, self._limits.body_bytes)
            bodies.check_encoding(headers)
            if path.endswith("/infer") and path.startswith("/v2/models/") and scope["method"] == "POST":
                await self._tensors(scope, receive, reply)
            else:
                await self._inside(scope, await self._limited(scope, receive), reply)
        except Disconnected:
            return
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except Exception as error:
            if not reply.is_complete:  # else the framework has answered and lets us know
                await self._refuse(error, scope, receive, reply)
        finally:
            self._limits.release(scope)

    async def _limited(self, scope: Scope, receive: Receive) -> Receive:
        """The body, read whole within the limits, to be received again."""
        if scope["method"] in ("GET", "HEAD", "OPTIONS", "DELETE") and not _has_body(scope["headers"]):
            return receive
        data = await self._limits.read(scope, receive)
        if b"json" in (bodies.header(scope["headers"], b"content-type") or b"json"):
            bodies.check_json_depth(data, self._json_depth)
            _check_json(data)
        is_given = False

        async def again() -> Message:
            nonlocal is_given
            if is_given:
                return await receive()
            is_given = True
            return {"type": "http.request", "body": data, "more_body": False}

        return again

    async def _refuse(self, error: Exception, scope: Scope, receive: Receive, reply: _Reply) -> None:
        self._limits.release(scope)
        refused = errors.refusal(error, reply.request_id)
        if reply.is_started:  # too late for a status: what was sent is cut short, which the client sees
            raise error
        kind = errors.door(scope["path"])
        data, content_type = errors.body(refused, kind, scope["path"], reply.request_id)
        headers = [(b"content-type", content_type), (b"content-length", b"%d" % len(data)), *errors.headers(refused)]
        is_unread = isinstance(
            error, TooLarge | Overloaded | errors.BodyTooSlow | errors.WrongContentType
        ) or refused.status in (401, 403)
        lingers = is_unread and not isinstance(error, errors.BodyTooSlow)
        if is_unread:
            headers.append((b"connection", b"close"))
        await reply({"type": "http.response.start", "status": refused.status, "headers": headers})
        await reply({"type": "http.response.body", "body": data, "more_body": lingers})
        if lingers:
            if bodies.header(scope["headers"], b"expect") is None and _has_body(scope["headers"]):
                await _throw_away(receive)
            await reply({"type": "http.response.body", "body": b"", "more_body": False})


class _Reply:
    """`send` that adds the request id."""

    __slots__ = ("_send", "is_complete", "is_started", "request_id")

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self.request_id = request_id
        self.is_started = False
        self.is_complete = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.is_started = True
            message["headers"] = [*message.get("headers", ()), (b"x-request-id", self.request_id.encode())]
        elif not message.get("more_body", False):
            self.is_complete = True
        await self._send(message)


_chance = random.Random()  # seeded by the system; asking it for every request would let go of Python's lock


def new_request_id() -> str:
    """Sortable by time, unique: 12 hexadecimal digits of milliseconds and 20 of chance."""
    return f"{time.time_ns() // 1_000_000:012x}{_chance.getrandbits(80):020x}"


def caller_of(scope: Scope) -> Caller:
    """Who sent the request in `scope`."""
    caller: Caller = scope[CALLER]
    return caller


def _check_json(data: bytes) -> None:
    """Strict where Python's own parser is not: UTF-8 only, no NaN, no half of a surrogate pair."""
    try:
        orjson.loads(data or b"null")
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f"the body is not valid JSON: {error}") from None


def _has_body(headers: bodies.Headers) -> bool:
    length = bodies.header(headers, b"content-length")
    return (length is not None and length != b"0") or bodies.header(headers, b"transfer-encoding") is not None


async def _throw_away(receive: Receive) -> None:
    thrown = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER_SECONDS):
            while thrown < LINGER_BYTES:
                message = await receive()
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
                thrown += len(message.get("body", b""))
