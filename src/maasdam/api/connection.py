"""uvicorn's HTTP/1.1 connection with what it lacks. Knows sockets and clocks; never routes or bodies' meaning.

Added: headers must come within a time and a size; a client that stops reading its answer is cut off; whoever
answers a request hears at once that its client went away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADER_SECONDS = 10.0
"""A client that has not sent its headers by then is cut off."""
HEADER_BYTES = 64 * 1024
STALLED_SECONDS = 30.0
"""A client that takes nothing of its answer for so long is cut off."""
SCOPE_KEY = "maasdam.connection"


class Connection:
    """What the application sees of the connection that carries its request."""

    __slots__ = ("is_closed", "on_close")

    def __init__(self) -> None:
        self.is_closed = False
        self.on_close: Callable[[], Any] | None = None


class HttpConnection(HttpToolsProtocol):
    """Give this class to uvicorn as `http`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._connection = Connection()
        self._header_bytes = 0
        self._is_reading_headers = True
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

    def data_received(self, data: bytes) -> None:
        """Count header bytes; feed the parser."""
        if self._is_reading_headers:
            self._header_bytes += len(data)
        super().data_received(data)
        if self._is_reading_headers and self._header_bytes > HEADER_BYTES and not self.transport.is_closing():
            self.send_400_response(f"The headers are larger than {HEADER_BYTES} bytes; send less.")

    def on_message_begin(self) -> None:
        """A request's first byte."""
        super().on_message_begin()
        cast(dict[str, Any], self.scope)[SCOPE_KEY] = self._connection
        self._is_reading_headers = True
        if self._header_timer is None:
            self._start_header_timer()

    def on_headers_complete(self) -> None:
        """The headers are here; the body has clocks of its own."""
        self._is_reading_headers = False
        self._header_bytes = 0
        self._stop_timer("_header_timer")
        super().on_headers_complete()

    def pause_writing(self) -> None:
        """The client is not reading."""
        super().pause_writing()
        self._stall_timer = self.loop.call_later(STALLED_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """The client reads again."""
        super().resume_writing()
        self._stop_timer("_stall_timer")

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
