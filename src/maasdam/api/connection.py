"""uvicorn's HTTP/1.1 connection with what it lacks. Knows sockets, clocks and framing; never routes or bodies' meaning.

Added: headers must come within a time, a size and a number; framing that servers read differently is refused; what
stands beside a chunked body (sizes, extensions, trailers) is bounded and dropped; `Upgrade` is ignored but where there is
a websocket; a client that stops reading its answer is cut off; whoever answers a request hears at once that its client went
away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, MutableMapping
from typing import Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from maasdam.api.body import IS_WHOLE, Headers

HEADER_SECONDS = 10.0
"""A client that has not sent its headers by then is cut off."""
HEADER_BYTES = 64 * 1024
HEADER_FIELDS = 128
TRAILER_FIELDS = 32
"""Fields after a chunked body. They are dropped: nothing here needs them, and taken as headers they would be a way around."""
FRAMING_BYTES = 16 * 1024
"""Of a chunked body, what may come beside 16 bytes a chunk and twice the body's own bytes: extensions, trailers."""
HEADS_KEPT, LONGEST_HEAD = 512, 2048
"""Of requests that were answered at once: so many heads, of at most so many bytes."""
STALLED_SECONDS = 30.0
"""A client that takes nothing of its answer for so long is cut off."""
SOCKETS = frozenset({b"/v1/realtime"})
"""Paths that a GET may make a websocket."""
SCOPE_KEY = "maasdam.connection"

NOT_HTTP = (400, "this is not valid HTTP/1.1; send requests that follow RFC 9112")

Refuse = Callable[[MutableMapping[str, Any], int, str], tuple[list[tuple[bytes, bytes]], bytes]]
"""(scope, status, message) of a request that can't be read -> headers and body of the answer. The scope may lack anything."""


class Connection:
    """What the application sees of the connection that carries its request."""

    __slots__ = ("_protocol", "is_closed", "on_close")

    def __init__(self, protocol: HttpConnection) -> None:
        self._protocol = protocol
        self.is_closed = False
        self.on_close: Callable[[], Any] | None = None

    def write_piece(self, piece: bytes) -> bool:
        """Write a piece of an answer without a length that has begun; False: not now, as the client is behind, or as there is
        nothing in it, which would end the answer. Send it by way of ASGI then, which waits."""
        protocol = self._protocol
        if self.is_closed or protocol.flow.write_paused or not piece:
            return False
        protocol.transport.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        return True


class Head:
    """What came before a body, read. The same bytes mean the same again, so those that were answered at once are kept."""

    __slots__ = ("headers", "length", "meaning", "url")

    def __init__(self, url: bytes, headers: Headers) -> None:
        self.url = url
        """The target as it was sent, with its query."""
        self.headers = headers
        self.length = 0
        """Bytes of the body."""
        self.meaning: Any = None
        """What was made of it by who answered; None where it is not worth keeping: no other will be like it."""


class Exchange:
    """A request that is here whole, offered to be answered at once; in place of uvicorn's cycle while it is."""

    __slots__ = ("_protocol", "body", "disconnected", "head", "keep_alive", "on_close", "response_complete")

    def __init__(self, protocol: HttpConnection, head: Head, body: bytes) -> None:
        self._protocol = protocol
        self.head = head
        self.body = body
        self.on_close: Callable[[], None] = _nothing
        """Called where the client went away before the answer."""
        self.keep_alive = True
        self.disconnected = False
        self.response_complete = False

    response_started = False
    """Nothing of an answer is sent before all of it is there."""

    @property
    def message_event(self) -> _Nobody:
        """What uvicorn wakes where a client goes away."""
        return _NOBODY

    def answer(self, status: int, lines: bytes, body: bytes) -> None:
        """Send the answer, whole, and go on with the connection. `lines` are its headers, each with its end."""
        if not self.response_complete:
            self.response_complete = True
            self.on_close, self.body = _nothing, b""  # an idle connection holds neither who answered nor what was asked
            self._protocol.answer_at_once(self, status, lines, body)


class _Nobody:
    """Waits for no message."""

    def set(self) -> None:
        """Nobody hears."""


_NOBODY = _Nobody()


def _nothing() -> None:
    """Nobody wants to know."""


class Malformed(Exception):
    """Raised inside the parser to stop it. What is wrong is in `HttpConnection._wrong`: the parser passes on no exception."""


