"""Opening a zip archive nobody vouched for.

Knows the zip format and the tricks played with it: bombs, overlapping or doubled entries, names that climb out,
files hidden before or behind the archive. Refuses to know what the entries mean.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from maasdam.errors import InvalidModel, UnsafeModel

MAX_ENTRIES = 50_000
"""A large model has ten thousand: one a weight."""
MAX_DIRECTORY_BYTES = 16 * 1024 * 1024
"""The list of entries, which is read whole before anything else."""
MAX_RATIO = 100
"""Unpacked over packed, of a whole archive beyond FREE_BYTES."""
FREE_BYTES = 16 * 1024 * 1024
"""Unpacked sizes below this are no bomb whatever their ratio."""
ZIP_MAGIC = b"PK\x03\x04"
_END_RECORD = struct.Struct("<4sHHHHIIH")
_LOCATOR = struct.Struct("<4sIQI")
_END_RECORD_64 = struct.Struct("<4sQHHIIQQQQ")
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}


class Archive:
    """An opened zip whose structure was checked. Names are unique, also when case is ignored."""

    def __init__(self, path: Path, zipped: zipfile.ZipFile) -> None:
        self.path = path
        self._zip = zipped
        self.sizes: dict[str, int] = {info.filename: info.file_size for info in zipped.infolist()}
        """Declared unpacked bytes by entry name; folders are left out."""
        for name in [name for name in self.sizes if name.endswith("/")]:
            del self.sizes[name]

    def read(self, name: str, limit: int) -> bytes:
        """The unpacked bytes of an entry of at most `limit` bytes, whatever its header declares."""
        if self.sizes[name] > limit:
            raise InvalidModel(f"{self.path}: {name} has {self.sizes[name]:,} bytes where at most {limit:,} are taken")
        with _reading(self.path, name), self._zip.open(name) as stream:
            data = stream.read(limit + 1)
            if len(data) != self.sizes[name]:
                raise InvalidModel(f"{self.path}: {name} unpacks to other than the {self.sizes[name]:,} bytes it declares")
            return data

    @contextmanager
    def stream(self, name: str) -> Iterator[IO[bytes]]:
        """A seekable stream of an entry that is stored as it is (seeking in a packed one unpacks it again and again).

        Damage that shows while it is read raises InvalidModel.
        """
        if self._zip.getinfo(name).compress_type != zipfile.ZIP_STORED:
            raise InvalidModel(f"{self.path}: {name} is compressed, which model files aren't; save the model again")
        with _reading(self.path, name), self._zip.open(name) as stream:
            yield stream


@contextmanager
def open_archive(source: Path | IO[bytes], label: Path) -> Iterator[Archive]:
    """Open and check a zip; `label` names it in errors. Raises InvalidModel when broken, UnsafeModel when it plays tricks."""
    with _opened(source) as stream:
        _check_end(stream, label)
        try:
            zipped = zipfile.ZipFile(stream)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError) as error:
            raise InvalidModel(f"{label} is not a whole zip archive ({error}); fetch or export it again") from error
        with zipped:
            _check(zipped, stream.seek(0, io.SEEK_END), label)
            yield Archive(label, zipped)


@contextmanager
def _opened(source: Path | IO[bytes]) -> Iterator[IO[bytes]]:
    if isinstance(source, Path):
        with source.open("rb") as stream:
            yield stream
    else:
        yield source


def _check_end(stream: IO[bytes], label: Path) -> None:
    """The archive ends with its end record, whose list of entries is of sane size: that list is read whole at once."""
    size = stream.seek(0, io.SEEK_END)
    stream.seek(max(size - _END_RECORD.size - _LOCATOR.size, 0))
    tail = stream.read()
    end = tail[-_END_RECORD.size :]
    if len(end) < _END_RECORD.size or not end.startswith(b"PK\x05\x06"):
        raise InvalidModel(
            f"{label} is not a whole zip archive (its end is missing or followed by other bytes); fetch it again"
        )
    directory = _END_RECORD.unpack(end)[5]
    if len(tail) == _LOCATOR.size + _END_RECORD.size and tail.startswith(b"PK\x06\x07"):
        stream.seek(min(_LOCATOR.unpack(tail[: _LOCATOR.size])[2], size))
        record = stream.read(_END_RECORD_64.size)
        if len(record) < _END_RECORD_64.size or not record.startswith(b"PK\x06\x06"):
            raise InvalidModel(f"{label} is not a whole zip archive (its end record is damaged); fetch it again")
        directory = _END_RECORD_64.unpack(record)[8]
    if directory > min(size, MAX_DIRECTORY_BYTES):
        raise UnsafeModel(f"{label} has a list of entries of {directory:,} bytes: refused as a zip bomb")


def _check(zipped: zipfile.ZipFile, size: int, label: Path) -> None:
    infos = zipped.infolist()
    if len(infos) > MAX_ENTRIES:
        raise UnsafeModel(f"{label} has {len(infos):,} entries, over {MAX_ENTRIES:,}: refused as a zip bomb")
    unpacked = sum(info.file_size for info in infos)
    packed = sum(info.compress_size for info in infos)
    if unpacked > max(FREE_BYTES, MAX_RATIO * size):
        raise UnsafeModel(f"{label} unpacks from {size:,} to {unpacked:,} bytes, over {MAX_RATIO} times: refused as a zip bomb")
    if packed > size:
        raise UnsafeModel(f"{label} has overlapping entries: refused as a zip bomb")
    # Another reader of the same bytes (PyTorch's) may see other entries: allow nothing the two could disagree on.
    if _has_other_bytes(zipped, size):
        raise UnsafeModel(f"{label} has bytes before or behind its archive; save the model again")
    seen: set[str] = set()
    for info in infos:
        name = info.filename
        if name != info.orig_filename or "\\" in name or name.startswith("/") or ".." in name.split("/"):
            raise UnsafeModel(f"{label} has an entry named {info.orig_filename!r}, which leaves the archive; refused")
        if name.lower() in seen:
            raise UnsafeModel(f"{label} has two entries named {name!r}; refused, since readers differ in which one they see")
        seen.add(name.lower())
        if info.compress_type not in _METHODS or info.flag_bits & 0x1:
            raise InvalidModel(f"{label}: {name} is encrypted or packed in a way model files aren't; save the model again")
        if info.compress_type == zipfile.ZIP_STORED and info.file_size != info.compress_size:
            raise InvalidModel(
                f"{label}: {name} declares {info.file_size:,} bytes and stores {info.compress_size:,}; save it again"
            )


def _has_other_bytes(zipped: zipfile.ZipFile, size: int) -> bool:
    """Whether anything lies before the first entry, behind the end record, or the end record points elsewhere."""
    infos = zipped.infolist()
    assert zipped.fp is not None
    zipped.fp.seek(max(size - _END_RECORD.size, 0))
    last = zipped.fp.read(_END_RECORD.size)
    if len(last) < _END_RECORD.size:
        return True
    magic, _, _, _, count, _, directory, comment_bytes = _END_RECORD.unpack(last)
    return (
        magic != b"PK\x05\x06"
        or comment_bytes != 0
        or count not in (len(infos), 0xFFFF)  # all ones: the number stands in the zip64 record
        or directory not in (zipped.start_dir, 0xFFFFFFFF)
        or (bool(infos) and min(info.header_offset for info in infos) != 0)
    )


@contextmanager
def _reading(path: Path, name: str) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, UnicodeDecodeError) as error:
        raise InvalidModel(f"{path}: {name} is damaged ({error}); fetch or export the model again") from error
