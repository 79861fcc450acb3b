"""POST /v2/models/NAME[/versions/V]/infer without a task, a stream or a scope for each: where microseconds count.

Knows what a request must look like to be answered so: here whole, small, with a key that was checked a moment ago, for a model
that is up, and nothing wrong with it. Whatever is otherwise goes the long way (`entrance`, `oip_infer`), which says what is
wrong; meaning, codec, inference and errors are the same.

    connection -> Exchange -> oip_json -> OipCall -> operations.infer.begin -> OipReply -> oip_json -> connection
"""

from __future__ import annotations

import time
from asyncio import Future
from collections.abc import Callable
from typing import Any

from maasdam.api import errors, oip_json
from maasdam.api.access import Gate
from maasdam.api.body import Headers, header
from maasdam.api.connection import Exchange
from maasdam.api.correlation import id_headers, trace_of, well_formed
from maasdam.api.cors import Origins
from maasdam.api.encodings import wished
from maasdam.api.entrance import CLIENT_CLOSED, INFER_ROUTE, INFER_VERSION_ROUTE, LONGEST_NAME, new_request_id
from maasdam.api.json_body import JsonLimits
from maasdam.api.measured import measured_headers
from maasdam.api.oip_call import OipCall, name_of
from maasdam.api.oip_infer import JSON_LENGTH, SMALL_BYTES
from maasdam.api.paths import INFER
from maasdam.core import Caller, Chunk, Entry
from maasdam.errors import Overloaded
from maasdam.operations.service import Service
from maasdam.telemetry.requests import Ended

JSON, BINARY = (b"content-type", b"application/json"), (b"content-type", b"application/octet-stream")


class AtOnce:
    """What a connection offers whole requests to."""

    def __init__(self, service: Service, gate: Gate) -> None:
        self._service = service
        self._gate = gate
        settings = service.settings
        self._origins = Origins.of(settings.cors_origins)
        self._json = JsonLimits(settings.max_json_depth, settings.max_json_values)
        self._most = min(SMALL_BYTES, settings.max_json_tensor_bytes, settings.max_body_bytes)
        self._seconds = settings.request_timeout_seconds

    def __call__(self, exchange: Exchange) -> bool:
        """Take it and answer, now or later; False: it is for the long way."""
        began = time.perf_counter()
        headers: Headers = exchange.scope["headers"]
        url = exchange.url
        found = INFER.fullmatch(url.decode("latin-1")) if b"%" not in url else None
        if found is None or len(exchange.body) > self._most or header(headers, b"content-encoding") is not None:
            return False
        if wished(header(headers, b"accept-encoding")) is not None:
            return False
        caller = self._gate.known(headers, "infer")
        if caller is None:
            return False
        try:
            length = oip_json.json_length(header(headers, JSON_LENGTH), exchange.body)
            call = oip_json.decode(name_of(**found.groupdict()), exchange.body, length, self._json)
            if call.wants_classes:  # they are written in a thread
                return False
            _One(self, exchange, caller, call, found["version"] is not None, began)
        except Exception:  # the long way says what it is
            return False
        return True


class _One:
    """One request that was taken."""

    __slots__ = ("_at_once", "_began", "_call", "_caller", "_exchange", "_id", "_is_of_version", "_status")

    def __init__(
        self, at_once: AtOnce, exchange: Exchange, caller: Caller, call: OipCall, is_of_version: bool, began: float
    ) -> None:
        """Raises what is wrong with it before its model has it; then nothing came of it."""
        self._at_once, self._exchange, self._caller, self._call = at_once, exchange, caller, call
        self._is_of_version, self._began = is_of_version, began
        self._id = new_request_id()
        request = call.request(self._id, caller, "/v2/infer", at_once._seconds)
        cancel = at_once._service.inference.begin(request, call.check, self._write, self._finish)

        def gone() -> None:
            cancel()
            self._note(CLIENT_CLOSED)

        exchange.on_close = gone

    def _write(self, chunks: list[Chunk], entry: Entry, written: Callable[[Any], None]) -> None:
        call, reply = self._call, self._call.reply(chunks, entry)
        if reply.nbytes <= SMALL_BYTES:
            written((*oip_json.encode(call, reply), measured_headers(entry)))
            return

        def told(task: Future[tuple[bytes, int | None]]) -> None:
            if not task.cancelled():
                written(task.exception() or (*task.result(), measured_headers(entry)))

        pool = self._at_once._service.pool
        self._exchange.loop.run_in_executor(pool, oip_json.encode, call, reply).add_done_callback(told)

    def _finish(self, answer: tuple[bytes, int | None, Headers] | BaseException) -> None:
        if isinstance(answer, BaseException):
            self._refuse(answer)
            return
        body, length, measured = answer
        headers = [JSON if length is None else BINARY, *measured, (b"content-length", b"%d" % len(body))]
        if length is not None:
            headers.append((JSON_LENGTH, b"%d" % length))
        self._send(200, headers, body)
        self._note(200)

    def _refuse(self, error: BaseException) -> None:
        refused = errors.refusal(error, self._id)
        body, kind = errors.body(refused, "oip", "", self._id)
        if isinstance(error, Overloaded):
            self._exchange.keep_alive = False
        headers = [(b"content-type", kind), (b"content-length", b"%d" % len(body)), *errors.headers(refused)]
        self._send(refused.status, headers, body)
        self._note(refused.status, refused.code)

    def _send(self, status: int, headers: Headers, body: bytes) -> None:
        asked: Headers = self._exchange.scope["headers"]
        ids = id_headers(self._id, header(asked, b"x-request-id"))
        self._exchange.answer(status, [*headers, *ids, *self._at_once._origins.headers(asked)], body)

    def _note(self, status: int, reason: str | None = None) -> None:
        asked: Headers = self._exchange.scope["headers"]
        trace, theirs = trace_of(header(asked, b"traceparent")), well_formed(header(asked, b"x-request-id"))
        route = INFER_VERSION_ROUTE if self._is_of_version else INFER_ROUTE
        seconds, key = time.perf_counter() - self._began, self._caller.key_id
        self._at_once._service.outbox.ended(
            Ended(self._id, trace, "POST", route, status, seconds, key, self._call.model[:LONGEST_NAME], reason, theirs)
        )
