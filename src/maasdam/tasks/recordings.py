"""Bytes to a waveform, safely. Knows audio files and what can be wrong with them; never models.

A recording is decoded block by block, so that a small file that claims to be hours long costs no memory, and its length is
what was heard, not what a header says.

    WAV, RF64, W64, AIFF --chunked--> a true header --\\
    FLAC, OGG, MP3 ------------------------------------- libsndfile --\\
    MP4, WebM, AAC; codecs that libsndfile has not ----- PyAV ---------- blocks -> mono -> `rate`
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from maasdam.errors import InvalidPayload
from maasdam.tasks.chunked import mended

if TYPE_CHECKING:
    from maasdam.core import type_array

RATES = (4_000, 192_000)
"""Samples per second that are taken, Hz."""
MAX_CHANNELS = 16
MOST_RATE = 2 * 96_000
"""Samples over all channels, for each second that is taken: silence packs a thousand to one, and each is decoded."""
LEAST_BYTES_A_SECOND = 1000
"""Of speech that somebody packed as small as coders go: 8 kbit/s."""
MIN_SECONDS = 0.1
BLOCK_SECONDS = 1.0
FORMATS = "WAV, AIFF, FLAC, OGG, MP3, MP4 (M4A), WebM or AAC"
CONTAINERS = ("WAV", "WAVEX", "AIFF", "FLAC", "OGG", "MP3")
"""libsndfile's names for them; it knows more, whose headers nobody here has checked."""
UNKNOWN_FRAMES = 1 << 60
"""libsndfile counts so many frames, or more, where the header says none."""


def decode_audio(data: bytes, rate: int, max_seconds: float) -> tuple[type_array, float]:
    """The recording as mono float32 [S] at `rate` Hz, and how long it was heard, seconds. Raises as `Heard.blocks`."""
    import numpy as np

    heard = Heard(rate, max_seconds)
    return np.concatenate(list(heard.blocks(data))), heard.seconds


def longest_seconds(data: bytes, most: float) -> float:
    """How long a recording may last at the utmost, seconds: by WAV's and FLAC's headers, which say it, else by its size."""
    rate = LEAST_BYTES_A_SECOND
    if container_of(data) == "wav":
        at = data.find(b"fmt ", 12, 4096)
        if at > 0 and at + 20 <= len(data):
            rate = max(rate, int.from_bytes(data[at + 16 : at + 20], "big" if data[:4] == b"RIFX" else "little"))
    elif data[:4] == b"fLaC" and len(data) >= 26:
        samples = (data[21] & 0x0F) << 32 | int.from_bytes(data[22:26], "big")
        hertz = int.from_bytes(data[18:21], "big") >> 4
        if samples and hertz:
            return min(samples / hertz, most)
    return min(len(data) / rate, most)


