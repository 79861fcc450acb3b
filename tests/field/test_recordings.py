"""Recordings as pipes, browsers and phones write them are heard whole and right, or refused: never half, never for hours."""

from __future__ import annotations

import io
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from tests.tasks.test_speech import TASK, open_processor, word_model

from maasdam.core import AudioPayload
from maasdam.errors import InvalidPayload
from maasdam.tasks.recordings import RATES, decode_audio

RATE = 16_000
SAMPLES = (12_000 * np.sin(np.arange(9_600) * np.linspace(0.02, 0.3, 9_600))).astype("<i2")
"""0.6 s of a rising tone: no two places of it are alike."""
FLOATS = SAMPLES.astype(np.float32) / 32768


def heard(data: bytes) -> Any:
    return decode_audio(data, RATE, 600)[0]


def wav(size: int | None = None, outer: bytes = b"RIFF", before: bytes = b"", after: bytes = b"", body: bytes = b"") -> bytes:
    body = body or SAMPLES.tobytes()
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, RATE, 2 * RATE, 2, 16)
    data = struct.pack("<4sI", b"data", len(body) if size is None else size)
    return outer + struct.pack("<I", 0xFFFFFFFF) + b"WAVE" + before + form + data + body + after


LIST = b"LIST" + struct.pack("<I", 26) + b"INFOISFT\x0e\0\0\0a program 1.0\0"
ODD = b"LIST" + struct.pack("<I", 13) + b"INFOISFT\1\0\0\0x"


def ds64(size: int) -> bytes:
    return struct.pack("<4sIQQQI", b"ds64", 28, size + 72, size, size // 2, 0)


def w64(size: int | None) -> bytes:
    tail = b"\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a"
    head = b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\0\0" + b"\xff" * 8 + b"wave" + tail
    form = b"fmt " + tail + struct.pack("<QHHIIHH", 40, 1, 1, RATE, 2 * RATE, 2, 16)
    body = SAMPLES.tobytes()
    return head + form + b"data" + tail + struct.pack("<Q", len(body) + 24 if size is None else size) + body


def aiff(size: int | None = None, frames: int | None = None, compression: bytes = b"") -> bytes:
    body = SAMPLES.astype(">i2").tobytes() if compression != b"sowt" else SAMPLES.tobytes()
    comm = struct.pack(">HIH", 1, len(SAMPLES) if frames is None else frames, 16) + b"\x40\x0c\xfa\0\0\0\0\0\0\0"
    comm += compression + b"\0\0" if compression else b""
    sound = struct.pack(">4sIII", b"SSND", len(body) + 8 if size is None else size, 0, 0) + body
    kind = b"AIFC" if compression else b"AIFF"
    return b"FORM\0\0\0\0" + kind + struct.pack(">4sI", b"COMM", len(comm)) + comm + sound


PIPED = {
    "RIFF says all": wav(0xFFFFFFFF),
    "RIFF says half of all": wav(0x7FFFFFFF),
    "RIFF as espeak writes it": wav(0x7FFFF000),
    "RIFF as sox writes it": wav(0x7FFFFFFF - 36),
    "RIFF says nothing": wav(0),
    "RIFF as it should be": wav(),
    "RIFF with LIST before the sound": wav(0xFFFFFFFF, before=LIST),
    "RIFF with LIST after the sound": wav(after=LIST),
    "RIFF with an odd LIST, filled up": wav(before=ODD + b"\0"),
    "RIFF with an odd LIST, not filled up": wav(before=ODD),
    "RIFF with its format last": wav()[:12] + wav()[36:] + wav()[12:36],
    "RIFF of an odd size": wav(len(SAMPLES) * 2 + 1, body=SAMPLES.tobytes() + b"\0"),
    "RF64": wav(0xFFFFFFFF, b"RF64", ds64(len(SAMPLES) * 2)),
    "RF64 of a pipe": wav(0xFFFFFFFF, b"RF64", ds64(0)),
    "W64": w64(None),
    "W64 of a pipe": w64(0x7FFFFFFFFFFFFFFF),
    "AIFF": aiff(),
    "AIFF of a pipe": aiff(0, 0),
    "AIFF as sox writes it": aiff(0x7F000008, 0x3F800000),
    "AIFF-C, little end first": aiff(0, 0, b"sowt"),
}


@pytest.mark.parametrize("data", PIPED.values(), ids=PIPED.keys())
def test_what_a_pipe_writes_is_heard_to_the_last_sample(data: bytes) -> None:
    np.testing.assert_array_equal(heard(data), FLOATS)


CUT = {
    "WAV": wav()[:-2000],
    "RF64": wav(0xFFFFFFFF, b"RF64", ds64(len(SAMPLES) * 2))[:-2000],
    "W64": w64(None)[:-2000],
    "AIFF": aiff()[:-2000],
    "ten hours of nothing": wav(36_000 * 32_000, body=b"\0\0"),
}


@pytest.mark.parametrize("data", CUT.values(), ids=CUT.keys())
def test_half_a_recording_is_not_taken_for_a_whole_one(data: bytes) -> None:
    with pytest.raises(InvalidPayload, match="promises"):
        heard(data)


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF])
def test_a_recording_of_nothing_holds_no_samples(size: int) -> None:
    with pytest.raises(InvalidPayload, match="no samples"):
        heard(wav(size)[:44])
    with pytest.raises(InvalidPayload, match="no samples"):
        heard(wav(0)[:44] + LIST)  # an empty sound and a note is no pipe


