"""Connections passed on to another socket, byte for byte. Knows two sockets; never what is said.

gRPC takes no socket of somebody else's making: what comes to one that systemd or a supervisor holds, or to one in the file
system, goes to it through a socket of its own.
"""

from __future__ import annotations

import asyncio
from typing import cast


class Relay(asyncio.Protocol):
    """One end of a connection, in the event loop that both ends are in."""

    def __init__(self, path: str | None, other: Relay | None = None) -> None:
        """`path`: the Unix socket to pass it on to; None at that end, whose `other` is the caller's."""
        self._path = path
        self._other = other
        self._transport: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None
        self._early = b""
        """What came before the other end was there."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Somebody is here: no more is read than came with them until both ends are."""
        self._transport = cast(asyncio.Transport, transport)
        if self._path is not None:
            self._transport.pause_reading()
            self._task = asyncio.get_running_loop().create_task(self._open(self._path))

    async def _open(self, path: str) -> None:
        try:
            _, self._other = await asyncio.get_running_loop().create_unix_connection(lambda: Relay(None, self), path)
        except OSError:
            self.abort()
            return
        assert self._transport is not None
        if self._transport.is_closing():
            self._other.close()
        else:
            self._other.write(self._early)
            self._transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        """Bytes."""
        if self._other is None:
            self._early += data
        else:
            self._other.write(data)

    def write(self, data: bytes) -> None:
        """Send bytes out at this end."""
        if self._transport is not None:
            self._transport.write(data)

    def pause_writing(self) -> None:
        """This end takes no more: the other is not read."""
        if self._other is not None and self._other._transport is not None:
            self._other._transport.pause_reading()

    def resume_writing(self) -> None:
        """It takes more again."""
        if self._other is not None and self._other._transport is not None:
            self._other._transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """One end is gone: so is the other, once it has what was sent."""
        if self._other is not None:
            self._other.close()
        elif self._task is not None:
            self._task.cancel()

    def close(self) -> None:
        """Send what is left, and hang up."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.abort()
