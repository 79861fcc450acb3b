"""Recordings in, words out: the model's own feature extractor and tokenizer, whatever the file."""

from __future__ import annotations

import io
import itertools
import json
import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from maasdam.core import AudioPayload, Signature, TensorSpec, Transcript
from maasdam.errors import EngineFailure, InvalidModel, InvalidPayload
from maasdam.settings import Settings
from maasdam.tasks import open_processor
from maasdam.tasks.hearing import OVERLAP_SECONDS, WINDOW_SECONDS, windows
from maasdam.tasks.recordings import decode_audio

TASK = "automatic-speech-recognition"
RATE = 16_000
WORDS = {"<pad>": 0, "one ": 1, "two ": 2, "three ": 3, "|": 4, "<unk>": 5}


def tone(seconds: float = 1.0, rate: int = RATE, hertz: float = 440.0) -> Any:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def encoded(samples: Any, rate: int = RATE, kind: str = "WAV", subtype: str | None = None) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, samples, rate, format=kind, subtype=subtype)
    return out.getvalue()


def word_model(folder: Path) -> tuple[Path, Signature]:
    """Log-mel features, whole words."""
    from transformers import Wav2Vec2CTCTokenizer

    (folder / "vocab.json").write_text(json.dumps(WORDS))
    tokenizer = Wav2Vec2CTCTokenizer(
        str(folder / "vocab.json"),
        bos_token=None,
        eos_token=None,
        unk_token="<unk>",
        pad_token="<pad>",
        word_delimiter_token="|",
    )
    tokenizer.save_pretrained(folder)
    extractor = {"feature_extractor_type": "SeamlessM4TFeatureExtractor", "feature_size": 80, "num_mel_bins": 80}
    extractor |= {"sampling_rate": RATE, "stride": 2, "return_attention_mask": True, "padding_side": "right"}
    (folder / "processor_config.json").write_text(json.dumps({"feature_extractor": extractor}))
    signature = Signature(
        (TensorSpec("input_features", "float32", (None, None, 160)), TensorSpec("attention_mask", "int64", (None, None))),
        (TensorSpec("logits", "float32", (None, None, 6)),),
    )
    return folder, signature


def letter_model(folder: Path, masked: bool = False) -> tuple[Path, Signature]:
    """Raw samples, letters."""
    from transformers import Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor

    letters = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, **{c: i for i, c in enumerate("abehlowrd", 5)}}
    (folder / "vocab.json").write_text(json.dumps(letters))
    Wav2Vec2CTCTokenizer(str(folder / "vocab.json")).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(return_attention_mask=False).save_pretrained(folder)
    inputs = [TensorSpec("input_values", "float32", (None, None))]
    inputs += [TensorSpec("attention_mask", "int64", (None, None))] if masked else []
    return folder, Signature(tuple(inputs), (TensorSpec("frames", "float32", (None, None, 14)),))


def path_of(ids: list[int], size: int) -> Any:
    """Frames whose likeliest path is `ids`."""
    return np.eye(size, dtype=np.float32)[ids][None]


def test_features_are_the_extractors_own_one_recording_at_a_time(tmp_path: Path) -> None:
    from transformers import SeamlessM4TFeatureExtractor

    processor = open_processor(TASK, *word_model(tmp_path))
    for seconds in (0.5, 1.0, 3.21):
        samples = tone(seconds)
        prepared = processor.prepare(AudioPayload(encoded(samples, subtype="FLOAT")))
        want = SeamlessM4TFeatureExtractor()(samples, sampling_rate=RATE, return_tensors="np")
        assert len(prepared) == 1 and list(prepared[0]) == ["input_features", "attention_mask"]
        assert prepared[0]["attention_mask"].dtype == np.int64
        np.testing.assert_array_equal(prepared[0]["input_features"], want["input_features"])


def test_raw_samples_and_a_mask_that_only_the_model_wants(tmp_path: Path) -> None:
    processor = open_processor(TASK, *letter_model(tmp_path, masked=True))
    prepared = processor.prepare(AudioPayload(encoded(tone())))[0]
    assert prepared["input_values"].shape == prepared["attention_mask"].shape == (1, RATE)
    assert prepared["attention_mask"].all()


