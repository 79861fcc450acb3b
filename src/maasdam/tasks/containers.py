"""Recordings in containers that libsndfile can't open: MP4, WebM, AAC. Knows PyAV, and what must not reach it.

FFmpeg's readers are told which one they are and are given the bytes alone: none may guess, or open another file. Tables that
promise more entries than bytes are refused before it makes room for them.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from maasdam.errors import InvalidPayload

if TYPE_CHECKING:
    from maasdam.core import type_array
    from maasdam.tasks.recordings import Heard

CALLED = {"mp4": "MP4", "matroska": "WebM", "aac": "AAC", "wav": "WAV", "ogg": "OGG"}
MOST_PACKETS = 1_000_000
"""Entries of one table: an hour of the shortest Opus packets has as many."""
SHORTEST_SECONDS = 0.002
"""Packets are longer, on average after the first FEW_PACKETS: Opus has none below 2.5 ms. Each costs time."""
FEW_PACKETS = 1000
LOWEST_RATE = 4_000
PROBED_BYTES = 1_000_000
"""FFmpeg looks through so many to find out what the tracks are; each packet in them costs time."""
MOST_PACKET_BYTES = 4 << 20
MOST_BOXES = 100_000
HOLDING = frozenset({b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf"})
"""Boxes of MP4 that hold boxes."""
PLAIN = frozenset({b"sowt", b"twos", b"lpcm", b"ipcm", b"fpcm", b"in24", b"in32", b"fl32", b"fl64", b"ulaw", b"alaw", b"raw "})
SEGMENT = b"\x18\x53\x80\x67"


def read(data: bytes, container: str, heard: Heard) -> Iterator[type_array]:
    """The first track of sound, as `heard` hears it. Raises InvalidPayload: broken, cut off, none in it, PyAV not installed."""
    called = CALLED[container]
    try:
        import av
    except ImportError as error:
        raise InvalidPayload(
            f"this service can't read this {called} recording: PyAV is not installed there (pip install 'maasdam[speech]'); "
            "send WAV, FLAC, OGG or MP3"
        ) from error
    if container == "mp4":
        _check_boxes(data)
    elif container == "matroska":
        _check_segment(data)
    try:
        options = {"probesize": str(PROBED_BYTES)}
        sound = io.BytesIO(data)
        with av.open(sound, format=container, options=options, metadata_errors="replace", io_open=_open_nothing) as file:
            yield from _decode(file, called, heard)
    except InvalidPayload:
        raise
    except Exception as error:  # PyAV raises what FFmpeg says, and ValueError for sound that changes on the way
        raise InvalidPayload(
            f"these {len(data):,} bytes are no {called} recording, or a broken one; send a whole file"
        ) from error


def _open_nothing(*_: Any) -> Any:
    raise InvalidPayload("the recording refers to other files, which are not read; send one that holds its sound")


def _decode(file: Any, called: str, heard: Heard) -> Iterator[type_array]:
    import av
    import numpy as np

    if not file.streams.audio:
        raise InvalidPayload(f"the {called} file holds no sound; send one with a track of it")
    stream = file.streams.best("audio") or file.streams.audio[0]
    promised = stream.frames  # packets; of plain numbers, samples
    is_plain = stream.codec_context.name.startswith("pcm")
    planes: Any = av.AudioResampler(format="fltp")  # floats, one row a channel; rate and channels as they are
    rate, packets, waiting = 0, 0, 0
    block: list[Any] = []
    broken: Exception | None = None
    for packet in file.demux(stream):
        packets += packet.size > 0
        is_tiny = packets > FEW_PACKETS and heard.frames + waiting < packets * SHORTEST_SECONDS * (rate or LOWEST_RATE)
        if is_tiny or packet.size > MOST_PACKET_BYTES:
            raise InvalidPayload(f"the {called} recording has packets that no recording has; send another")
        try:
            frames = packet.decode()
        except av.FFmpegError as error:
            if broken is not None:
                raise
            broken = error
            continue
        for frame in frames:
            if broken is not None:
                raise broken
            if not rate:
                rate = frame.sample_rate
                heard.begin(rate, frame.layout.nb_channels)
            elif frame.sample_rate != rate:
                raise InvalidPayload("the recording changes its samples per second on the way; send one that does not")
            for plane in planes.resample(frame):
                block.append(plane.to_ndarray())
                waiting += plane.samples
        if waiting >= max(rate, 1):
            yield heard.add(np.concatenate(block, axis=1).T)
            block, waiting = [], 0
    if waiting:
        yield heard.add(np.concatenate(block, axis=1).T)
    if broken is not None and not heard.frames:  # a last packet that was cut is left out, as players do
        raise broken
    if (heard.frames if is_plain else packets) < promised:
        raise InvalidPayload(f"the {called} header promises {promised:,} packets and fewer follow; send the whole file")


def _check_boxes(data: bytes) -> None:
    """Raise InvalidPayload for tables of more samples than a recording has, for what is compressed, and for boxes cut off."""
    is_plain = False
    """Whether the track's samples are plain numbers, of which FFmpeg keeps chunks and not samples."""
    for count, (name, body, end) in enumerate(_boxes(data, 0, len(data))):
        entries = 0
        if name == b"trak":
            is_plain = False
        elif name == b"stsd":
            is_plain = data[body + 12 : body + 16] in PLAIN
        if name == b"cmov" or count > MOST_BOXES:
            raise InvalidPayload("the MP4 file's tables are compressed or too many; send another")
        if name == b"stsz" and end - body >= 12:
            size, entries = struct.unpack_from(">II", data, body + 4)
            if size and entries * size <= len(data):
                entries = min(entries, MOST_PACKETS) if is_plain else entries
        elif name in (b"trun", b"stz2", b"stts", b"ctts", b"stsc") and end - body >= 8:
            entries = struct.unpack_from(">I", data, body + (8 if name == b"stz2" else 4))[0]
        if entries > MOST_PACKETS:
            raise InvalidPayload(f"the MP4 file's tables promise {entries:,} packets; that is no recording")


def _boxes(data: bytes, start: int, end: int, depth: int = 0) -> Iterator[tuple[bytes, int, int]]:
    """(name, where its content begins, where it ends) of every box."""
    position = start
    while position + 8 <= end:
        size, name = struct.unpack_from(">I4s", data, position)
        body = position + 8
        if size == 1 and position + 16 <= end:
            size, body = struct.unpack_from(">Q", data, body)[0], position + 16
        stop = end if size == 0 else min(position + size, end)
        if stop < body:
            return
        yield name, body, stop
        if name in HOLDING and depth < 8:
            yield from _boxes(data, body, stop, depth + 1)
        position = stop


def _check_segment(data: bytes) -> None:
    """Raise InvalidPayload where the one element that holds everything says that it is longer than what follows."""
    at = data.find(SEGMENT, 0, 4096)
    if at < 0 or at + 5 > len(data):
        return
    length = 9 - data[at + 4].bit_length()
    raw = data[at + 4 : at + 4 + length]
    if len(raw) < length or length > 8:
        return
    size = int.from_bytes(raw, "big") & ((1 << 7 * length) - 1)
    there = len(data) - at - 4 - length
    if size != (1 << 7 * length) - 1 and size > there:  # all ones: the writer did not know either
        raise InvalidPayload(f"the WebM header promises {size:,} bytes and {there:,} follow; send the whole file")
