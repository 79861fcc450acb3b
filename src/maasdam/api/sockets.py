"""uvicorn's websocket with what it lacks. Knows frames and flow; never what messages say.

Added: a client that reads nothing is not read either, and cut off after a while; what a message may be made of is bounded; one
that is too large is told so before the connection goes; at the service's end whoever speaks may finish (see `realtime`).
No compression: a small frame would be a large message, and base64 of sound is none that packs well.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

MESSAGE_BYTES = 4 * 1024 * 1024
"""Of the largest message: a minute of 24 kHz in base64."""
FRAGMENTS = 1024
"""Frames of one message."""
STALLED_SECONDS = 30.0
"""A client that takes nothing for so long is cut off."""
LINGER_SECONDS = 5.0
"""So long what a client still sends is thrown away, so that it gets to read why it is left."""
WRITE_BYTES = 256 * 1024
"""What may wait to be read by a client before nothing more is written."""


class Socket(WebSocketsSansIOProtocol):
    """Give this class to uvicorn as `ws`, see `SOCKET_OPTIONS`."""

    _stall_timer: asyncio.TimerHandle | None = None
    _came_at = 0.0
    """When the client sent something last, on the loop's clock."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The HTTP connection is handed on."""
        super().connection_made(transport)
        self.transport.set_write_buffer_limits(WRITE_BYTES)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever reads or writes."""
        self._stop_stall_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Frames; after a refusal nothing is kept of them."""
        self._came_at = self.loop.time()
        if not self.transport.is_closing():
            super().data_received(data)

    def keepalive_timeout(self) -> None:
        """No answer to a ping came: the client is gone, unless it is not read now, or its answer is behind what it sends."""
        if self.read_paused or self._came_at > self.ping_sent_at:
            self.pong_timer = None
            self.schedule_ping()
        else:
            super().keepalive_timeout()

    def handle_cont(self, event: Any) -> None:
        """A further frame of a message."""
        if event.data or event.fin:
            if len(self.frames) >= FRAGMENTS:
                self.conn.fail(1008, f"a message of more than {FRAGMENTS} frames")
                self.handle_parser_exception()
                return
            super().handle_cont(event)

    def handle_parser_exception(self) -> None:
        """Say what is wrong; whoever reads hears that the client is gone."""
        if self.close_timer is not None or self.transport.is_closing():
            return
        sent = self.conn.close_sent
        code, reason = (1002, "") if sent is None else (sent.code, sent.reason)
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self.transport.write(b"".join(self.conn.data_to_send()))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.close_sent = True
        self.stop_keepalive()
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()
        self.close_timer = self.loop.call_later(LINGER_SECONDS, self.transport.close)

    def pause_writing(self) -> None:
        """The client is not reading: what it sends, pings say, would be answered into memory."""
        super().pause_writing()
        self.transport.pause_reading()
        self._stall_timer = self.loop.call_later(STALLED_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """The client reads again."""
        super().resume_writing()
        self._stop_stall_timer()
        if not self.read_paused and not self.transport.is_closing():
            self.transport.resume_reading()

    async def receive(self) -> Any:
        """The next message, once what was sent is read."""
        await self.writable.wait()
        return await super().receive()

    async def send(self, message: Any) -> None:
        """Send, unless all is said. Raises ClientDisconnected."""
        if self.close_sent and self.initial_response is None:
            raise ClientDisconnected
        await super().send(message)

    def shutdown(self) -> None:
        """The service stops: who speaks is told by who listens, who has a look at it all the time; others are told here."""
        if self.close_sent or not self.handshake_complete:
            super().shutdown()

    def _stop_stall_timer(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None


SOCKET_OPTIONS: dict[str, Any] = {
    "ws": Socket,
    "ws_max_size": MESSAGE_BYTES,
    "ws_per_message_deflate": False,
    "ws_ping_interval": 20.0,
    "ws_ping_timeout": 20.0,
}
"""For uvicorn's configuration."""