def test_frames_become_words_with_pad_as_the_blank(tmp_path: Path) -> None:
    processor = open_processor(TASK, *word_model(tmp_path))
    frames = {"logits": path_of([0, 3, 3, 0, 0, 1, 0, 1, 2, 2, 0], 6)}
    assert processor.finish([frames], AudioPayload(b"")) == Transcript("three one one two")
    assert processor.finish([{"logits": path_of([0, 0], 6)}], AudioPayload(b"")) == Transcript("")


def test_frames_become_letters_and_double_letters_need_a_blank_between(tmp_path: Path) -> None:
    processor = open_processor(TASK, *letter_model(tmp_path))
    _a, _b, e, h, el, o, w, r, d = range(5, 14)
    ids = [h, h, e, el, 0, el, o, 4, w, o, r, r, el, d]
    assert processor.finish([{"frames": path_of(ids, 14)}], AudioPayload(b"")) == Transcript("hello world")


def test_words_have_the_times_of_their_frames(tmp_path: Path) -> None:
    folder, signature = word_model(tmp_path)
    (folder / "config.json").write_text(json.dumps({"model_type": "wav2vec2-bert", "add_adapter": False}))  # 20 ms a frame
    path = [0] * 10 + [3, 3, 0, 1] + [0] * 50 + [2, 2, 2] + [0] * 5
    processor = open_processor(TASK, folder, signature)
    said = processor.finish([{"logits": path_of(path, 6)}], AudioPayload(b"", timestamps=True))
    first = {"start": 0.2, "end": 0.28, "text": "three one"}
    words = [{"word": "three", "start": 0.2, "end": 0.24}, {"word": "one", "start": 0.26, "end": 0.28}]
    last = {"start": 1.28, "end": 1.34, "text": "two", "words": [{"word": "two", "start": 1.28, "end": 1.34}]}
    assert said == Transcript("three one two", (first | {"words": words}, last))
    plain = processor.finish([{"logits": path_of(path, 6)}], AudioPayload(b""))
    assert isinstance(plain, Transcript) and plain.segments[0] == first
    endless = processor.finish([{"logits": path_of([1, 0] * 500, 6)}], AudioPayload(b""))
    assert isinstance(endless, Transcript) and [segment["start"] for segment in endless.segments] == [0.0, 8.0, 16.0]


def test_letters_have_times_and_windows_go_on_where_they_are(tmp_path: Path) -> None:
    folder, signature = letter_model(tmp_path)
    config = {"model_type": "wav2vec2", "conv_stride": [5, 2, 2, 2, 2, 2, 2], "add_adapter": True}
    (folder / "config.json").write_text(json.dumps(config | {"adapter_stride": 2, "num_adapter_layers": 1}))  # 40 ms a frame
    _a, _b, e, h, el, o, w, r, d = range(5, 14)
    path = [0, h, h, e, el, 0, el, o, 4, w, o, r, r, el, d]
    processor = open_processor(TASK, folder, signature)
    said = processor.finish([{"frames": path_of(path, 14)}], AudioPayload(b"", timestamps=True))
    words = [{"word": "hello", "start": 0.04, "end": 0.32}, {"word": "world", "start": 0.36, "end": 0.6}]
    assert said == Transcript("hello world", ({"start": 0.04, "end": 0.6, "text": "hello world", "words": words},))
    whole, second = [0] * 750, [0] * 100 + [h, e] + [0] * 100  # a window of 30 s, and one from 26 s on
    said = processor.finish([{"frames": path_of(ids, 14)} for ids in (whole, second)], AudioPayload(b""))
    assert said == Transcript("he", ({"start": 30.0, "end": 30.08, "text": "he"},))


@pytest.mark.parametrize(
    "config", [{}, {"model_type": "sew"}, {"model_type": "hubert"}, {"model_type": "wavlm", "conv_stride": 7}]
)
def test_a_model_of_unknown_frames_has_no_times(tmp_path: Path, config: dict[str, Any]) -> None:
    folder, signature = letter_model(tmp_path)
    (folder / "config.json").write_text(json.dumps(config))
    said = open_processor(TASK, folder, signature).finish([{"frames": path_of([5, 6], 14)}], AudioPayload(b""))
    assert said == Transcript("ab")


def test_scores_that_are_not_finite_are_the_engines_failure(tmp_path: Path) -> None:
    processor = open_processor(TASK, *word_model(tmp_path))
    with pytest.raises(EngineFailure, match="not finite"):
        processor.finish([{"logits": np.full((1, 4, 6), np.nan, np.float32)}], AudioPayload(b""))


