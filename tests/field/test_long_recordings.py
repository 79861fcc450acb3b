"""Recordings are cut where nobody speaks: an hour in little memory, silence in no words at all."""

from __future__ import annotations

import asyncio
import io
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from tests.field.test_whisper import voice
from tests.tasks.test_speech import TASK, open_processor, word_model

from maasdam.core import ANONYMOUS, AudioPayload, Pauses, Request, Tensors, Transcript
from maasdam.errors import InvalidPayload
from maasdam.serving.replica import TensorReplica
from maasdam.settings import Settings
from maasdam.tasks import voice as detector
from maasdam.tasks.pauses import LONGEST_SECONDS, Spoken, pieces
from maasdam.tasks.recordings import longest_seconds
from maasdam.telemetry.meter import CpuMeter

RATE = 16_000
VAD = Pauses(threshold=0.5, before=0.3, silence=0.2, cuts_short=True)
"""As OpenAI's server_vad is by default."""


def quiet(seconds: float, seed: int = 0, loud: float = 0.001) -> Any:
    """A room in which nobody speaks."""
    return np.random.default_rng(seed).normal(0, loud, round(seconds * RATE)).astype(np.float32)


def cut(sound: Any, pauses: Pauses = VAD, rate: int = RATE) -> list[Spoken]:
    blocks = (sound[at : at + rate] for at in range(0, len(sound), rate))
    return [piece for piece in pieces(blocks, rate, pauses) if piece is not None]


def spans(sound: Any, pauses: Pauses = VAD, rate: int = RATE) -> list[tuple[float, float]]:
    return [(piece.start, piece.start + len(piece.samples) / rate) for piece in cut(sound, pauses, rate)]


TALK = np.concatenate([quiet(2), voice(3), quiet(1.5), voice(2), quiet(2)])
"""Somebody speaks from 2 to 5 and from 6.5 to 8.5 s."""


