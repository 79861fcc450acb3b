"""Recordings that are kept in chunks (WAV, RF64, W64, AIFF), as pipes write them: with sizes that were never filled in.

Knows chunks and their sizes. Refuses to know samples: what it gives is a plain file whose header is true, for libsndfile.

A program that writes into a pipe can't go back to its header, so it leaves 0, 0x7FFFFFFF, 0xFFFFFFFF or something near there;
then the sound is all that follows. A size that could be one and is larger than what follows is another matter: the file was
cut off, and a transcript of half a recording would look whole.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from maasdam.errors import InvalidPayload

ENDLESS = 0x7000_0000
"""Sizes from here up are no sizes: no body that is taken holds so much (espeak writes 0x7FFFF000, sox 0x7FFFF024, …)."""
ENDLESS_64 = 1 << 60
SLACK_BYTES = 64
"""A header may count itself: so many bytes may lack before a file is called cut off."""
MOST_CHUNKS = 10_000
NAMES = frozenset({b"fmt ", b"data", b"fact", b"LIST", b"JUNK", b"junk", b"bext", b"PEAK", b"cue ", b"smpl", b"id3 ", b"ID3 "})
"""Chunks that real files have; they tell whether a writer forgot the byte that fills an odd chunk up."""
W64 = b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00"
W64_TAIL = b"\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a"
SAMPLE_BYTES = {b"fl32": 4, b"FL32": 4, b"fl64": 8, b"FL64": 8, b"alaw": 1, b"ALAW": 1, b"ulaw": 1, b"ULAW": 1}
"""Bytes of one sample, by AIFF-C's names of compressions that keep samples apart; of plain ones its bits tell."""
PLAIN = frozenset({b"NONE", b"sowt", b"twos", b"in24", b"in32", b"raw "})


@dataclass(frozen=True, slots=True)
class _Kind:
    """How one family of files lays its chunks out."""

    called: str
    order: str
    """struct's sign of byte order."""
    header: int
    """Bytes of a chunk's name and size."""
    align: int
    sound: bytes
    endless: int


_WAV = _Kind("WAV", "<", 8, 2, b"data", ENDLESS)
_WAV_BIG = _Kind("WAV", ">", 8, 2, b"data", ENDLESS)
_W64 = _Kind("W64", "<", 24, 8, b"data", ENDLESS_64)
_AIFF = _Kind("AIFF", ">", 8, 2, b"SSND", ENDLESS)


