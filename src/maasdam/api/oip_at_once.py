"""POST /v2/models/NAME[/versions/V]/infer without a task, a stream or a scope for each: where microseconds count.

Knows what a request must look like to be answered so: here whole, small, with a key that was checked a moment ago, for a model
that is up, and nothing wrong with it. Whatever is otherwise goes the long way (`entrance`, `oip_infer`), which says what is
wrong; meaning, codec, inference and errors are the same.

    connection -> Exchange -> oip_json -> OipCall -> operations.infer.begin -> OipReply -> oip_json -> connection
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from maasdam.api import errors, oip_json
from maasdam.api.access import Gate
from maasdam.api.body import IN_THE_LOOP, BodyLimits, Headers, header
from maasdam.api.connection import Exchange, Head
from maasdam.api.correlation import trace_of, well_formed
from maasdam.api.cors import Origins
from maasdam.api.encodings import wished
from maasdam.api.entrance import INFER_ROUTE, INFER_VERSION_ROUTE, new_request_id
from maasdam.api.json_body import JsonLimits
from maasdam.api.measured import measured_lines
from maasdam.api.oip_call import OipCall, name_of
from maasdam.api.oip_infer import JSON_LENGTH
from maasdam.api.paths import INFER
from maasdam.core import Caller, Chunk, Entry
from maasdam.errors import MaasdamError
from maasdam.operations.infer import CLIENT_CLOSED
from maasdam.operations.service import Service
from maasdam.telemetry.requests import LONGEST, Ended

JSON = b"content-type: application/json\r\n"
BINARY = b"content-type: application/octet-stream\r\ninference-header-content-length: %d\r\n"


class _Asked:
    """What a head says, whatever body follows it."""

    __slots__ = ("caller", "ids", "length", "model", "origins", "route", "theirs", "trace")

    def __init__(
        self,
        model: str,
        route: str,
        length: bytes | None,
        caller: Callable[[], Caller | None],
        headers: Headers,
        origins: Origins,
    ) -> None:
        self.model = model
        """NAME or NAME:VERSION."""
        self.route = route
        self.length = length
        """What Inference-Header-Content-Length says."""
        self.caller = caller
        """Who calls, where that is known now."""
        asked = header(headers, b"x-request-id")
        self.theirs = well_formed(asked)
        self.trace = trace_of(header(headers, b"traceparent"))
        theirs = b"" if asked is None or self.theirs is None else b"x-request-id: %b\r\nmaasdam-request-id: " % asked
        self.ids = theirs or b"x-request-id: "
        """What stands before our id in the answer."""
        self.origins = b"".join([b"%b: %b\r\n" % pair for pair in origins.headers(headers)])

    @property
    def is_once(self) -> bool:
        """Whether no other request will have this head."""
        return self.theirs is not None or self.trace is not None


class AtOnce:
    """What a connection offers whole requests to."""

    def __init__(self, service: Service, gate: Gate, limits: BodyLimits) -> None:
        self.service = service
        self._gate = gate
        self.limits = limits
        settings = service.settings
        self._origins = Origins.of(settings.cors_origins)
        self._json = JsonLimits(settings.max_json_depth, settings.max_json_values)
        self._most = min(IN_THE_LOOP, settings.max_json_tensor_bytes, settings.max_body_bytes)
        self.seconds = settings.request_timeout_seconds

    def __call__(self, exchange: Exchange) -> bool:
        """Take it and answer, now or later; False: it is for the long way."""
        began = time.perf_counter()
        asked: _Asked | None = exchange.head.meaning or self._read(exchange.head)
        if asked is None or len(exchange.body) > self._most or self.limits.held > self.limits.held_bytes:
            return False
        caller = asked.caller()
        if caller is None:
            return False
        body = exchange.body
        try:
            length = len(body) if asked.length is None else oip_json.json_length(asked.length, body)
            call = oip_json.decode(asked.model, body, length, self._json)
            if call.wants_classes:  # they are written in a thread
                return False
            _One(self, exchange, asked, caller, call, began)
        except Exception:  # the long way says what it is
            return False
        return True

    def _read(self, head: Head) -> _Asked | None:
        """None: such a request is for the long way."""
        headers, url = head.headers, head.url
        found = INFER.fullmatch(url.decode("latin-1")) if b"%" not in url else None
        if found is None or header(headers, b"content-encoding") is not None:
            return None
        caller = self._gate.holder(headers, "infer")
        if wished(header(headers, b"accept-encoding")) is not None or caller is None:
            return None
        try:
            model = name_of(**found.groupdict())
        except MaasdamError:  # the long way says what it is
            return None
        route = INFER_ROUTE if found["version"] is None else INFER_VERSION_ROUTE
        asked = _Asked(model, route, header(headers, JSON_LENGTH), caller, headers, self._origins)
        if not asked.is_once:
            head.meaning = asked
        return asked


class _One:
    """One request that was taken."""

    __slots__ = ("_asked", "_at_once", "_began", "_call", "_caller", "_cancel", "_exchange", "_id", "_size")

    def __init__(self, at_once: AtOnce, exchange: Exchange, asked: _Asked, caller: Caller, call: OipCall, began: float) -> None:
        """Raises what is wrong with it before its model has it; then nothing came of it."""
        self._at_once, self._exchange, self._asked, self._caller, self._call = at_once, exchange, asked, caller, call
        self._began, self._size = began, len(exchange.body)
        self._id = new_request_id()
        request = call.request(self._id, caller, "/v2/infer", at_once.seconds)
        self._cancel = at_once.service.inference.begin(request, call.check, self._write, self._finish)
        at_once.limits.held += self._size
        if not exchange.response_complete:
            exchange.on_close = self._gone

    def _gone(self) -> None:
        self._cancel()
        self._note(CLIENT_CLOSED)

    def _write(self, chunks: list[Chunk], entry: Entry, written: Callable[[Any], None]) -> None:
        call, reply = self._call, self._call.reply(chunks, entry)
        if reply.nbytes <= IN_THE_LOOP:
            written((*oip_json.encode(call, reply), measured_lines(entry)))
            return
        self._at_once.service.in_thread(lambda: (*oip_json.encode(call, reply), measured_lines(entry)), written)

    def _finish(self, answer: tuple[bytes, int | None, bytes] | BaseException) -> None:
        if isinstance(answer, BaseException):
            self._refuse(answer)
            return
        body, length, measured = answer
        kind = JSON if length is None else BINARY % length
        self._send(200, b"%b%bcontent-length: %d\r\n" % (kind, measured, len(body)), body)
        self._note(200)

    def _refuse(self, error: BaseException) -> None:
        refused = errors.refusal(error, self._id)
        body, kind = errors.body(refused, "oip", "", self._id)
        if refused.closes:
            self._exchange.keep_alive = False
        more = b"".join([b"%b: %b\r\n" % pair for pair in errors.headers(refused)])
        self._send(refused.status, b"content-type: %b\r\ncontent-length: %d\r\n%b" % (kind, len(body), more), body)
        self._note(refused.status, refused.code)

    def _send(self, status: int, lines: bytes, body: bytes) -> None:
        asked = self._asked
        if asked.trace is not None:
            lines += b"traceresponse: %b\r\n" % asked.trace.response(self._id).encode()
        self._exchange.answer(status, b"%b%b%b\r\n%b" % (lines, asked.ids, self._id.encode(), asked.origins), body)

    def _note(self, status: int, reason: str | None = None) -> None:
        self._at_once.limits.held -= self._size
        asked, key = self._asked, self._caller.key_id
        seconds, model = time.perf_counter() - self._began, asked.model[:LONGEST]
        self._at_once.service.outbox.ended(
            Ended(self._id, asked.trace, "POST", asked.route, status, seconds, key, model, reason, asked.theirs)
        )
