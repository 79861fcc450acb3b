"""Messages over a Unix socket of packets (SOCK_SEQPACKET), with descriptors. Knows packets; never what messages mean.

All that is said in one turn of the event loop goes in as few packets as hold it. Where the other side does not read, what
is to be sent waits here.
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
import numpy as np
from msgspec import Struct

from maasdam.errors import TooLarge
from maasdam.serving.hosts.memory import Borrowed, Tail, lent
from maasdam.serving.hosts.wire import ALIGNED, TAIL_BYTES, Buffer, Garbled, Memory, Spilled

Message = TypeVar("Message")

PACKET_BYTES = 96 * 1024
"""A packet takes no further message from there."""
LONGEST_MESSAGE = 64 * 1024
"""Without its memory; a longer one is passed as memory itself."""
LONGEST_SPILLED = 32 * 1024 * 1024
"""No message is longer."""
MOST_PACKET_BYTES = PACKET_BYTES + LONGEST_MESSAGE + TAIL_BYTES + 4096
"""No packet is longer."""
MOST_MESSAGES = 256
"""In one packet; the system takes 1,024 buffers at once."""
MOST_HANDLES = 32
"""Descriptors with one packet; the system passes 253 at most."""
LARGE_BYTES = 16 * 1024
"""A packet from there is read into memory of its own, a smaller one copied."""
_HEAD = struct.Struct(">IBH")
"""How many bytes the messages have, and how msgpack begins a list of so many."""
_LIST = 0xDC
_TAKES = int(getattr(socket, "MSG_CMSG_CLOEXEC", 0))  # Linux has it, and hosts need Linux
_CUT = int(socket.MSG_TRUNC | socket.MSG_CTRUNC)
_LOOKS = int(socket.MSG_PEEK | socket.MSG_TRUNC)
_SENDS = int(getattr(socket, "MSG_NOSIGNAL", 0))
_SCM_BYTES = socket.CMSG_SPACE(MOST_HANDLES * array.array("i").itemsize)


class HostChannel(Generic[Message]):
    """One connection, in one event loop. `heard` is told of each message that comes, and of the memory beside it."""

    def __init__(
        self,
        sock: socket.socket,
        kinds: Any,
        heard: Callable[[Message, Memory], None],
        lost: Callable[[str], None],
        *,
        most_bytes: int = 1 << 62,
        trusts: bool = False,
        waits: bool = False,
    ) -> None:
        """`kinds`: the union of what may come. `lost` is told once, why nothing more will.

        `most_bytes` are taken of passed memory; with `trusts` it is looked at in place. `waits`: where the other side
        does not read, nothing more is read from it until it does; of two sides only one may.
        """
        sock.setblocking(False)
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._heard = heard
        self._lost: Callable[[str], None] | None = lost
        self._most_bytes = most_bytes
        self._trusts = trusts
        self._waits = waits
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(list[kinds])
        self._decoder_of_one = msgspec.msgpack.Decoder(kinds)
        self._buffer = memoryview(bytearray(MOST_PACKET_BYTES + 1))
        self._is_large = False
        self._packet = bytearray(_HEAD.size)
        self._count = 0
        self._tail: list[Buffer] = []
        self._tail_bytes = 0
        self._handles: list[int] = []
        self._unsent: deque[tuple[list[Buffer], int, list[int]]] = deque()
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

    def send(
        self, message: Struct, body: Sequence[Buffer] = (), size: int = 0, handle: int = -1, at_once: bool = False
    ) -> None:
        """At the end of this turn, or `at_once`, where nothing will follow in it: a turn of the loop less.

        `body`, of so many bytes, is the message's memory, or the descriptor `handle`, which is closed here: the message has
        fields that say where it is. Raises TooLarge, and what encoding it raises; nothing of it is sent then.
        """
        if self._lost is None:
            _close([handle])
            return
        is_full = len(self._packet) + self._tail_bytes >= PACKET_BYTES or len(self._tail) >= MOST_MESSAGES
        if is_full or self._count >= MOST_MESSAGES or len(self._handles) >= MOST_HANDLES - 1:
            self._seal()
        begin, tail, handles, gap = len(self._packet), len(self._tail), len(self._handles), 0
        try:
            if handle >= 0 or size > TAIL_BYTES or len(body) > MOST_MESSAGES:
                message.memory = handles  # type: ignore[attr-defined]  # only messages that have it come with a body
                self._handles.append(lent(body) if handle < 0 else handle)
                size = 0
            elif size:
                gap = -self._tail_bytes % ALIGNED
                if gap:
                    self._tail.append(bytes(gap))
                message.base = self._tail_bytes + gap  # type: ignore[attr-defined]  # likewise
                self._tail.extend(body)
            self._encoder.encode_into(message, self._packet, begin)
            if len(self._packet) - begin > LONGEST_MESSAGE:
                self._spill(begin)
        except BaseException:  # half of it is there; what comes next must not stand behind that
            _close(self._handles[handles:])
            del self._packet[begin:], self._tail[tail:], self._handles[handles:]
            raise
        self._tail_bytes += gap + size
        self._count += 1
        if at_once and not self._is_stuck:
            self._flush()
        elif not self._is_flushing:
            self._is_flushing = True
            self._loop.call_soon(self._flush)

    def close(self) -> None:
        """What was said before is sent, if the other side takes it at once."""
        if self._lost is not None:
            self._flush()
            self._end()

    def _spill(self, begin: int) -> None:
        """A long message goes as passed memory; what it has passed already, stays beside it."""
        said = bytes(self._packet[begin:])
        del self._packet[begin:]
        if len(said) > LONGEST_SPILLED:
            raise TooLarge(f"a message of {len(said):,} bytes beside its tensors, to or from another process")
        handle = lent([said])
        self._encoder.encode_into(Spilled(len(self._handles)), self._packet, begin)
        self._handles.append(handle)

    def _seal(self) -> None:
        if not self._count:
            return
        size = len(self._packet)
        _HEAD.pack_into(self._packet, 0, size - 4, _LIST, self._count)
        gap = -size % ALIGNED if self._tail else 0
        packet: list[Buffer] = [self._packet, bytes(gap), *self._tail] if gap else [self._packet, *self._tail]
        size += gap + self._tail_bytes
        self._unsent.append((packet, size, self._handles))
        self.unsent_bytes += size
        self._packet, self._count, self._handles = bytearray(_HEAD.size), 0, []
        self._tail, self._tail_bytes = [], 0

    def _flush(self) -> None:
        self._is_flushing = False
        self._seal()
        while self._unsent:
            packet, size, handles = self._unsent[0]
            beside = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", handles))] if handles else []
            try:
                if handles or size >= LARGE_BYTES:
                    self._sock.sendmsg(packet, beside, _SENDS)
                else:
                    self._sock.send(b"".join(packet), _SENDS)
            except BlockingIOError:
                self._wait_for_room()
                return
            except OSError as error:
                self._hang_up(f"it can't be reached: {error}")
                return
            self._unsent.popleft()
            self.unsent_bytes -= size
            _close(handles)
        if self._is_stuck and self._lost is not None:
            self._is_stuck = False
            self._loop.remove_writer(self._sock)
            if self._waits:
                self._loop.add_reader(self._sock, self._read)

    def _wait_for_room(self) -> None:
        if not self._is_stuck:
            self._is_stuck = True
            if self._waits:
                self._loop.remove_reader(self._sock)
            self._loop.add_writer(self._sock, self._flush)

    def _read(self) -> None:
        try:
            buffer = self._room() if self._is_large else self._buffer
            size, beside, flags, _ = self._sock.recvmsg_into([buffer], _SCM_BYTES, _TAKES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._hang_up(f"it hung up: {error}")
            return
        handles = _handles(beside) if beside else []
        try:
            if flags & _CUT:
                raise Garbled("a packet that is too long")
            if not size:
                self._hang_up("")
                return
            self._is_large = size >= LARGE_BYTES
            packet = buffer[:size] if buffer is not self._buffer else memoryview(bytes(buffer[:size]))
            self._take(packet, handles)
        except Exception as error:  # also where this process lacks memory or descriptors: what else the packet held is lost
            self.hang_up(error)
        finally:
            _close(handles)

    def _room(self) -> memoryview:
        """Where to read the next packet, if that is a large one, as the last was."""
        size = self._sock.recv_into(self._buffer, 1, _LOOKS)
        return np.empty(size, np.uint8).data if LARGE_BYTES <= size <= MOST_PACKET_BYTES else self._buffer

    def _take(self, packet: memoryview, handles: list[int]) -> None:
        end = 4 + int.from_bytes(packet[:4], "big")
        if end > len(packet):
            raise Garbled("a packet that is cut off")
        tail = end + -end % ALIGNED
        for message in self._decoder.decode(packet[4:end]):
            if isinstance(message, Spilled):
                spilled = Borrowed(handles[message.memory], LONGEST_SPILLED, False)
                message = self._decoder_of_one.decode(spilled.bytes(0, spilled.size))
            memory: Memory
            index = getattr(message, "memory", -1)
            if index >= 0:
                memory = Borrowed(handles[index], self._most_bytes, self._trusts)
            else:
                base = getattr(message, "base", 0)
                if base < 0:
                    raise Garbled("memory before the packet's end")
                memory = Tail(packet, tail + base)
            self._heard(message, memory)
            if self._lost is None:
                return

    def hang_up(self, error: Exception) -> None:
        """What came later turned out not to be as it should."""
        self._hang_up(f"it does not speak as it should: {error}")

    def _hang_up(self, why: str) -> None:
        lost = self._lost
        if lost is not None:
            self._end()
            lost(why)

    def _end(self) -> None:
        self._lost = None
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        for _, _, handles in self._unsent:
            _close(handles)
        _close(self._handles)
        self._unsent.clear()
        self._handles = []
        self._packet, self._tail, self._count = bytearray(), [], 0
        self._buffer = memoryview(b"")  # whoever heard of this may keep it for long, in a circle that Python sees late
        self._sock.close()


def packed(*messages: Struct) -> bytes:
    """A packet of messages without memory."""
    said = b"".join(map(msgspec.msgpack.encode, messages))
    return _HEAD.pack(_HEAD.size - 4 + len(said), _LIST, len(messages)) + said


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