def mended(data: bytes) -> bytes:
    """The recording with a header that says what is there: WAV for RF64 and W64 too; what is none of these as it is.

    Raises InvalidPayload: cut off, no sound in it, a format of no channels.
    """
    if data[8:12] == b"WAVE" and data[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64"):
        return _wav(data, 12, _WAV_BIG if data[:4] == b"RIFX" else _WAV)
    if data[:16] == W64:
        return _wav(data, 40, _W64)
    if data[:4] == b"FORM" and data[8:12] in (b"AIFF", b"AIFC"):
        return _aiff(data)
    return data


def _wav(data: bytes, start: int, kind: _Kind) -> bytes:
    chunks = _first_chunks(data, start, kind)
    if b"data" not in chunks:
        raise InvalidPayload(f"the {kind.called} file has no sound in it (no 'data' chunk); send a whole file")
    form = bytes(chunks.get(b"fmt ", b""))
    if len(form) < 16:
        raise InvalidPayload(f"the {kind.called} file does not say how its sound is kept (no 'fmt ' chunk); send a whole file")
    _, channels, rate, _, align, bits = struct.unpack_from(f"{kind.order}HHIIHH", form)
    if channels == 0 or rate == 0 or align == 0:
        raise InvalidPayload(
            f"the WAV header says {channels} channels, {rate} samples per second and {align} bytes per sample of {bits} bits; "
            "that is no recording"
        )
    kept: list[tuple[bytes, bytes | memoryview]] = [
        (name, chunks[name]) for name in (b"fmt ", b"fact", b"data") if name in chunks
    ]
    return _file(b"RIFX" if kind.order == ">" else b"RIFF", b"WAVE", kept, kind.order)


def _aiff(data: bytes) -> bytes:
    chunks = _first_chunks(data, 12, _AIFF)
    form, sound = bytes(chunks.get(b"COMM", b"")), chunks.get(b"SSND")
    if len(form) < 18:
        raise InvalidPayload("the AIFF file does not say how its sound is kept (no 'COMM' chunk); send a whole file")
    if sound is None or len(sound) < 8:
        raise InvalidPayload("the AIFF file has no sound in it (no 'SSND' chunk); send a whole file")
    channels, frames, bits = struct.unpack_from(">HIH", form)
    compression = form[18:22] if data[8:12] == b"AIFC" else b"NONE"
    each = (bits + 7) // 8 if compression in PLAIN else SAMPLE_BYTES.get(compression)
    if channels == 0 or each == 0:
        raise InvalidPayload(f"the AIFF header says {channels} channels of {bits} bits; that is no recording")
    if each is not None:
        there = (len(sound) - 8) // (channels * each)
        form = form[:2] + struct.pack(">I", frames if 0 < frames <= there else there) + form[6:]
    kept: list[tuple[bytes, bytes | memoryview]] = [(b"FVER", chunks[b"FVER"])] if b"FVER" in chunks else []
    return _file(b"FORM", data[8:12], [*kept, (b"COMM", form), (b"SSND", sound)], ">")


def _file(outer: bytes, inner: bytes, chunks: list[tuple[bytes, bytes | memoryview]], order: str) -> bytes:
    pieces: list[bytes | memoryview] = [inner]
    for name, piece in chunks:
        pieces += [name, struct.pack(f"{order}I", len(piece)), piece, b"\0" * (len(piece) % 2)]
    return b"".join([outer, struct.pack(f"{order}I", sum(map(len, pieces))), *pieces])


def _first_chunks(data: bytes, start: int, kind: _Kind) -> dict[bytes, memoryview]:
    """The first chunk of each name."""
    first: dict[bytes, memoryview] = {}
    for name, piece in _chunks(data, start, kind):
        first.setdefault(name, piece)
    return first


def _chunks(data: bytes, start: int, kind: _Kind) -> Iterator[tuple[bytes, memoryview]]:
    """Each chunk's name and bytes, in the file's order; what is cut off behind the sound is left out."""
    view, position, large = memoryview(data), start, 0
    ends_in_chunks = False
    """Found once for all: what is chunks to the last byte is so from each later chunk on too."""
    for _ in range(MOST_CHUNKS):
        head = _head(data, position, kind)
        if head is None:
            return
        name, size = head
        body, there = position + kind.header, len(data) - position - kind.header
        if name == kind.sound:
            size = large if size == 0xFFFF_FFFF and 0 < large < ENDLESS_64 else size
            if size == 0:
                ends_in_chunks = ends_in_chunks or _is_chunks(data, _next(data, body, kind), kind)
            if size >= kind.endless or (size == 0 and not ends_in_chunks):
                size = there  # all that follows: no chunk comes after it
            elif size > there + SLACK_BYTES:
                raise InvalidPayload(
                    f"the {kind.called} header promises {size:,} bytes of sound and {there:,} follow; send the whole file"
                )
        elif size > there:
            return
        if name == b"ds64" and size >= 16:
            large = struct.unpack_from("<Q", data, body + 8)[0]
        yield name, view[body : body + size]
        position = _next(data, body + min(size, there), kind)
    raise InvalidPayload(f"the {kind.called} file has more than {MOST_CHUNKS:,} chunks; that is no recording")


def _head(data: bytes, position: int, kind: _Kind) -> tuple[bytes, int] | None:
    """Name and size of the chunk at a place; None at the end."""
    if position + kind.header > len(data):
        return None
    if kind.header == 8:
        name, size = struct.unpack_from(f"{kind.order}4sI", data, position)
        return name, size
    name, tail, size = struct.unpack_from("<4s12sQ", data, position)
    return (name if tail == W64_TAIL else b""), max(0, size - kind.header)


def _next(data: bytes, end: int, kind: _Kind) -> int:
    """Where the next chunk begins: after the bytes that fill this one up, unless the writer forgot them."""
    filled = end + -end % kind.align if kind.align == 8 else end + end % 2
    if filled != end and data[end : end + 4] in NAMES and data[filled : filled + 4] not in NAMES:
        return end
    return filled


def _is_chunks(data: bytes, position: int, kind: _Kind) -> bool:
    """Whether what stands from a place on is chunks to the last byte, so that a sound of size 0 is meant so."""
    for _ in range(MOST_CHUNKS):
        if position >= len(data):
            return True
        head = _head(data, position, kind)
        if head is None or not head[0].isascii() or not head[0].decode("ascii", "replace").isprintable() or not head[0]:
            return False
        position = _next(data, position + kind.header + head[1], kind)
    return False