SUBTYPES = [(kind, s) for s in ("PCM_U8", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ALAW", "ULAW") for kind in ("WAV", "WAVEX")]


@pytest.mark.parametrize(("kind", "subtype"), [*SUBTYPES, ("WAV", "MS_ADPCM")])
def test_every_kind_of_sample_of_a_pipe_is_what_libsndfile_reads_from_the_file(kind: str, subtype: str) -> None:
    out = io.BytesIO()
    soundfile.write(out, FLOATS, RATE, format=kind, subtype=subtype)
    want = soundfile.read(io.BytesIO(out.getvalue()), dtype="float32")[0]
    data = bytearray(out.getvalue())
    at = data.find(b"data") + 4
    data[at : at + 4] = b"\xff" * 4
    np.testing.assert_array_equal(heard(bytes(data)), want)


def flac(total: int | None = None) -> bytes:
    """Where `total` is one, its header says so many samples; 0 is unknown."""
    out = io.BytesIO()
    soundfile.write(out, SAMPLES, RATE, format="FLAC")
    data = bytearray(out.getvalue())
    if total is not None:
        data[21] = (data[21] & 0xF0) | (total >> 32)
        data[22:26] = struct.pack(">I", total & 0xFFFFFFFF)
    return bytes(data)


def test_a_flac_of_unknown_length_is_heard_and_one_that_lies_is_refused() -> None:
    np.testing.assert_array_equal(heard(flac(0)), FLOATS)
    with pytest.raises(InvalidPayload, match="promises 20,000 samples"):
        heard(flac(20_000))


def encoded(container: str, codec: str, rate: int = RATE, options: dict[str, str] | None = None) -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format=container, options=options or {}) as file:
        stream: Any = file.add_stream(codec, rate=rate, layout="mono")
        samples = np.interp(np.arange(len(SAMPLES) * rate // RATE) * RATE / rate, np.arange(len(SAMPLES)), SAMPLES)
        frame = av.AudioFrame.from_ndarray(samples.astype(np.int16)[None], format="s16", layout="mono")
        frame.sample_rate = rate
        for each in (frame, None):
            file.mux(stream.encode(each))
    return out.getvalue()


LOSSLESS = {"ALAC in M4A": ("ipod", "alac"), "PCM in MOV": ("mov", "pcm_s16le"), "PCM in Matroska": ("matroska", "pcm_s16le")}


@pytest.mark.parametrize("kind", LOSSLESS.values(), ids=LOSSLESS.keys())
def test_containers_give_the_samples_that_were_put_in(kind: tuple[str, str]) -> None:
    np.testing.assert_array_equal(heard(encoded(*kind)), FLOATS)


LOSSY = {
    "M4A": ("ipod", "aac", RATE, None),
    "MP4 in fragments": ("mp4", "aac", RATE, {"movflags": "frag_keyframe+empty_moov"}),
    "AAC": ("adts", "aac", RATE, None),
    "WebM": ("webm", "libopus", 48_000, None),
    "WebM of a pipe": ("webm", "libopus", 48_000, {"live": "1"}),
    "Opus": ("ogg", "libopus", 48_000, None),
}


@pytest.mark.parametrize("kind", LOSSY.values(), ids=LOSSY.keys())
def test_what_browsers_and_phones_record_is_heard(kind: tuple[str, str, int, dict[str, str] | None]) -> None:
    found = heard(encoded(*kind))
    begins = np.argmax(np.correlate(found, FLOATS[4000:6000], "valid"))  # coders add a few ms of silence at the start
    assert 0 <= begins - 4000 < 2_100
    piece = found[begins : begins + 2000]
    assert np.corrcoef(piece, FLOATS[4000:6000])[0, 1] > 0.98
    assert len(found) == pytest.approx(len(FLOATS), abs=3_200)


def with_picture(sound: bytes) -> bytes:
    """MP3 behind an ID3 tag that holds a cover of 100 kB."""
    picture = b"\0image/png\0\3\0" + bytes(range(256)) * 400
    tag = b"APIC" + struct.pack(">IH", len(picture), 0) + picture
    size = bytes(len(tag) >> shift & 0x7F for shift in (21, 14, 7, 0))
    return b"ID3\3\0\0" + size + tag + sound


def big_endian() -> bytes:
    form = struct.pack(">4sIHHIIHH", b"fmt ", 16, 1, 1, RATE, 2 * RATE, 2, 16)
    body = SAMPLES.astype(">i2").tobytes()
    return b"RIFX" + struct.pack(">I", 36 + len(body)) + b"WAVE" + form + struct.pack(">4sI", b"data", len(body)) + body


def test_a_wav_of_the_other_byte_order_is_the_same() -> None:
    np.testing.assert_array_equal(heard(big_endian()), FLOATS)


def mp3() -> bytes:
    out = io.BytesIO()
    soundfile.write(out, FLOATS, RATE, format="MP3")
    return out.getvalue()


def gsm() -> bytes:
    out = io.BytesIO()
    soundfile.write(out, FLOATS, RATE, format="WAV", subtype="GSM610")
    return out.getvalue()


OTHERS = {
    "MP3": mp3,
    "MP3 with a picture": lambda: with_picture(mp3()),
    "GSM in WAV": gsm,
    "IMA ADPCM": lambda: encoded("wav", "adpcm_ima_wav"),
    "MS ADPCM": lambda: encoded("wav", "adpcm_ms"),
    "MP3 in WAV": lambda: encoded("wav", "libmp3lame"),
    "A-law in AIFF": lambda: encoded("aiff", "pcm_alaw"),
    "IMA ADPCM in AIFF": lambda: encoded("aiff", "adpcm_ima_qt"),
    "MP3 in MP4": lambda: encoded("mp4", "libmp3lame", 44_100),
    "Opus in MP4": lambda: encoded("mp4", "libopus", 48_000),
    "AAC in Matroska": lambda: encoded("matroska", "aac", 44_100),
    "FLAC of 96 kHz": lambda: encoded("flac", "flac", 96_000),
}


@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS.keys())
def test_other_codings_are_heard_as_ffmpeg_hears_them(make: Any) -> None:
    data = make()
    with av.open(io.BytesIO(data)) as file:
        to = av.AudioResampler(format="flt", layout="mono", rate=RATE)
        frames = [out for frame in [*file.decode(audio=0), None] for out in to.resample(frame)]
        want = np.concatenate([frame.to_ndarray().ravel() for frame in frames])
    found = heard(data)
    assert abs(len(found) - len(want)) <= 700, "a coder's delay is left out or not"
    begins = int(np.correlate(found, want[2_000:8_000], "valid").argmax())
    np.testing.assert_allclose(found[begins : begins + 6_000], want[2_000:8_000], atol=0.02)
    assert abs(begins - 2_000) <= 700


def _moved(tables: bytes, by: int) -> bytes:
    at = tables.index(b"stco") + 12
    count = struct.unpack_from(">I", tables, at - 4)[0]
    places = [place + by for place in struct.unpack_from(f">{count}I", tables, at)]
    return tables[:at] + struct.pack(f">{count}I", *places) + tables[at + 4 * count :]


def test_a_cut_container_is_refused_and_a_cut_stream_is_heard_as_far_as_it_goes() -> None:
    late = encoded("ipod", "alac")
    tables = late.rindex(b"moov") - 4  # behind the sound; before it, the places in them move by their length
    fast = late[:28] + _moved(late[tables:], len(late) - tables) + late[28:tables]
    np.testing.assert_array_equal(heard(fast), FLOATS)
    for data in (fast[: len(fast) * 2 // 3], late[:-300], encoded("webm", "libopus", 48_000)[:-1500]):
        with pytest.raises(InvalidPayload, match=r"promises|broken"):
            heard(data)
    whole = encoded("adts", "aac")
    assert 0.2 < len(heard(whole[: len(whole) // 2])) / len(heard(whole)) < 0.8


def test_a_caller_pays_for_what_was_heard_not_for_what_a_header_says(tmp_path: Path) -> None:
    out = io.BytesIO()
    soundfile.write(out, np.tile(FLOATS, 4), RATE, format="MP3")
    cut = AudioPayload(out.getvalue()[: len(out.getvalue()) * 2 // 3])
    processor = open_processor(TASK, *word_model(tmp_path))
    billed = processor.units(cut, processor.prepare(cut)).audio_seconds
    assert billed == pytest.approx(1.6, abs=0.1)
    assert soundfile.SoundFile(io.BytesIO(cut.data)).frames / RATE == pytest.approx(2.4, abs=0.1), "the header says more"


def box(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I4s", len(body) + 8, name) + body


def mp4_of(*tables: bytes) -> bytes:
    inner = b"".join(tables)
    for name in (b"stbl", b"minf", b"mdia", b"trak", b"moov"):
        inner = box(name, inner)
    return box(b"ftyp", b"isomiso2") + inner + box(b"mdat", bytes(1000))


def endless() -> Iterator[tuple[str, bytes]]:
    yield "a table of 2^28 packets of one byte", mp4_of(box(b"stsz", struct.pack(">III", 0, 1, 2**28)))
    yield "a table of 2^31 packets", mp4_of(box(b"stsz", struct.pack(">III", 0, 0, 2**31)))
    yield "a fragment of 2^28 packets", mp4_of() + box(b"moof", box(b"traf", box(b"trun", struct.pack(">II", 0, 2**28))))
    yield "tables that are compressed", mp4_of(box(b"cmov", bytes(100)))
    yield "packets that hold nothing", b"\xff\xf1\x50\x80\x01\x1f\xfc" * 30_000
    yield "chunks without end", b"RIFF\xff\xff\xff\xffWAVE" + b"note\0\0\0\0" * 30_000


@pytest.mark.parametrize("data", [data for _, data in endless()], ids=[name for name, _ in endless()])
def test_what_would_fill_memory_or_time_is_refused_before(data: bytes) -> None:
    with pytest.raises(InvalidPayload, match=r"no recording|compressed"):
        heard(data)


def test_silence_packed_a_thousand_to_one_ends_at_the_limit() -> None:
    out = io.BytesIO()
    with soundfile.SoundFile(out, "w", RATES[0], 1, format="FLAC") as file:
        for _ in range(700):
            file.write(np.zeros(RATES[0], np.int16))
    data = bytearray(out.getvalue())
    data[21:26] = bytes([data[21] & 0xF0, 0, 0, 0, 0])
    with pytest.raises(InvalidPayload, match="longer than the 600 s"):
        heard(bytes(data))


def test_without_pyav_the_refusal_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded("ipod", "aac")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InvalidPayload, match=r"pip install 'maasdam\[speech\]'"):
        heard(data)
    np.testing.assert_array_equal(heard(wav(0xFFFFFFFF)), FLOATS)  # what most send needs nothing


def test_a_file_without_sound_and_one_that_names_other_files_are_refused() -> None:
    out = io.BytesIO()
    with av.open(out, "w", format="matroska") as file:
        stream: Any = file.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 32
        frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
        for each in (frame, None):
            file.mux(stream.encode(each))
    with pytest.raises(InvalidPayload, match="no sound"):
        heard(out.getvalue())
    for text in (b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n", b"ffconcat version 1.0\nfile /etc/passwd\n"):
        with pytest.raises(InvalidPayload, match="no recording"):
            heard(text)
