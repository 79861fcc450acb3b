"""The outermost layer: every request passes here. Knows ASGI, request ids, keys and limits; never models.

connection -> request id -> who calls? -> body within limits? -> the tensor route, or the application
                                                \\- refused: the door's own error, nothing behind ran
whatever happened -> one line in the log, one count, and a row where a valid key was refused
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from structlog.contextvars import bind_contextvars

from maasdam.api import body as bodies
from maasdam.api import docs_page, errors, json_body
from maasdam.api.access import DOCS, Gate
from maasdam.api.body import IN_THE_LOOP, BodyLimits, Disconnected, Message, Receive
from maasdam.api.connection import SCOPE_KEY, Connection, Exchange
from maasdam.api.correlation import id_headers, trace_of, well_formed
from maasdam.api.cors import Origins
from maasdam.api.encodings import coding_of
from maasdam.api.errors import REFUSED, Refusal
from maasdam.api.paths import INFER
from maasdam.core import Caller, Payload, Request
from maasdam.errors import BodyTooSlow, NotReady, Overloaded, TooLarge, WrongContentType
from maasdam.operations.infer import CLIENT_CLOSED
from maasdam.operations.requests import note_refusal
from maasdam.operations.service import Service
from maasdam.telemetry.requests import LONGEST, Ended

log = logging.getLogger("maasdam.api")

Scope = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

CALLER, REQUEST_ID, JSON = "maasdam.caller", "maasdam.request_id", "maasdam.json"
READING = "maasdam.reading"
"""The threads that read a large JSON body; not in the scope of a small one, which is read in the event loop."""
ROUTE = "maasdam.route"
INFER_ROUTE = "/v2/models/{model}/infer"
INFER_VERSION_ROUTE = "/v2/models/{model}/versions/{version}/infer"
LINGER_SECONDS = 5.0
LINGER_BYTES = 1 << 30
"""After a refusal, what a client still sends is thrown away so long, so that it gets to read the refusal."""
READERS = 2
"""Threads that read JSON that is larger than IN_THE_LOOP."""
PIECE = 16 * 1024
"""A form is handed on in pieces of this size, others having their turn between two: its parser runs in the event loop."""


class Entrance:
    """An ASGI application around another."""

    def __init__(self, inside: App, tensors: App, gate: Gate, limits: BodyLimits, service: Service) -> None:
        """`tensors` answers POST /v2/models/.../infer below the framework; `inside` everything else."""
        self._inside = inside
        self._tensors = tensors
        self.gate = gate
        self._limits = limits
        self._service = service
        settings = service.settings
        self._json = json_body.JsonLimits(settings.max_json_depth, settings.max_json_values)
        self._readers = service.threads(READERS, "read")
        self.origins = Origins.of(settings.cors_origins)
        self.at_once: Callable[[Exchange], bool] | None = None
        """What a connection may ask first, of requests that need nothing of this."""
        self.sockets: App | None = None
        """What answers websockets; it raises what refuses one."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; lifespan events pass through."""
        if scope["type"] != "http":
            await (self._inside if scope["type"] == "lifespan" else self._socket)(scope, receive, send)
            return
        if REFUSED in scope:  # by the connection, which could not read on
            return
        began = time.perf_counter()
        request_id = new_request_id()
        scope[REQUEST_ID] = request_id
        reply = _Reply(self, scope, send, began)
        connection: Connection | None = scope.get(SCOPE_KEY)
        bind_contextvars(request_id=request_id)  # the context is this request's own: uvicorn starts a task for each
        task = asyncio.current_task()
        assert task is not None
        cancel = task.cancel
        try:
            if connection is None:
                await self._answer(scope, receive, reply)
                return
            connection.on_close = cancel
            if not connection.is_closed:
                await self._answer(scope, receive, reply)
        except asyncio.CancelledError:
            if connection is not None and not connection.is_closed and not reply.is_started:
                # the client waits, but the time to finish is over
                stopping = NotReady("the service is stopping and this took too long to finish; send it again")
                await self._refuse(stopping, scope, receive, reply)
        finally:
            if connection is not None and connection.on_close is cancel:  # not of a request that came since on this connection
                connection.on_close = None
            self._ended(scope, reply.status, began)
            scope.pop(JSON, None)  # or an idle connection would hold it, by the scope of what it asked last

    async def _socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A websocket, from its handshake to its end: one line in the log."""
        assert self.sockets is not None
        began, status = time.perf_counter(), None
        scope[REQUEST_ID], scope["method"], scope[ROUTE] = new_request_id(), "GET", scope["path"]
        bind_contextvars(request_id=scope[REQUEST_ID])

        async def sent(message: Message) -> None:
            nonlocal status
            await send(message)
            if message["type"] == "websocket.accept":
                status = 101

        try:
            await self.sockets(scope, receive, sent)
        except Exception as error:
            refused = errors.refusal(error, scope[REQUEST_ID])
            scope[REFUSED] = refused
            if status is not None:  # it is open: the client is told by how it closes
                await send({"type": "websocket.close", "code": 1011, "reason": refused.message[:100]})
                return
            await self.note_refusal(scope, refused.status, began)
            data, kind = errors.body(refused, errors.door(scope["path"]), scope["path"], scope[REQUEST_ID])
            ids = id_headers(scope[REQUEST_ID], bodies.header(scope["headers"], b"x-request-id"))
            headers = [(b"content-type", kind), (b"content-length", b"%d" % len(data)), *errors.headers(refused), *ids]
            await send({"type": "websocket.http.response.start", "status": refused.status, "headers": headers})
            await send({"type": "websocket.http.response.body", "body": data, "more_body": False})
        finally:
            self._ended(scope, status, began)

    def refuse_unread(self, scope: Scope, status: int, message: str) -> tuple[list[tuple[bytes, bytes]], bytes]:
        """Headers and body for a request the connection could not read: see `connection.Refuse`."""
        is_known = REQUEST_ID in scope  # it is being answered: its line is written when that ends
        request_id = scope.setdefault(REQUEST_ID, new_request_id())
        scope[REFUSED] = refused = Refusal(status, message, "malformed_request")
        data, content_type = errors.body(refused, errors.door(scope["path"]), scope["path"], request_id)
        if not is_known:
            self._ended(scope, status, time.perf_counter())
        length = (b"content-length", b"%d" % len(data))
        return [(b"content-type", content_type), length, (b"x-request-id", request_id.encode())], data

    async def note_refusal(self, scope: Scope, status: int, began: float) -> None:
        """Before a refusal is sent: the row of one that a valid key sent."""
        refused: Refusal | None = scope.get(REFUSED)
        caller: Caller | None = scope.get(CALLER)
        if refused is None or caller is None or caller.key_id is None:
            return
        await note_refusal(
            self._service,
            scope[REQUEST_ID],
            caller,
            model=_model(scope) or "",
            endpoint=_route(scope),
            status=status,
            code=refused.code,
            seconds=time.perf_counter() - began,
        )

    def _ended(self, scope: Scope, status: int | None, began: float) -> None:
        refused: Refusal | None = scope.get(REFUSED)
        caller: Caller | None = scope.get(CALLER)
        if refused is not None:
            status = refused.status
        ended = Ended(
            scope[REQUEST_ID],
            trace_of(bodies.header(scope.get("headers", ()), b"traceparent")),
            scope.get("method", ""),
            _route(scope),
            CLIENT_CLOSED if status is None else status,
            time.perf_counter() - began,
            None if caller is None else caller.key_id,
            _model(scope),
            None if refused is None else refused.code,
            well_formed(bodies.header(scope.get("headers", ()), b"x-request-id")),
        )
        self._service.outbox.ended(ended)

    async def _answer(self, scope: Scope, receive: Receive, reply: _Reply) -> None:
        path: str = scope["path"]
        headers = scope["headers"]
        preflight = self.origins.preflight(scope["method"], headers)
        if preflight is not None:
            await reply({"type": "http.response.start", "status": 204, "headers": preflight})
            await reply({"type": "http.response.body", "body": b"", "more_body": False})
            return
        try:
            scope[CALLER] = caller = await self.gate.caller(path, headers)
            self.gate.check(path, caller)
            coding_of(bodies.header(headers, b"content-encoding"))
            found = INFER.fullmatch(path) if scope["method"] == "POST" and path.endswith("/infer") else None
            if found is not None:
                scope["path_params"] = found.groupdict()
                scope[ROUTE] = INFER_ROUTE if found["version"] is None else INFER_VERSION_ROUTE
                await self._tensors(scope, receive, reply)
            else:
                receive = await self._limited(scope, receive)
                if scope["method"] == "HEAD":  # as GET; the connection leaves the body out
                    scope = _Shadow(scope, method="GET")
                await self._inside(scope, receive, reply)
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
        """The body, read whole within the limits, to be received again. JSON is parsed, once: see `JSON`."""
        headers = scope["headers"]
        if scope["method"] in ("GET", "HEAD", "OPTIONS", "DELETE") and not _has_body(headers):
            return receive
        kind = bodies.header(headers, b"content-type")
        is_form = kind is not None and bodies.is_multipart(kind)
        if is_form and kind is not None:
            bodies.check_charset(kind)
        if kind is not None and bodies.is_urlencoded(kind) and bodies.takes_forms_only(scope["path"]):
            raise WrongContentType("a form without files is not read here; send multipart/form-data")
        data = await self._limits.read(scope, receive, None if is_form else self._limits.of_json(scope["path"]))
        if data and bodies.reads_as_json(kind, scope["path"]):
            if len(data) <= IN_THE_LOOP:
                scope[JSON] = json_body.parse(data, self._json)
            else:
                scope[READING] = self._readers
                loop = asyncio.get_running_loop()
                scope[JSON] = await loop.run_in_executor(self._readers, json_body.parse, data, self._json)
        size = PIECE if is_form else max(len(data), 1)
        place = 0

        async def again() -> Message:
            nonlocal place
            if place and place >= len(data):
                return await receive()
            if place:
                await asyncio.sleep(0)
            start, place = place, place + size
            return {"type": "http.request", "body": data[start:place], "more_body": place < len(data)}

        return again

    async def _refuse(self, error: Exception, scope: Scope, receive: Receive, reply: _Reply) -> None:
        self._limits.release(scope)
        refused = errors.refusal(error, reply.request_id)
        scope[REFUSED] = refused
        if reply.is_started:  # too late for a status: what was sent is cut short, which the client sees
            raise error
        kind = errors.door(scope["path"])
        data, content_type = errors.body(refused, kind, scope["path"], reply.request_id)
        if refused.status in (401, 403) and scope["path"] in DOCS and b"text/html" in _accepted(scope):
            data, content_type = docs_page.refused(refused.status, refused.message).encode(), b"text/html; charset=utf-8"
        headers = [(b"content-type", content_type), (b"content-length", b"%d" % len(data)), *errors.headers(refused)]
        is_unread = not scope.get(bodies.IS_READ, False) and (
            isinstance(error, TooLarge | Overloaded | BodyTooSlow | WrongContentType) or refused.status in (401, 403)
        )
        lingers = is_unread and not isinstance(error, BodyTooSlow)
        if is_unread or refused.closes:
            headers.append((b"connection", b"close"))
        await reply({"type": "http.response.start", "status": refused.status, "headers": headers})
        await reply({"type": "http.response.body", "body": data, "more_body": lingers})
        if lingers:
            if bodies.header(scope["headers"], b"expect") is None and _has_body(scope["headers"]):
                await _throw_away(receive)
            await reply({"type": "http.response.body", "body": b"", "more_body": False})


def _accepted(scope: Scope) -> bytes:
    return bodies.header(scope["headers"], b"accept") or b""


class _Shadow(dict[str, Any]):
    """A scope with another method; what is noted in it is noted in the one behind."""

    def __init__(self, behind: Scope, method: str) -> None:
        super().__init__(behind, method=method)
        self._behind = behind

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        self._behind[key] = value

    def update(self, *others: Any, **named: Any) -> None:
        """As a dict's: the framework notes the route that it found so."""
        super().update(*others, **named)
        self._behind.update(*others, **named)


