"""Headers that are made to cost time: each is walked through once, however many of its parts ask for it."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from maasdam.tasks import chunked, containers

CHUNKS = 4_000


def test_a_wav_of_sounds_without_a_size_is_walked_through_twice_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    heads = 0
    head = chunked._head

    def counted(*asked: Any) -> Any:
        nonlocal heads
        heads += 1
        return head(*asked)

    monkeypatch.setattr(chunked, "_head", counted)
    form = b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, 16000, 32000, 2, 16)
    chunks = form + (b"data" + bytes(4)) * CHUNKS
    mended = chunked.mended(b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks)
    assert mended.endswith(b"data" + bytes(4)), "a sound of no samples, as it says"
    assert heads <= 2 * CHUNKS + 4


class Watched(bytes):
    """Bytes that add up how many of them were searched."""

    searched = 0

    def rfind(self, sub: Any, start: Any = None, end: Any = None, /) -> int:
        self.searched += (len(self) if end is None else end) - (start or 0)
        return super().rfind(sub, start, end)

    find = rfind


def _box(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), name) + content


def _track(coding: bytes, sizes: bytes) -> bytes:
    described = _box(b"stsd", struct.pack(">III4s", 0, 1, 16, coding) + bytes(8))
    return _box(b"trak", _box(b"mdia", _box(b"minf", _box(b"stbl", described + sizes))))


def test_an_mp4_of_many_tables_is_walked_through_once() -> None:
    one = _box(b"stsz", struct.pack(">III", 0, 1, 0))
    data = Watched(_box(b"moov", _track(b"mp4a", one * CHUNKS)))
    containers._check_boxes(data)
    assert data.searched <= len(data)


def test_how_a_track_is_coded_is_its_own() -> None:
    many = _box(b"stsz", struct.pack(">III", 0, 1, 2_000_000))  # as many samples of one byte as follow
    sound = bytes(2_000_000)
    containers._check_boxes(_box(b"moov", _track(b"sowt", many)) + _box(b"mdat", sound))
    with pytest.raises(containers.InvalidPayload, match="promise 2,000,000 packets"):
        containers._check_boxes(_box(b"moov", _track(b"sowt", many) + _track(b"mp4a", many)) + _box(b"mdat", sound))