@pytest.mark.parametrize("rate", [8_000, RATE])
def test_each_turn_of_speech_is_a_piece_with_what_was_asked_for_around_it(rate: int) -> None:
    sound = TALK[:: RATE // rate]
    (a, b), (c, d) = spans(sound, VAD, rate)
    assert [a, b, c, d] == pytest.approx([1.7, 5.4, 6.2, 8.9], abs=0.2)
    assert spans(sound, Pauses(0.5, 1.2, 0.2, True), rate)[0][0] == pytest.approx(0.8, abs=0.2)
    assert spans(sound, Pauses(0.5, 0.3, 1.8, True), rate) == [pytest.approx((1.7, 8.9), abs=0.2)], "no pause is so long"
    assert spans(sound, Pauses(1.0, 0.3, 0.2, True), rate) == [], "nothing is so surely speech"


def test_pieces_are_the_samples_at_their_places() -> None:
    for piece in cut(TALK):
        at = round(piece.start * RATE)
        np.testing.assert_array_equal(piece.samples, TALK[at : at + len(piece.samples)])


@pytest.mark.parametrize("seconds", [0.5, 20.0, 100.0])
@pytest.mark.parametrize("loud", [0.0, 0.001, 0.1])
def test_in_silence_and_noise_nobody_speaks(seconds: float, loud: float) -> None:
    assert cut(quiet(seconds, loud=loud), Pauses()) == []


def test_half_a_minute_is_heard_whole_where_anybody_speaks() -> None:
    (piece,) = cut(TALK, Pauses())
    np.testing.assert_array_equal(piece.samples, TALK)


def test_a_long_recording_is_cut_in_its_pauses_and_where_it_has_none_is_quietest() -> None:
    sound = np.concatenate([voice(20), quiet(0.5), voice(20), quiet(10), voice(70)])
    found = spans(sound, Pauses())
    assert max(end - start for start, end in found) <= LONGEST_SECONDS
    assert found[0][1] == found[1][0] == pytest.approx(20.25, abs=0.25), "in the pause"
    assert found[1][1] == pytest.approx(41.5, abs=0.4) and found[2][0] == pytest.approx(49.5, abs=0.4), "silence is left out"
    assert all(one[1] == other[0] for one, other in itertools.pairwise(found[2:])), "and no speech"
    assert found[-1][1] == pytest.approx(len(sound) / RATE, abs=0.05)
    for _, end in found[2:-1]:
        assert (end - 50.5) * 3 % 1 == pytest.approx(0.5, abs=0.5)


def test_without_the_detector_what_is_loud_is_speech(monkeypatch: pytest.MonkeyPatch) -> None:
    assert detector.detects()
    monkeypatch.setattr(detector, "FILE", Path("nowhere.onnx"))
    assert not detector.detects()
    assert cut(quiet(100, loud=0.00001), Pauses()) == []
    sound = np.concatenate([voice(25), quiet(0.5, loud=0.0001), voice(25)])
    assert spans(sound, Pauses())[0][1] == pytest.approx(25.25, abs=0.25)


class Counting:
    """An engine that hears "one" a second of sound, and remembers the longest that it heard."""

    def __init__(self, signature: Any) -> None:
        self.signature = signature
        self.longest = self.runs = 0

    def run(self, batch: Tensors) -> Tensors:
        frames = batch["input_features"].shape[1]
        self.longest, self.runs = max(self.longest, frames), self.runs + 1
        path = np.zeros((1, frames, 6), np.float32)
        path[:, :, 0] = 1
        path[:, 25::50, 1] = 2
        return {"logits": path}

    def close(self) -> None:
        """Nothing to free."""


def replica_of(folder: Path, **settings: Any) -> tuple[TensorReplica, Counting]:
    _, signature = word_model(folder)
    engine = Counting(signature)
    processor = open_processor(TASK, folder, signature, Settings(**settings))
    return TensorReplica(engine, processor, pool=ThreadPoolExecutor(2), meter=CpuMeter(), queue_size=8), engine


def flac(blocks: Iterator[Any]) -> bytes:
    out = io.BytesIO()
    with soundfile.SoundFile(out, "w", RATE, 1, format="FLAC") as file:
        for block in blocks:
            file.write(block)
    return out.getvalue()


def asked(data: bytes, pauses: Pauses | None = None) -> Request:
    return Request("r", "m", (AudioPayload(data, pauses=pauses or Pauses()),), ANONYMOUS)


async def test_silence_is_no_words_and_costs_no_engine(tmp_path: Path) -> None:
    replica, engine = replica_of(tmp_path)
    chunks = [chunk async for chunk in replica.answer(asked(flac(iter([quiet(5)]))))]
    assert [chunk.value for chunk in chunks] == [Transcript("")] and chunks[0].units.audio_seconds == 5.0
    assert engine.runs == 0
    replica.close()


async def test_parts_come_one_by_one_with_their_times_and_make_one_transcript(tmp_path: Path) -> None:
    replica, engine = replica_of(tmp_path)
    data = flac(iter([voice(20), quiet(10), voice(20)]))
    chunks = [chunk async for chunk in replica.answer(asked(data))]
    assert [chunk.is_last for chunk in chunks] == [False, False, True] and engine.runs == 2
    told: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    replica.submit(asked(data), told.set_result)
    (whole,) = await told
    assert whole.value.text == " ".join(["one"] * 42), "a second before and after the silence is heard"
    assert whole.units.audio_seconds == 50.0
    replica.close()


async def test_no_more_is_read_than_what_is_heard_next_and_who_leaves_stops_it(tmp_path: Path) -> None:
    replica, engine = replica_of(tmp_path)
    answer = replica.answer(asked(flac(voice(60) for _ in range(5))))
    first = await anext(answer)
    assert first.units.audio_seconds is not None and first.units.audio_seconds < 100
    await answer.aclose()
    await asyncio.sleep(0.3)
    assert engine.runs <= 4 and engine.longest <= 50 * LONGEST_SECONDS
    assert replica._preparing == 0
    replica.close()


async def test_ten_hours_are_refused_before_any_is_heard(tmp_path: Path) -> None:
    replica, engine = replica_of(tmp_path, max_audio_seconds=7200.0)
    data = bytearray(flac(iter([voice(40)])))
    samples = 36_000 * RATE
    data[21:26] = bytes([data[21] & 0xF0 | samples >> 32]) + (samples & 0xFFFFFFFF).to_bytes(4, "big")
    with pytest.raises(InvalidPayload, match=r"36000.0 s long and at most 7200 s"):
        [chunk async for chunk in replica.answer(asked(bytes(data)))]
    assert engine.runs == 0
    replica.close()


def of_bytes(size: int, per_second: int) -> bytes:
    return b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0\1\0\1\0\x80\x3e\0\0" + per_second.to_bytes(4, "little") + bytes(size - 32)


@pytest.mark.parametrize(
    ("data", "seconds"),
    [
        (of_bytes(320_000, 32_000), 10),
        (of_bytes(320_000, 0), 320),
        (flac(iter([quiet(3)])), 3),
        (b"ID3" + bytes(5_997), 6),
        (bytes(10_000_000), 7200),
        (b"fLaC", 0.004),
        (b"", 0),
    ],
)
def test_a_recordings_time_limit_grows_with_what_its_bytes_may_hold(data: bytes, seconds: float) -> None:
    assert longest_seconds(data, 7200) == pytest.approx(seconds)