class _Reply:
    """`send` that adds the request id, and sees to a refusal's row before the refusal is sent."""

    __slots__ = ("_began", "_entrance", "_scope", "_send", "is_complete", "is_started", "request_id", "status")

    def __init__(self, entrance: Entrance, scope: Scope, send: Send, began: float) -> None:
        self._entrance = entrance
        self._scope = scope
        self._send = send
        self._began = began
        self.request_id: str = scope[REQUEST_ID]
        self.status: int | None = None
        self.is_started = False
        self.is_complete = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.is_started = True
            self.status = message["status"]
            asked = self._scope["headers"]
            ids = id_headers(self.request_id, bodies.header(asked, b"x-request-id"), bodies.header(asked, b"traceparent"))
            message["headers"] = [*message.get("headers", ()), *ids, *self._entrance.origins.headers(asked)]
            if message["status"] >= 400:
                await self._entrance.note_refusal(self._scope, message["status"], self._began)
        elif not message.get("more_body", False):
            self.is_complete = True
        await self._send(message)


def _route(scope: Scope) -> str:
    """The route's pattern; the path where none was found."""
    route: str | None = scope.get(ROUTE)
    if route is None:
        found = scope.get("route")
        route = scope.get("path", "") if found is None else getattr(found, "path_format", "")
    return route or ""


def _model(scope: Scope) -> str | None:
    """The model that a request names, in its body or its path; as the caller wrote it."""
    asked = scope.get(JSON)
    if isinstance(asked, dict) and isinstance(asked.get("model"), str):
        return str(asked["model"])[:LONGEST]
    named = scope.get("path_params")
    named = named.get("model") if named else None
    return None if not named else str(named)[:LONGEST]


_chance = random.Random()  # seeded by the system; asking it for every request would let go of Python's lock
os.register_at_fork(after_in_child=_chance.seed)  # or workers, which are forks of one process, would give the same ids


def request_of(scope: Scope, model: str, payloads: tuple[Payload, ...], endpoint: str, seconds: float) -> Request:
    """What a door asks of inference, to be answered within so many seconds."""
    return Request(scope[REQUEST_ID], model, payloads, caller_of(scope), endpoint, time.monotonic() + seconds)


def new_request_id() -> str:
    """Sortable by time, unique: 12 hexadecimal digits of milliseconds and 20 of chance."""
    return f"{time.time_ns() // 1_000_000 << 80 | _chance.getrandbits(80):032x}"


def caller_of(scope: Scope) -> Caller:
    """Who sent the request in `scope`."""
    caller: Caller = scope[CALLER]
    return caller


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
