"""What must not be lost, on disk within one tick: append-only files in one folder, each with one writer.

Knows bytes, files and the disk; refuses to know what is written.

    file  = MAGIC, frame, frame, ...        name: when it was begun, who began it
    frame = length, CRC-32 (4 bytes each, little-endian), payload

A frame is there whole or it was never acknowledged: what a kill or a full disk left half-written is cut by whoever reads.
"""

from __future__ import annotations

import fcntl
import logging
import os
import statistics
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from zlib import crc32

from maasdam.errors import ServiceError, StorageFailure

log = logging.getLogger("maasdam.journal")

MAGIC = b"maasdam journal 1\n"
PATTERN = "*.journal"
FILE_BYTES = 8 * 1024 * 1024
"""A file that is as long is ended, and another begun."""
STEP_BYTES = 1024 * 1024
"""A file is given room in such steps: to sync what grows it takes five times as long, as the file system notes that too."""
SLOW_SECONDS = 0.001
"""A disk whose syncs take longer holds an event loop up: see `is_slow`."""
_HEAD = struct.Struct("<II")
_PAGE = 4096
"""What reaches a file whole or not at all, wherever a kill or a lost power breaks a write off."""
_SYNCS = 32
"""Judged by the quickest quarter of so many: the others may have waited for Python's lock, or for someone else's writing."""


class Journal:
    """The end of one writer. Thread-safe; files are begun as they are needed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._file: int | None = None
        self._path = folder
        self._end = 0
        self._room = 0
        """Up to where the file has been given room."""
        self._seconds: deque[float] = deque(maxlen=_SYNCS)
        self._is_closed = False
        self.is_slow = False
        """Whether appending is for a thread."""

    def append(self, payload: bytes) -> None:
        """Return once it is on disk. Raises StorageFailure, and then nothing of it is there; ServiceError once it is closed."""
        with self._lock:
            if self._is_closed:
                raise ServiceError("the journal is closed")
            try:
                file = self._open()
                frame = _HEAD.pack(len(payload), crc32(payload)) + payload
                if self._end + len(frame) > self._room:
                    self._make_room(file, len(frame))
                began = time.perf_counter()
                end = _write(file, frame, self._end)
                os.fdatasync(file)
            except OSError as error:
                self._let_go()  # what a failed sync left on the disk is not known: it is cut off, and the file not used again
                raise StorageFailure(f"the journal can't be written: {error.strerror}") from error
            self._end = end
            self._seconds.append(time.perf_counter() - began)
            if len(self._seconds) == _SYNCS:
                self.is_slow = statistics.quantiles(self._seconds, n=4)[0] > SLOW_SECONDS
                self._seconds.clear()
            if end >= FILE_BYTES:
                self._let_go()

    def close(self) -> None:
        """Let others have the file."""
        with self._lock:
            self._is_closed = True
            self._let_go()

    def _open(self) -> int:
        if self._file is not None and os.fstat(self._file).st_nlink:
            return self._file
        kept = MAGIC
        if self._file is not None:  # somebody removed it; what it held may not be anywhere else yet
            kept = os.pread(self._file, self._end, 0)
        else:
            self._path = self._folder / f"{time.time_ns():x}.{os.getpid()}.journal"
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        begun = self._path.with_suffix(".begun")  # nobody may see it without its lock, and take it for one that is over
        file = os.open(begun, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)  # until it is let go: see `is_written`
            end = _write(file, kept, 0)
            begun.rename(self._path)
            folder = os.open(self._folder, os.O_RDONLY)
            try:
                os.fsync(folder)  # or the file's name could be lost with the power
            finally:
                os.close(folder)
        except BaseException:
            os.close(file)
            raise
        self._let_go()
        self._file, self._end = file, end
        return file

    def _make_room(self, file: int, size: int) -> None:
        """As large a step as the disk has room for. Raises OSError where it has none for `size` bytes."""
        for step in (STEP_BYTES, STEP_BYTES // 16, size):
            room = max(step, size)
            try:
                os.posix_fallocate(file, self._end, room)
            except OSError:
                if step == size:
                    raise
            else:
                self._room = self._end + room
                return

    def _let_go(self) -> None:
        if self._file is not None:
            with suppress(OSError):
                os.ftruncate(self._file, self._end)
                if self._end <= len(MAGIC):  # a full disk must not be filled with files of nothing
                    self._path.unlink()
            os.close(self._file)
            self._file = None
            self._room = 0


def read(path: Path, offset: int) -> Iterator[tuple[bytes, int]]:
    """Each whole payload from `offset` on (0: from the begin) and where its frame ends. Raises StorageFailure."""
    data = _bytes_of(path, offset)
    place = 0 if offset else len(MAGIC)
    while (frame := _frame(data, place)) is not None and crc32(frame[0]) == frame[1]:
        place += _HEAD.size + len(frame[0])
        yield frame[0], offset + place


def length(path: Path, offset: int = 0) -> int:
    """Where the last frame ends that is there whole, from `offset` on, without a look at what is in it."""
    data = _bytes_of(path, offset)
    place = last = 0 if offset else len(MAGIC)
    while (frame := _frame(data, place)) is not None:
        last, place = place, place + _HEAD.size + len(frame[0])
    return offset + (last if _is_torn(data, last, place, offset) else place)


def discard(path: Path) -> None:
    """Remove a file of which all is read; one that is damaged in the midst is put aside as NAME.damaged instead."""
    end = max((end for _, end in read(path, 0)), default=len(MAGIC))
    if length(path) == end:
        path.unlink(missing_ok=True)
    else:
        log.error("%s is damaged at byte %d: what follows could not be read, and is kept as it is", path, end)
        path.rename(path.with_name(f"{path.name}.damaged"))


def _bytes_of(path: Path, offset: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise StorageFailure(f"can't read the journal {path.name}: {error.strerror}") from error


def _frame(data: bytes, place: int) -> tuple[bytes, int] | None:
    """The payload of the frame at `place` and what it should sum to; None where none is there whole."""
    if place + _HEAD.size > len(data):
        return None
    size, check = _HEAD.unpack_from(data, place)
    payload = data[place + _HEAD.size : place + _HEAD.size + size]
    return None if size == 0 or len(payload) < size else (payload, check)  # nought: room for more


def _is_torn(data: bytes, begin: int, end: int, offset: int) -> bool:
    """Whether the last frame came to the disk in part: its room was there already, so that its length says nothing.

    A write that is broken off leaves whole pages out, and nothing after it. Otherwise what had been whole was changed.
    """
    frame = _frame(data, begin)
    if frame is None or crc32(frame[0]) == frame[1] or data.count(0, end) < len(data) - end:
        return False
    first = (offset + begin) // _PAGE * _PAGE - offset
    return any(not any(data[max(page, begin) : min(page + _PAGE, end)]) for page in range(first, end, _PAGE))


def is_written(path: Path) -> bool:
    """Whether a process still writes to it, or may."""
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:  # held; or a file system without locks
        return True
    finally:
        os.close(file)
    return False


def _write(file: int, data: bytes, at: int) -> int:
    """Where it ends."""
    rest = memoryview(data)
    while rest:
        count = os.pwrite(file, rest, at)
        rest, at = rest[count:], at + count
    return at