def container_of(data: bytes) -> str | None:
    """What the bytes begin like: "wav", "aiff", "flac", "ogg", "mp4", "matroska", "aac"; None is perhaps MP3, or nothing."""
    if data[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64", b"riff"):
        return "wav"
    if data[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"styp"):
        return "mp4"
    known = {b"FORM": "aiff", b"fLaC": "flac", b"OggS": "ogg", b"\x1a\x45\xdf\xa3": "matroska"}
    if data[:4] in known:
        return known[data[:4]]
    start = 0
    if data[:3] == b"ID3" and len(data) > 10:  # its length is in four times seven bits
        start = 10 + (data[6] << 21 | data[7] << 14 | data[8] << 7 | data[9])
    sync = data[start : start + 2]
    return "aac" if len(sync) == 2 and sync[0] == 0xFF and sync[1] & 0xF6 == 0xF0 else None


class Heard:
    """Hears one recording block by block, as mono at one rate. Refuses what is too long, or no number."""

    def __init__(self, rate: int, max_seconds: float) -> None:
        self._rate = rate
        self._max_seconds = max_seconds
        self._most_samples = int(max_seconds * MOST_RATE)
        self._from = 0
        self._resampler: Any = None
        self.frames = 0

    @property
    def seconds(self) -> float:
        """How long it was heard until now."""
        return self.frames / self._from if self._from else 0.0

    def blocks(self, data: bytes) -> Iterator[type_array]:
        """The recording as blocks of mono float32 [S] at the rate.

        Raises InvalidPayload: empty, none of FORMATS, a header that lies, a rate or length out of bounds, NaN.
        """
        import numpy as np

        if not data:
            raise InvalidPayload("the recording is empty (0 bytes); send the bytes of a file")
        container = container_of(data)
        if container in ("mp4", "matroska", "aac"):
            from maasdam.tasks.containers import read

            yield from read(data, container, self)
        else:
            yield from _sound_file(data, container, self)
        if self.frames == 0:
            raise InvalidPayload("the recording holds no samples; send one with sound in it")
        if self.seconds < MIN_SECONDS:
            raise InvalidPayload(f"the recording is {self.seconds:.3f} s long; send at least {MIN_SECONDS:g} s")
        if self._resampler is not None:
            yield self._resampler.resample_chunk(np.zeros(0, np.float32), last=True)

    def begin(self, rate: int, channels: int, frames: int | None = None) -> None:
        """Check what the header says; `frames` None is unknown. Raises InvalidPayload."""
        import soxr

        if not RATES[0] <= rate <= RATES[1]:
            raise InvalidPayload(f"the recording says {rate} samples per second; {RATES[0]} to {RATES[1]} are taken")
        if not 1 <= channels <= MAX_CHANNELS:
            raise InvalidPayload(f"the recording says {channels} channels; 1 to {MAX_CHANNELS} are taken")
        if frames is not None and frames / rate > self._max_seconds:
            raise InvalidPayload(
                f"the recording is {frames / rate:.1f} s long and at most {self._max_seconds:g} s are taken; send a shorter one"
            )
        self._from = rate
        self._resampler = None if rate == self._rate else soxr.ResampleStream(rate, self._rate, 1, dtype="float32")

    def add(self, block: type_array) -> type_array:
        """The next frames, float32 [N, channels], as mono at the rate. Raises InvalidPayload."""
        import numpy as np

        self.frames += len(block)
        if self.frames * block.shape[1] > self._most_samples:
            raise InvalidPayload(
                f"the recording has more than {self._most_samples:,} samples in its {block.shape[1]} channels; "
                "send one channel of it"
            )
        if self.frames > int(self._max_seconds * self._from):
            raise InvalidPayload(f"the recording is longer than the {self._max_seconds:g} s that are taken; send a shorter one")
        if not np.isfinite(block).all():
            raise InvalidPayload("the recording holds NaN or infinite samples; send finite ones")
        mono: type_array = block[:, 0] if block.shape[1] == 1 else block.mean(axis=1, dtype=np.float32)
        return mono if self._resampler is None else self._resampler.resample_chunk(mono)


def _sound_file(data: bytes, container: str | None, heard: Heard) -> Iterator[type_array]:
    import soundfile

    whole = mended(data)
    try:
        file: Any = soundfile.SoundFile(io.BytesIO(whole))
    except Exception as error:  # soundfile raises what libsndfile says, and what Python makes of absurd numbers
        if container in ("wav", "ogg"):  # they hold any codec, and libsndfile has not all of them
            from maasdam.tasks.containers import read

            yield from read(whole, container, heard)
            return
        raise _broken(data) from error
    file.seekable = lambda: False  # else soundfile seeks after each block, which fails where the length is unknown
    with file:
        try:
            yield from _read(file, heard)
        except InvalidPayload:
            raise
        except Exception as error:
            raise _broken(data) from error


def _read(file: Any, heard: Heard) -> Iterator[type_array]:
    if file.format not in CONTAINERS:
        raise InvalidPayload(f"the recording is {file.format}, which is no recording in {FORMATS}; send one of those")
    frames = file.frames if 0 < file.frames < UNKNOWN_FRAMES else None
    heard.begin(file.samplerate, file.channels, frames)
    while True:
        block = file.read(int(BLOCK_SECONDS * file.samplerate), dtype="float32", always_2d=True)
        if len(block) == 0:
            break
        yield heard.add(block)
    if file.format == "FLAC" and frames is not None and heard.frames < frames:
        raise InvalidPayload(
            f"the FLAC header promises {frames:,} samples and {heard.frames:,} could be read; send the whole file"
        )


def _broken(data: bytes) -> InvalidPayload:
    return InvalidPayload(f"these {len(data):,} bytes are no recording in {FORMATS}, or a broken one; send a whole file")
