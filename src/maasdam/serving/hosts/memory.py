"""Memory that is passed from process to process by its descriptor (memfd_create(2)). Knows bytes; never whose they are.

It is sealed before it is passed: what is mapped can't shrink under whoever reads it.
"""

from __future__ import annotations

import fcntl
import math
import mmap
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from maasdam.serving.hosts.wire import Buffer, Garbled

SEAL, SHRINK, GROW, WRITE = 1, 2, 4, 8
"""F_SEAL_... of fcntl(2), which Python names on Linux alone; there alone is any of this called."""
MOST_BUFFERS = 512
"""Of one call of writev(2)."""


def lent(body: Sequence[Buffer]) -> int:
    """A descriptor of memory that holds these bytes, one after the other, and can't be changed any more."""
    handle = os.memfd_create("maasdam", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        left = [memoryview(one).cast("B") for one in body if memoryview(one).nbytes]
        while left:
            written = os.writev(handle, left[:MOST_BUFFERS])
            while left and written >= left[0].nbytes:
                written -= left.pop(0).nbytes
            if written:
                left[0] = left[0][written:]
        fcntl.fcntl(handle, fcntl.F_ADD_SEALS, SEAL | SHRINK | GROW | WRITE)
    except BaseException:
        os.close(handle)
        raise
    return handle


class Tail:
    """The end of a packet that came, which is this process's own."""

    __slots__ = ("_base", "_packet")

    def __init__(self, packet: Buffer, base: int) -> None:
        self._packet = packet
        self._base = base

    def array(self, at: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
        """A tensor at an offset in bytes. Raises ValueError."""
        return np.frombuffer(self._packet, dtype, math.prod(shape), self._base + at).reshape(shape)

    def bytes(self, at: int, size: int) -> bytes:
        """So many bytes. Raises Garbled."""
        data = bytes(memoryview(self._packet)[self._base + at : self._base + at + size])
        if len(data) != size:
            raise Garbled(f"{size:,} bytes where a packet has {len(data):,}")
        return data


class Borrowed:
    """A descriptor that came. `is_trusted`: tensors are looked at in place; else they are copied out, and then believed.

    Close it; tensors stay.
    """

    def __init__(self, handle: int, most_bytes: int, is_trusted: bool) -> None:
        """Raises Garbled for what is no memory, or more of it than `most_bytes`."""
        try:
            if not fcntl.fcntl(handle, fcntl.F_GET_SEALS) & SHRINK:
                raise Garbled("memory that may shrink")
        except OSError as error:
            raise Garbled("a descriptor that is no memory") from error
        self.size = os.fstat(handle).st_size
        self._handle = handle
        self._left = most_bytes
        self._map = mmap.mmap(handle, self.size, prot=mmap.PROT_READ) if is_trusted and self.size else None

    def array(self, at: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
        """A tensor at an offset in bytes. Raises Garbled."""
        size = math.prod(shape) * dtype.itemsize
        if at < 0 or at + size > self.size or len(shape) > 64:
            raise Garbled(f"a tensor of {size:,} bytes where memory has {self.size:,}")
        if self._map is not None:
            return np.frombuffer(self._map, dtype, math.prod(shape), at).reshape(shape)
        self._take(size)
        made = np.empty(shape, dtype)
        self._read(made.data.cast("B") if size else memoryview(b""), at)
        return made

    def bytes(self, at: int, size: int) -> bytes:
        """So many bytes. Raises Garbled."""
        if at < 0 or size < 0 or at + size > self.size:
            raise Garbled(f"{size:,} bytes where memory has {self.size:,}")
        self._take(size)
        data = bytearray(size)
        self._read(memoryview(data), at)
        return bytes(data)

    def kept(self) -> Borrowed:
        """The same, to be closed by whoever keeps it."""
        return Borrowed(os.dup(self._handle), self._left, self._map is not None)

    def close(self) -> None:
        """Of what was kept."""
        os.close(self._handle)

    def _take(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise Garbled("more bytes than are taken")

    def _read(self, into: memoryview, at: int) -> None:
        """It can't block: it is memory."""
        while into.nbytes:
            count = os.preadv(self._handle, [into], at)
            if not count:
                raise Garbled("memory that ends before its tensors do")
            into, at = into[count:], at + count
