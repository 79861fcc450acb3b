"""Messages over a Unix socket of packets (SOCK_SEQPACKET), with descriptors. Knows packets; never what messages mean.

All that is said in one turn of the event loop goes in as few packets as hold it. Where the other side does not read, what
is to be sent waits here, and nothing more is read from it until that is gone.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import msgspec
from msgspec import Struct

from maasdam.serving.hosts.memory import Borrowed, lent
from maasdam.serving.hosts.wire import INLINE_BYTES, Buffer, Garbled, Spilled

Message = TypeVar("Message")

PACKET_BYTES = 96 * 1024
"""A packet takes no further message from there."""
MOST_PACKET_BYTES = PACKET_BYTES + 2 * INLINE_BYTES
"""No packet is longer."""
MOST_MESSAGES = 1024
"""In one packet."""
MOST_HANDLES = 32
"""Descriptors with one packet; the system passes 253 at most."""
_HEAD = struct.Struct(">BH")
_LIST = 0xDC
"""How msgpack begins a list of up to 65,535."""
_SCM_BYTES = socket.CMSG_SPACE(MOST_HANDLES * array.array("i").itemsize)


class HostChannel(Generic[Message]):
    """One connection, in one event loop. `heard` is told of each message that comes, and of the memory beside it."""

    def __init__(
        self,
        sock: socket.socket,
        kinds: Any,
        heard: Callable[[Message, Borrowed | None], None],
        lost: Callable[[str], None],
        *,
        most_bytes: int = 1 << 62,
        trusts: bool = False,
    ) -> None:
        """`kinds`: the union of what may come. `lost` is told once, why nothing more will.

        `most_bytes` are taken of passed memory; with `trusts` it is looked at in place.
        """
        sock.setblocking(False)
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._heard = heard
        self._lost: Callable[[str], None] | None = lost
        self._most_bytes = most_bytes
        self._trusts = trusts
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(list[kinds])
        self._decoder_of_one = msgspec.msgpack.Decoder(kinds)
        self._buffer = bytearray(MOST_PACKET_BYTES + 1)
        self._packet = bytearray(_HEAD.size)
        self._count = 0
        self._handles: list[int] = []
        self._unsent: deque[tuple[bytearray, list[int]]] = deque()
        self._is_flushing = self._is_stuck = False
        self.unsent_bytes = 0
        """That wait for the other side to read, passed memory left out."""
        for size in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            sock.setsockopt(socket.SOL_SOCKET, size, 2 * MOST_PACKET_BYTES)
        self._loop.add_reader(sock, self._read)

    @property
    def is_open(self) -> bool:
        """Whether messages may still come."""
        return self._lost is not None

    def fileno(self) -> int:
        """Of the socket."""
        return self._sock.fileno()

    def send(self, message: Struct, body: Sequence[Buffer] = ()) -> None:
        """At the end of this turn. `body` goes as passed memory: the message has a field `memory` that says which."""
        if self._lost is None:
            return
        if self._count >= MOST_MESSAGES or len(self._packet) >= PACKET_BYTES or len(self._handles) >= MOST_HANDLES - 1:
            self._seal()
        if body:
            message.memory = len(self._handles)  # type: ignore[attr-defined]  # only messages that have it come with a body
            self._handles.append(lent(body))
        begin = len(self._packet)
        self._encoder.encode_into(message, self._packet, begin)
        if len(self._packet) - begin > 2 * INLINE_BYTES:
            self._spill(begin)
        self._count += 1
        if not self._is_flushing:
            self._is_flushing = True
            self._loop.call_soon(self._flush)

    def close(self) -> None:
        """What was said before is sent, if the other side takes it at once."""
        if self._lost is not None:
            self._flush()
            self._end()

    def _spill(self, begin: int) -> None:
        """A long message goes as passed memory; what it has passed already, stays beside it."""
        handle = lent([bytes(self._packet[begin:])])
        del self._packet[begin:]
        self._encoder.encode_into(Spilled(len(self._handles)), self._packet, begin)
        self._handles.append(handle)

    def _seal(self) -> None:
        if not self._count:
            return
        _HEAD.pack_into(self._packet, 0, _LIST, self._count)
        self._unsent.append((self._packet, self._handles))
        self.unsent_bytes += len(self._packet)
        self._packet, self._count, self._handles = bytearray(_HEAD.size), 0, []

    def _flush(self) -> None:
        self._is_flushing = False
        self._seal()
        while self._unsent:
            packet, handles = self._unsent[0]
            beside = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", handles))] if handles else []
            try:
                self._sock.sendmsg([packet], beside, socket.MSG_NOSIGNAL) if beside else self._sock.send(packet)
            except BlockingIOError:
                self._wait_for_room()
                return
            except OSError as error:
                self._hang_up(f"it can't be reached: {error}")
                return
            self._unsent.popleft()
            self.unsent_bytes -= len(packet)
            _close(handles)
        if self._is_stuck and self._lost is not None:
            self._is_stuck = False
            self._loop.remove_writer(self._sock)
            self._loop.add_reader(self._sock, self._read)

    def _wait_for_room(self) -> None:
        if not self._is_stuck:
            self._is_stuck = True
            self._loop.remove_reader(self._sock)
            self._loop.add_writer(self._sock, self._flush)

    def _read(self) -> None:
        try:
            size, beside, flags, _ = self._sock.recvmsg_into([self._buffer], _SCM_BYTES, socket.MSG_CMSG_CLOEXEC)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._hang_up(f"it hung up: {error}")
            return
        handles = _handles(beside) if beside else []
        try:
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                raise Garbled("a packet that is too long")
            if not size:
                self._hang_up("it hung up")
                return
            self._take(bytes(memoryview(self._buffer)[:size]), handles)
        except (Garbled, msgspec.MsgspecError, RecursionError, MemoryError, ValueError, IndexError) as error:
            self._hang_up(f"it does not speak as it should: {error}")
        finally:
            _close(handles)

    def _take(self, packet: bytes, handles: list[int]) -> None:
        for message in self._decoder.decode(packet):
            if isinstance(message, Spilled):
                spilled = Borrowed(handles[message.memory], self._most_bytes, False)
                message = self._decoder_of_one.decode(spilled.whole())
            index = getattr(message, "memory", -1)
            memory = Borrowed(handles[index], self._most_bytes, self._trusts) if index >= 0 else None
            self._heard(message, memory)
            if self._lost is None:
                return

    def _hang_up(self, why: str) -> None:
        lost = self._lost
        if lost is not None:
            self._end()
            lost(why)

    def _end(self) -> None:
        self._lost = None
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        for _, handles in self._unsent:
            _close(handles)
        _close(self._handles)
        self._unsent.clear()
        self._handles = []
        self._sock.close()


def _handles(beside: Sequence[tuple[int, int, bytes]]) -> list[int]:
    found: list[int] = []
    for level, kind, data in beside:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers = array.array("i")
            numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
            found.extend(numbers)
    return found


def _close(handles: Sequence[int]) -> None:
    for handle in handles:
        with contextlib.suppress(OSError):
            os.close(handle)


def peers_user(sock: socket.socket) -> int:
    """The user id of the process at the other end."""
    return int(struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1])