def test_seconds_are_metered(tmp_path: Path) -> None:
    processor = open_processor(TASK, *word_model(tmp_path))
    payload = AudioPayload(encoded(tone(2.5, 8000), 8000))
    assert processor.units(payload, processor.prepare(payload)).audio_seconds == pytest.approx(2.5)


def test_a_long_recording_is_heard_in_windows_whose_frames_join_up(tmp_path: Path) -> None:
    processor = open_processor(TASK, *word_model(tmp_path))
    payload = AudioPayload(encoded(tone(100.0)))
    prepared = processor.prepare(payload)
    assert len(prepared) == 4
    step = WINDOW_SECONDS - OVERLAP_SECONDS
    per_second = 50
    # each frame says which second of the recording it is in, as the engine would hear it
    outputs = []
    for i, inputs in enumerate(prepared):
        count = inputs["input_features"].shape[1]
        seconds = (np.arange(count) / per_second + i * step).astype(int)
        outputs.append({"logits": path_of([[1, 0, 2, 0, 3, 0][s % 6] for s in seconds], 6)})
    said = processor.finish(outputs, payload)
    assert isinstance(said, Transcript)
    assert said.text.split() == [["one", "", "two", "", "three", ""][s % 6] for s in range(100) if s % 2 == 0]


def test_windows_cover_the_recording() -> None:
    assert windows(RATE, RATE) == [(0, RATE)]
    size, overlap = int(WINDOW_SECONDS * RATE), int(OVERLAP_SECONDS * RATE)
    for samples in (size, size + 1, 2 * size, 10 * size + 17):
        found = windows(samples, RATE)
        assert found[0][0] == 0 and found[-1][1] == samples
        assert all(stop - start == size for start, stop in found[:-1])
        assert all(first[1] - second[0] == overlap for first, second in itertools.pairwise(found))


@pytest.mark.parametrize(
    ("kind", "subtype"),
    [("WAV", "PCM_16"), ("WAV", "PCM_24"), ("WAV", "FLOAT"), ("WAV", "ULAW"), ("FLAC", None), ("OGG", "VORBIS"), ("MP3", None)],
)
def test_every_format_is_read(kind: str, subtype: str | None) -> None:
    waveform, seconds = decode_audio(encoded(tone(), kind=kind, subtype=subtype), RATE, 10)
    assert waveform.dtype == np.float32 and waveform.ndim == 1
    assert seconds == pytest.approx(1.0, abs=0.1)
    assert np.abs(np.fft.rfft(waveform)[:1000]).argmax() == pytest.approx(440 * seconds, abs=2)


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000])
def test_any_rate_becomes_the_models_as_resampling_in_one_piece_would(rate: int) -> None:
    import soxr

    samples = tone(3.3, rate)
    waveform, seconds = decode_audio(encoded(samples, rate, subtype="FLOAT"), RATE, 10)
    assert seconds == pytest.approx(3.3, abs=0.001)
    want = soxr.resample(samples, rate, RATE)
    assert len(waveform) == len(want)
    np.testing.assert_allclose(waveform, want, atol=1e-5)


def test_channels_are_averaged() -> None:
    left = tone()
    waveform, _ = decode_audio(encoded(np.stack([left, -left, left], 1), subtype="FLOAT"), RATE, 10)
    np.testing.assert_allclose(waveform, left / 3, atol=1e-6)


def wav(
    rate: int = RATE, channels: int = 1, promised: int | None = None, body: bytes = bytes(RATE * 2), bits: int = 16
) -> bytes:
    align = channels * bits // 8
    head = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, channels, rate, rate * align % 2**32, align, bits)
    size = len(body) if promised is None else promised
    return b"RIFF" + struct.pack("<I", (len(body) + 36) % 2**32) + b"WAVE" + head + b"data" + struct.pack("<I", size) + body


