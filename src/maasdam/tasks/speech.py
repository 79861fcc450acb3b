"""Speech recognition: recording to features with the model's own extractor, frames to words with its tokenizer.

Knows CTC. Refuses to know engines and HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maasdam.core import (
    SPEECH_RECOGNITION,
    Answer,
    AudioPayload,
    Pauses,
    Payload,
    Processor,
    Section,
    Signature,
    Tensors,
    Transcript,
    Units,
)
from maasdam.errors import EngineFailure, InvalidField, InvalidModel
from maasdam.settings import Settings
from maasdam.tasks.ctc_times import WORD_BEGINS, certainties, frame_seconds, marked, segments_of, spelled, timed_words
from maasdam.tasks.examples import transcribed_files
from maasdam.tasks.files import opened, read_json
from maasdam.tasks.hearing import OVERLAP_SECONDS, RECORDINGS, WINDOW_SECONDS, Hearing, Recording, Windows, quiet
from maasdam.tasks.recordings import decode_audio
from maasdam.tasks.scoring import WER
from maasdam.tasks.task import Bytes, Task

if TYPE_CHECKING:
    from maasdam.core import type_array

WHISPER_RATE = 16_000


def _open(folder: Path, signature: Signature | None, settings: Settings) -> Processor:
    """For a CTC model (with a signature) or for an engine that decodes by itself (without). Raises InvalidModel."""
    seconds = settings.max_audio_seconds
    return WaveformProcessor(seconds) if signature is None else CtcProcessor(folder, signature, seconds)


class WaveformProcessor:
    """For engines that take a waveform and give text: Whisper."""

    task = SPEECH_RECOGNITION

    def __init__(self, max_seconds: float) -> None:
        self._max_seconds = max_seconds

    def prepare(self, payload: Payload) -> list[dict[str, type_array]]:
        """One "waveform" [1, S] at 16 kHz, with what else is asked for, see `whisper_engine`. Raises InvalidPayload."""
        assert isinstance(payload, AudioPayload)
        waveform, _ = decode_audio(payload.data, WHISPER_RATE, self._max_seconds)
        return [self._inputs(payload, waveform)]

    def parts(self, payload: Payload) -> Recording | None:
        """The same by pieces of what Whisper hears at once. See `core.PiecewiseProcessor`."""
        assert isinstance(payload, AudioPayload)
        if payload.pauses is None:
            return None
        return Recording(payload, WHISPER_RATE, self._max_seconds, partial(self._inputs, payload))

    def finish_part(self, outputs: Tensors, part: Section, payload: Payload) -> Answer:
        """Not used: the engine gives text."""
        return self.finish([outputs], payload)

    def _inputs(self, payload: AudioPayload, waveform: type_array) -> dict[str, type_array]:
        import numpy as np

        inputs: dict[str, type_array] = {"waveform": waveform[None]}
        if payload.language:
            inputs["language"] = np.array([payload.language], dtype=object)
        for name, is_asked in (("timestamps", payload.timestamps), ("translates", payload.translates)):
            if is_asked:
                inputs[name] = np.array([True])
        if payload.prompt:
            inputs["prompt"] = np.array([payload.prompt], dtype=object)
        return inputs

    def finish(self, outputs: Sequence[Tensors], payload: Payload) -> Answer:
        """Not used: the engine gives text."""
        raise EngineFailure("this engine gives text by itself; there is nothing to decode")

    def units(self, payload: Payload, prepared: Sequence[Tensors]) -> Units:
        """Seconds of sound."""
        return Units(audio_seconds=prepared[0]["waveform"].shape[1] / WHISPER_RATE)


class CtcProcessor:
    """The processor of one CTC model. Thread-safe."""

    task = SPEECH_RECOGNITION

    def __init__(self, folder: Path, signature: Signature, max_seconds: float) -> None:
        self._hear = Hearing(folder, signature, max_seconds, "a CTC model")
        self._tokenizer = opened("CTC tokenizer", folder, lambda: _open_tokenizer(folder))
        self._output = _frames_output(signature)
        self._frame_seconds = frame_seconds(folder)
        delimiter = getattr(self._tokenizer, "word_delimiter_token", None)
        has_words = any(piece == delimiter or piece.startswith(WORD_BEGINS) for piece in self._tokenizer.get_vocab())
        self._between = " " if has_words else ""
        self.abilities: Mapping[str, bool] = {
            "word_times": self._frame_seconds is not None,
            "transcript_logprobs": True,
        }

    def prepare(self, payload: Payload) -> list[dict[str, type_array]]:
        """One input for each window, see `Hearing`. Raises InvalidPayload, InvalidField for what no CTC model can."""
        self._check(payload)
        return self._hear(payload)

    def parts(self, payload: Payload) -> Recording | None:
        """See `Hearing.parts`. Raises InvalidField as `prepare` does."""
        self._check(payload)
        return self._hear.parts(payload)

    def _check(self, payload: Payload) -> None:
        assert isinstance(payload, AudioPayload)
        for name, what, is_asked in (
            ("model", "translates nothing; POST /v1/audio/transcriptions", payload.translates),
            ("prompt", "reads no prompt; leave it out", bool(payload.prompt)),
            ("temperature", "samples nothing; leave it out, or send 0", payload.temperature > 0),
            ("timestamp_granularities", "gives no times", payload.timestamps and not self.abilities["word_times"]),
        ):
            if is_asked:
                raise InvalidField(f"'{name}': this model spells what it hears, and {what}", name, "unsupported_parameter")

    def finish_part(self, outputs: Tensors, part: Section, payload: Payload) -> Answer:
        """See `core.PiecewiseProcessor`. Raises EngineFailure for NaN."""
        said = self.finish([outputs], payload)
        assert isinstance(said, Transcript)
        if not said.text:
            return said
        first = tuple(mark._replace(data=self._between.encode() + mark.data) for mark in said.marks[:1])
        return replace(said, text=self._between + said.text, marks=(*first, *said.marks[1:])).later(part.start)

    def finish(self, outputs: Sequence[Tensors], payload: Payload) -> Answer:
        """Frames [1, T, V] of each window -> the transcript, by the likeliest path. Raises EngineFailure for NaN.

        Its times are those of the frames that spell a word: CTC tells of sounds in their midst, not where they begin and end.
        """
        import numpy as np

        assert isinstance(payload, AudioPayload)
        ids: list[int] = []
        certain: list[float] = []
        times: list[float] = []
        cut = round(outputs[0][self._output].shape[1] * OVERLAP_SECONDS / 2 / WINDOW_SECONDS)  # the first window is a whole one
        for i, tensors in enumerate(outputs):
            frames = tensors[self._output][0]
            if not np.isfinite(frames).all():
                raise EngineFailure("the model's scores of this recording are not finite")
            best = frames.argmax(axis=-1).tolist()
            kept = range(cut if i else 0, len(best) - (cut if i < len(outputs) - 1 else 0))
            ids += best[kept.start : kept.stop]
            if payload.logprobs:
                certain += certainties(frames[kept.start : kept.stop])
            if self._frame_seconds is not None:
                begin = i * (WINDOW_SECONDS - OVERLAP_SECONDS)
                times += [begin + frame * self._frame_seconds for frame in kept]
        if self._frame_seconds is None and not payload.logprobs:
            return Transcript(str(self._tokenizer.decode(ids)).strip())
        text, letters = spelled(self._tokenizer, ids)
        marks = marked(letters, certain) if payload.logprobs else ()
        if self._frame_seconds is None:
            return Transcript(text, marks=marks)
        words = timed_words(letters, times, self._frame_seconds)
        return Transcript(text, segments_of(words, payload.timestamps), marks=marks)

    def units(self, payload: Payload, prepared: Sequence[Tensors]) -> Units:
        """Seconds of sound, as heard."""
        assert isinstance(prepared, Windows)
        return Units(audio_seconds=prepared.seconds)


def _open_tokenizer(folder: Path) -> Any:
    import transformers

    name = read_json(folder / "tokenizer_config.json").get("tokenizer_class") or "Wav2Vec2CTCTokenizer"
    kind = getattr(transformers, name, None) if isinstance(name, str) and name.isidentifier() else None
    if kind is None:
        raise InvalidModel(f"transformers has no tokenizer {name!r}")
    tokenizer = kind.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    if tokenizer.pad_token_id is None:
        raise InvalidModel("the model's tokenizer has no pad token; CTC takes it for the blank")
    return tokenizer


def _frames_output(signature: Signature) -> str:
    outputs = [s for s in signature.outputs if s.name == "logits"]
    outputs = outputs or [s for s in signature.outputs if len(s.shape) == 3 and s.dtype.startswith("float")]
    if len(outputs) != 1:
        has = ", ".join(s.name for s in signature.outputs)
        raise InvalidModel(f"a CTC model gives one output of 3 axes, or one called 'logits'; this model gives {has}")
    return outputs[0].name


TASK = Task(
    name=SPEECH_RECOGNITION,
    payloads=(AudioPayload,),
    answer=Transcript,
    takes="audio files",
    doors=("/v1/audio/transcriptions",),
    open=_open,
    warm_up=quiet,
    read_examples=lambda path, labels, signature: transcribed_files(path, RECORDINGS),
    metric=WER,
    same=lambda one, other: one.text == other.text,
    shown=lambda answer: answer.text,
    lines=lambda answer: [answer.text],
    to_json=lambda answer: {
        "text": answer.text,
        **({"segments": [dict(s) for s in answer.segments]} if answer.segments else {}),
    },
    suffixes=RECORDINGS,
    of_file=lambda data, top_k: AudioPayload(data, pauses=Pauses()),
    oip=Bytes("audio", (("transcript", "BYTES"),), lambda answer: (answer.text.encode(),)),
    loss="ctc",
)