class HttpConnection(HttpToolsProtocol):
    """Give this class to uvicorn as `http`, or a partial of it with `refuse`."""

    def __init__(
        self,
        *args: Any,
        refuse: Refuse | None = None,
        at_once: Callable[[Exchange], bool] | None = None,
        heads: dict[bytes, Head] | None = None,
        **kwargs: Any,
    ) -> None:
        """`at_once` is offered POST requests to /.../infer that came whole; True: it answers, now or later.

        `heads` keeps what was read of their heads, for every connection that is given it.
        """
        super().__init__(*args, **kwargs)
        self._at_once = at_once
        self._heads = {} if heads is None else heads
        self._is_between = True
        """Whether the next byte begins a request."""
        self._answered_at = 0.0
        self._exchange: Exchange | None = None
        self._offered: list[bytes] | None = None
        """Pieces of a body that may be offered once it is whole; uvicorn does not know of the request then."""
        self._refuse_with = refuse or _plainly
        self._connection = Connection(self)
        self._header_bytes = 0
        self._is_reading_headers = True
        self._is_in_body = False
        self._is_replaying = False
        self._is_socket = False
        """Whether the request opens a websocket."""
        self._messages = 0
        self._trailers = 0
        self._framing = 0
        """Bytes that came during the body, less what they may be: over FRAMING_BYTES the request is refused."""
        self._wrong = NOT_HTTP
        self._is_refused = False
        self._header_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Start the clock for the first headers."""
        super().connection_made(transport)
        self._start_header_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever is answering."""
        super().connection_lost(exc)
        self._stop_timer("_header_timer")
        self._stop_timer("_stall_timer")
        self._connection.is_closed = True
        if self._connection.on_close:
            self._connection.on_close()
        if self._exchange is not None and not self._exchange.response_complete:
            self._exchange.response_complete = True
            self._exchange.on_close()

    def data_received(self, data: bytes) -> None:
        """Feed the parser; count what is no body."""
        if self._is_refused:
            return
        if self._is_between and self._take_known(data):
            return
        was_between, before = self._is_between, self._exchange
        if self._is_reading_headers:
            self._header_bytes += len(data)
        message = self._messages if self._is_in_body else None
        rest = memoryview(data)
        try:
            while True:
                try:
                    self.parser.feed_data(rest)
                    break
                except httptools.HttpParserUpgrade as upgrade:
                    rest = rest[upgrade.args[0] :]
                    if self._is_socket:
                        self._become_socket(len(rest))
                        return
                    self._start_over_without_upgrade()
            if was_between and self._exchange is not before and self._exchange is not None:
                self._keep(data, self._exchange.head)
            if self._offered is not None:  # it did not come in one piece
                self._go_the_long_way(self._offered)
            is_same_body = self._is_in_body and message == self._messages
            self._framing = max(0, self._framing + (len(data) if is_same_body else 0))
            if self._framing > FRAMING_BYTES:
                self._fail(400, f"more than {FRAMING_BYTES} bytes of chunk extensions and trailers; send the body alone")
            if self._is_reading_headers and self._header_bytes > HEADER_BYTES:
                self._fail(431, f"the headers are larger than {HEADER_BYTES} bytes; send less")
        except (httptools.HttpParserError, Malformed):
            self._refuse()

    def on_message_begin(self) -> None:
        """A request's first byte."""
        if self._is_replaying:
            return
        self._is_between = False
        self._unset_keepalive_if_required()  # not for any byte: empty lines may stand before a request, and need not begin one
        super().on_message_begin()
        cast(dict[str, Any], self.scope)[SCOPE_KEY] = self._connection
        self._messages += 1
        self._is_reading_headers = True
        if self._header_timer is None:
            self._start_header_timer()

    def on_url(self, url: bytes) -> None:
        """A piece of the target."""
        if not self._is_replaying:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; or after a chunked body a trailer, which is dropped."""
        if self._is_replaying:
            return
        if not self._is_reading_headers:
            self._trailers += 1
            if self._trailers > TRAILER_FIELDS:
                self._fail(400, f"more than {TRAILER_FIELDS} trailers; send none")
            return
        headers = self.headers
        if len(headers) >= HEADER_FIELDS:
            self._fail(431, f"more than {HEADER_FIELDS} headers; send fewer")
        headers.append((name.lower(), value if value[-1:] not in b" \t" else value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        """The headers are here; the body has clocks of its own."""
        if self._is_replaying:
            self._is_replaying = False
            return
        self._check_framing()
        self._is_reading_headers = False
        self._is_in_body = True
        self._header_bytes = self._trailers = self._framing = 0
        self._stop_timer("_header_timer")
        self._is_socket = self.parser.should_upgrade() and self._may_be_socket()
        if self._at_once is not None and self._may_be_at_once():
            self._offered = []
            return
        super().on_headers_complete()
        self._is_replaying = self.parser.should_upgrade() and not self._is_socket

    def on_chunk_header(self) -> None:
        """The size of a chunk came."""
        self._framing -= 16

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self._framing -= 3 * len(body)
        if self._offered is None:
            super().on_body(body)
        else:
            self._offered.append(body)

    def on_message_complete(self) -> None:
        """The request's last byte; not of one that asked for an upgrade, whose body is still to be read."""
        if not self._is_replaying:
            self._is_in_body = False
            self._is_between = True
            cast(dict[str, Any], self.scope)[IS_WHOLE] = True
            if self._offered is not None:
                pieces, self._offered = self._offered, None
                head, body = Head(self.url, self.headers), pieces[0] if len(pieces) == 1 else b"".join(pieces)
                if self._offer(head, body):
                    head.length = len(body)
                    return
                self._go_the_long_way(pieces)
            super().on_message_complete()

    def _offer(self, head: Head, body: bytes) -> bool:
        """Whether who answers at once takes a request."""
        exchange = Exchange(self, head, body)
        before, self.cycle = self.cycle, cast(Any, exchange)
        self._exchange = exchange
        if self._at_once is not None and self._at_once(exchange):
            return True
        self.cycle, self._exchange = before, None
        return False

    def _take_known(self, data: bytes) -> bool:
        """Have a request answered at once whose head came before, byte for byte: a parser would make the same of it."""
        end = data.find(b"\r\n\r\n", 0, LONGEST_HEAD) + 4
        head = self._heads.get(data[:end])
        if head is None or head.length != len(data) - end or not self._is_free() or self.transport.is_closing():
            return False
        if not self._offer(head, data[end:]):
            return False
        if self._header_timer is not None:
            self._stop_timer("_header_timer")
        return True

    def _keep(self, data: bytes, head: Head) -> None:
        """Know the head again of the request that was taken, if that is all that came."""
        end = data.find(b"\r\n\r\n", 0, LONGEST_HEAD) + 4
        if end > 3 and len(data) - end == head.length and head.meaning is not None:
            if len(self._heads) >= HEADS_KEPT:
                self._heads.clear()
            self._heads[data[:end]] = head

    def answer_at_once(self, exchange: Exchange, status: int, lines: bytes, body: bytes) -> None:
        """Write the answer to a request that was offered, and take the next."""
        if self.transport.is_closing():
            return
        start, close = STATUS_LINE[status], b"" if exchange.keep_alive else b"connection: close\r\n"
        if self.server_state.default_headers:
            start += b"".join([b"%b: %b\r\n" % pair for pair in self.server_state.default_headers])
        self.transport.write(b"%b%b%b\r\n%b" % (start, lines, close, body))
        if close:
            self.transport.close()
        if self.pipeline or self.timeout_keep_alive_task is None or not exchange.keep_alive:
            self.on_response_complete()
        else:
            self.server_state.total_requests += 1
        self._answered_at = self.loop.time()

    def timeout_keep_alive_handler(self) -> None:
        """Nothing came for a while; or it did, and nobody set the timer anew for it, which would cost each request."""
        left = self._answered_at + self.timeout_keep_alive - self.loop.time()
        is_busy = self._header_timer is not None or (self.cycle is not None and not self.cycle.response_complete)
        if not is_busy and left <= 0:
            super().timeout_keep_alive_handler()
        else:
            seconds = self.timeout_keep_alive if is_busy else left
            self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def _is_free(self) -> bool:
        """Whether nothing is being answered, and what was is read; else answers would pile up for a client that only sends."""
        cycle = self.cycle
        return (cycle is None or cycle.response_complete) and not self.pipeline and not self.flow.write_paused

    def _may_be_at_once(self) -> bool:
        """Whether what is to come could be offered: nothing is being answered, what was is read, and the body has a length."""
        parser = self.parser
        return (
            self.url.endswith(b"/infer")
            and parser.get_method() == b"POST"
            and self._is_free()
            and parser.get_http_version() == "1.1"
            and not self.expect_100_continue
            and not parser.should_upgrade()
            and parser.should_keep_alive()
            and not any(name == b"transfer-encoding" for name, _ in self.headers)
        )

    def _go_the_long_way(self, pieces: list[bytes]) -> None:
        """Let uvicorn have a request that it does not know of yet."""
        self._offered = None
        super().on_headers_complete()
        for piece in pieces:
            super().on_body(piece)

    def pause_writing(self) -> None:
        """The client is not reading."""
        super().pause_writing()
        self._stall_timer = self.loop.call_later(STALLED_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """The client reads again."""
        super().resume_writing()
        self._stop_timer("_stall_timer")

    def _should_upgrade(self) -> bool:
        return self._is_socket

    def _may_be_socket(self) -> bool:
        """Whether the request that asks for an upgrade gets it: nothing else is under way, and it has no body."""
        return (
            self.url.partition(b"?")[0] in SOCKETS
            and self._should_upgrade_to_ws()
            and self.parser.get_method() == b"GET"
            and self._get_upgrade() == b"websocket"
            and self._is_free()
            and not any(name in (b"content-length", b"transfer-encoding") for name, _ in self.headers)
        )

    def _become_socket(self, early: int) -> None:
        """Hand the connection on, whose client has sent `early` bytes before it could know that it may."""
        if early:
            self._is_socket = False
            self._fail(400, "frames came before the answer to the upgrade; wait for it")
        self._unset_keepalive_if_required()
        self.handle_websocket_upgrade()

    def _check_framing(self) -> None:
        """Refuse what a proxy before us may read in another way."""
        version = self.parser.get_http_version()
        hosts = 0
        for name, value in self.headers:
            if name == b"host":
                hosts += 1
            elif name == b"transfer-encoding" and (value.lower() != b"chunked" or version != "1.1"):
                self._fail(501, "this Transfer-Encoding is not read here; send chunked over HTTP/1.1, or Content-Length")
            elif name == b"expect":
                if value.lower() != b"100-continue":
                    self._fail(417, "this expectation is not met here; leave Expect out")
                self.expect_100_continue = True
        if version not in ("1.1", "1.0"):
            self._fail(505, f"HTTP/{version} is not spoken here; use HTTP/1.1")
        if hosts > 1 or (hosts == 0 and version == "1.1"):
            self._fail(400, f"the request has {hosts} Host headers; send one")
        if self.parser.get_method() == b"CONNECT":
            self._fail(405, "this service is no proxy; CONNECT is not taken")

    def _fail(self, status: int, message: str) -> None:
        self._wrong = (status, message)
        raise Malformed

    def _start_over_without_upgrade(self) -> None:
        """Go on with a parser that has not seen `Upgrade`: the old one takes the body for another protocol or request."""
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn sets its own
        kept = [(name, value) for name, value in self.headers if name not in (b"upgrade", b"connection")]
        if not self.cycle.keep_alive:
            kept.append((b"connection", b"close"))
        lines = b"".join(b"%s: %s\r\n" % pair for pair in kept)
        self.parser.feed_data(b"%s / HTTP/1.1\r\n%s\r\n" % (self.scope["method"].encode(), lines))

    def _refuse(self) -> None:
        """Answer what is no request, if nothing else is being answered, and close."""
        self._is_refused = True
        if self.transport.is_closing():
            return
        scope: MutableMapping[str, Any] = cast(Any, self.scope) or {}
        scope.setdefault("path", getattr(self, "url", b"").partition(b"?")[0].decode("latin-1"))
        headers, body = self._refuse_with(scope, *self._wrong)
        cycle = self.cycle
        is_answering = cycle is not None and not cycle.response_complete
        if is_answering and not self._is_in_body:  # behind requests that are whole: those are answered first
            cycle.keep_alive = False
            self.flow.pause_reading()
            return
        if not is_answering or not (cycle.response_started or self.pipeline):
            lines = b"".join(b"%s: %s\r\n" % pair for pair in headers)
            self.transport.write(b"".join([STATUS_LINE[self._wrong[0]], lines, b"connection: close\r\n\r\n", body]))
        if is_answering:
            cycle.disconnected = True
        self.transport.close()

    def _start_header_timer(self) -> None:
        self._header_timer = self.loop.call_later(HEADER_SECONDS, self._too_slow)

    def _too_slow(self) -> None:
        self._header_timer = None
        if self.cycle is not None and not self.cycle.response_complete:  # pipelined behind a request in flight
            self._start_header_timer()
        elif not self.transport.is_closing():
            self.transport.close()

    def _stop_timer(self, name: str) -> None:
        timer = getattr(self, name)
        if timer is not None:
            timer.cancel()
            setattr(self, name, None)


def _plainly(scope: MutableMapping[str, Any], status: int, message: str) -> tuple[list[tuple[bytes, bytes]], bytes]:
    body = message.encode()
    return [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(body))], body