BAD = {
    "nothing": (b"", "empty"),
    "text": (b"this is no recording" * 50, "no recording"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(400), "no recording"),
    "more promised than there": (wav(promised=36_000 * 32_000), "promises 1,152,000,000 bytes"),
    "all promised, nothing there": (wav(promised=2**32 - 1, body=b""), "no samples"),
    "cut off": (encoded(tone())[:-1000], "promises"),
    "no samples": (wav(body=b""), "no samples|no recording"),
    "rate zero": (wav(rate=0), "0 samples per second"),
    "no channels": (wav(channels=0), "0 channels"),
    "absurd rate": (wav(rate=2**31 - 1), "samples per second"),
    "low rate": (wav(rate=100), "100 samples per second"),
    "many channels": (wav(channels=600, body=bytes(1200 * 2000)), "channels"),
    "too short": (wav(body=bytes(200)), "0.006 s"),
    "no data chunk": (wav()[:36], "data"),
    "header alone": (wav()[:20], "data"),
    "NaN": (encoded(np.full(RATE, np.nan, np.float32), subtype="FLOAT"), "NaN"),
    "infinite": (encoded(np.full(RATE, np.inf, np.float32), subtype="FLOAT"), "NaN or infinite"),
    "too long": (encoded(np.zeros(RATE * 700, np.int16)), "700.0 s long and at most 600"),
    "hours in a small file": (encoded(np.zeros(4000 * 3600 * 2, np.int16), 8000, "FLAC"), "at most 600"),
    "another container": (encoded(tone(), kind="AU"), "AU, which is no recording"),
    "broken FLAC": (encoded(tone(), kind="FLAC")[:60], "no recording|no samples"),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_a_bad_recording_is_refused_in_a_sentence_fast_and_small(tmp_path: Path, bad: tuple[bytes, str]) -> None:
    data, says = bad
    processor = open_processor(TASK, *word_model(tmp_path), Settings(max_audio_seconds=600.0))
    tracemalloc.start()
    began = time.perf_counter()
    with pytest.raises(InvalidPayload, match=says):
        processor.prepare(AudioPayload(data))
    assert time.perf_counter() - began < 2
    assert tracemalloc.get_traced_memory()[1] < 40e6
    tracemalloc.stop()


def test_the_limit_on_seconds_is_a_setting(tmp_path: Path) -> None:
    payload = AudioPayload(encoded(tone(2)))
    folder, signature = word_model(tmp_path)
    open_processor(TASK, folder, signature, Settings(max_audio_seconds=2.0)).prepare(payload)
    with pytest.raises(InvalidPayload, match=r"at most 1\.5 s"):
        open_processor(TASK, folder, signature, Settings(max_audio_seconds=1.5)).prepare(payload)


def test_an_engine_that_decodes_by_itself_gets_the_waveform(tmp_path: Path) -> None:
    processor = open_processor(TASK, tmp_path, None)
    inputs = processor.prepare(AudioPayload(encoded(tone(2, 8000), 8000), language="nl", timestamps=True))[0]
    assert inputs["waveform"].shape == (1, 2 * RATE)
    assert inputs["language"][0] == "nl" and inputs["timestamps"][0]
    assert list(processor.prepare(AudioPayload(encoded(tone())))[0]) == ["waveform"]
    assert processor.units(AudioPayload(b""), [inputs]).audio_seconds == 2.0


def test_a_model_without_processor_files_says_what_to_name(tmp_path: Path) -> None:
    folder, signature = word_model(tmp_path)
    (folder / "processor_config.json").unlink()
    with pytest.raises(InvalidModel, match="--processor"):
        open_processor(TASK, folder, signature)


def test_signatures_that_take_no_speech_are_refused(tmp_path: Path) -> None:
    folder, signature = word_model(tmp_path)
    for wrong in (
        Signature((TensorSpec("ids", "int64", (None, None)),), signature.outputs),
        Signature(signature.inputs, (TensorSpec("a", "float32", (None, 2)),)),
    ):
        with pytest.raises(InvalidModel):
            open_processor(TASK, folder, wrong)


@pytest.mark.parametrize("key", ["feature_size", "sampling_rate"])
def test_an_extractor_whose_tables_would_fill_the_memory_is_refused(tmp_path: Path, key: str) -> None:
    folder, signature = word_model(tmp_path)
    path = next(path for path in folder.glob("*processor_config.json"))
    config = json.loads(path.read_text())
    config.get("feature_extractor", config)[key] = 10**9
    path.write_text(json.dumps(config))
    with pytest.raises(InvalidModel, match=f"{key} 1,000,000,000; at most"):
        open_processor("automatic-speech-recognition", folder, signature)
