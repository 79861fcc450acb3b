"""Bytes to a waveform, safely. Knows audio files and what can be wrong with them; never models.

A recording is decoded block by block, so that a small file that claims to be hours long costs no memory.
"""

from __future__ import annotations

import io
import struct
from typing import TYPE_CHECKING, Any

from maasdam.errors import InvalidPayload

if TYPE_CHECKING:
    from maasdam.core import type_array

RATES = (4_000, 192_000)
"""Samples per second that are taken, Hz."""
MAX_CHANNELS = 16
MIN_SECONDS = 0.1
BLOCK_SECONDS = 1.0
FORMATS = "WAV, FLAC, OGG or MP3"
CONTAINERS = ("WAV", "WAVEX", "FLAC", "OGG", "MP3")
"""libsndfile's names for them; it knows more, whose headers nobody here has checked."""


def decode_audio(data: bytes, rate: int, max_seconds: float) -> tuple[type_array, float]:
    """The recording as mono float32 [S] at `rate` Hz, and its length in seconds.

    Raises InvalidPayload: empty, none of FORMATS, a header that lies, a rate or length out of bounds, NaN.
    """
    import soundfile

    if not data:
        raise InvalidPayload("the recording is empty (0 bytes); send the bytes of a file")
    _check_wav(data)
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            _check_header(file, max_seconds)
            return _read(file, rate, max_seconds)
    except InvalidPayload:
        raise
    except Exception as error:  # soundfile raises what libsndfile says, and what Python makes of absurd numbers
        raise InvalidPayload(
            f"these {len(data):,} bytes are no recording in {FORMATS}, or a broken one; send a whole file"
        ) from error


def seconds_of(data: bytes) -> float:
    """Length by the header, seconds, of a recording that `decode_audio` takes."""
    import soundfile

    with soundfile.SoundFile(io.BytesIO(data)) as file:
        return float(file.frames) / float(file.samplerate)


def _check_header(file: Any, max_seconds: float) -> None:
    if file.format not in CONTAINERS:
        raise InvalidPayload(f"the recording is {file.format}, which is no recording in {FORMATS}; send one of those")
    if not RATES[0] <= file.samplerate <= RATES[1]:
        raise InvalidPayload(f"the recording says {file.samplerate} samples per second; {RATES[0]} to {RATES[1]} are taken")
    if not 1 <= file.channels <= MAX_CHANNELS:
        raise InvalidPayload(f"the recording says {file.channels} channels; 1 to {MAX_CHANNELS} are taken")
    seconds = file.frames / file.samplerate
    if seconds > max_seconds:
        raise InvalidPayload(
            f"the recording is {seconds:.1f} s long and at most {max_seconds:g} s are taken; send a shorter one"
        )


def _read(file: Any, rate: int, max_seconds: float) -> tuple[type_array, float]:
    import numpy as np
    import soxr

    resampler = None if file.samplerate == rate else soxr.ResampleStream(file.samplerate, rate, 1, dtype="float32")
    limit = int(max_seconds * file.samplerate)
    pieces: list[type_array] = []
    frames = 0
    while True:
        block = file.read(int(BLOCK_SECONDS * file.samplerate), dtype="float32", always_2d=True)
        is_end = len(block) == 0
        frames += len(block)
        if frames > limit:
            raise InvalidPayload(f"the recording is longer than the {max_seconds:g} s that are taken; send a shorter one")
        if not np.isfinite(block).all():
            raise InvalidPayload("the recording holds NaN or infinite samples; send finite ones")
        mono = block.mean(axis=1, dtype=np.float32)
        piece = mono if resampler is None else resampler.resample_chunk(mono, last=is_end)
        pieces.append(np.asarray(piece, dtype=np.float32))
        if is_end:
            break
    seconds = frames / file.samplerate
    if frames == 0:
        raise InvalidPayload("the recording holds no samples; send one with sound in it")
    if seconds < MIN_SECONDS:
        raise InvalidPayload(f"the recording is {seconds:.3f} s long; send at least {MIN_SECONDS:g} s")
    return np.concatenate(pieces), seconds


def _check_wav(data: bytes) -> None:
    """libsndfile reads what it can of a WAV whose header lies; a transcript of half a recording would look whole."""
    if len(data) < 12 or data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return
    position = 12
    while position + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, position)
        there = len(data) - position - 8
        if name == b"fmt " and there >= 16:
            _check_format(data, position + 8)
        if name == b"data":
            if size > there:
                raise InvalidPayload(
                    f"the WAV header promises {size:,} bytes of sound and {there:,} follow; send the whole file"
                )
            return
        position += 8 + size + size % 2
    raise InvalidPayload("the WAV file has no sound in it (no 'data' chunk); send a whole file")


def _check_format(data: bytes, position: int) -> None:
    _, channels, rate, _, align, bits = struct.unpack_from("<HHIIHH", data, position)
    if channels == 0 or rate == 0 or align == 0:
        raise InvalidPayload(
            f"the WAV header says {channels} channels, {rate} samples per second and {align} bytes per sample of {bits} bits; "
            "that is no recording"
        )
