"""Speech recognition: recording to features with the model's own extractor, frames to words with its tokenizer.

Knows recordings, CTC and windows. Refuses to know engines and HTTP.

Each recording keeps its own length: nothing is padded, so what else is in a batch can't change a transcript.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maasdam.core import (
    SPEECH_RECOGNITION,
    Answer,
    AudioPayload,
    Payload,
    Processor,
    Signature,
    Tensors,
    TensorSpec,
    Transcript,
    Units,
)
from maasdam.errors import EngineFailure, InvalidModel, InvalidPayload
from maasdam.tasks.files import opened, read_json
from maasdam.tasks.recordings import decode_audio

if TYPE_CHECKING:
    from maasdam.core import type_array

WINDOW_SECONDS = 30.0
"""A longer recording is heard in windows of this length: attention over all of it would take memory with its square."""
OVERLAP_SECONDS = 4.0
"""What neighbouring windows share; each is trusted to the middle of it."""
WHISPER_RATE = 16_000
MOST = {"feature_size": 4096, "num_mel_bins": 4096, "n_fft": 65_536, "sampling_rate": 192_000}
"""Settings of extractors that tables of their size are made for."""


def open_speech(folder: Path, signature: Signature | None, max_seconds: float) -> Processor:
    """For a CTC model (with a signature) or for an engine that decodes by itself (without). Raises InvalidModel."""
    if signature is None:
        return WaveformProcessor(max_seconds)
    return CtcProcessor(folder, signature, max_seconds)


class WaveformProcessor:
    """For engines that take a waveform and give text: Whisper."""

    task = SPEECH_RECOGNITION

    def __init__(self, max_seconds: float) -> None:
        self._max_seconds = max_seconds

    def prepare(self, payload: Payload) -> list[dict[str, type_array]]:
        """One "waveform" [1, S] at 16 kHz, with "language" [1] and "timestamps" [1] where asked for. Raises InvalidPayload."""
        import numpy as np

        assert isinstance(payload, AudioPayload)
        waveform, _ = decode_audio(payload.data, WHISPER_RATE, self._max_seconds)
        inputs: dict[str, type_array] = {"waveform": waveform[None]}
        if payload.language:
            inputs["language"] = np.array([payload.language], dtype=object)
        if payload.timestamps:
            inputs["timestamps"] = np.array([True])
        return [inputs]

    def finish(self, outputs: Sequence[Tensors], payload: Payload) -> Answer:
        """Not used: the engine gives text."""
        raise EngineFailure("this engine gives text by itself; there is nothing to decode")

    def units(self, payload: Payload, prepared: Sequence[Tensors]) -> Units:
        """Seconds of sound."""
        return Units(audio_seconds=prepared[0]["waveform"].shape[1] / WHISPER_RATE)


class Windows(list[dict[str, "type_array"]]):
    """The inputs of one recording, and how long it was heard: a header may say more than there is."""

    def __init__(self, inputs: Iterable[dict[str, type_array]], seconds: float) -> None:
        super().__init__(inputs)
        self.seconds = seconds


class CtcProcessor:
    """The processor of one CTC model. Thread-safe."""

    task = SPEECH_RECOGNITION

    def __init__(self, folder: Path, signature: Signature, max_seconds: float) -> None:
        self._extractor = opened("feature extractor", folder, lambda: _open_extractor(folder))
        self._tokenizer = opened("CTC tokenizer", folder, lambda: _open_tokenizer(folder))
        self._rate = int(self._extractor.sampling_rate)
        self._max_seconds = max_seconds
        self._features, self._mask = _inputs(signature)
        self._output = _frames_output(signature)

    def prepare(self, payload: Payload) -> list[dict[str, type_array]]:
        """One input for each window: features [1, T, F] or samples [1, S], and the mask if the model takes one.

        Raises InvalidPayload.
        """
        assert isinstance(payload, AudioPayload)
        waveform, seconds = decode_audio(payload.data, self._rate, self._max_seconds)
        return Windows((self._extract(waveform[start:stop]) for start, stop in windows(len(waveform), self._rate)), seconds)

    def finish(self, outputs: Sequence[Tensors], payload: Payload) -> Answer:
        """Frames [1, T, V] of each window -> the transcript, by the likeliest path. Raises EngineFailure for NaN."""
        import numpy as np

        ids: list[int] = []
        cut = round(outputs[0][self._output].shape[1] * OVERLAP_SECONDS / 2 / WINDOW_SECONDS)  # the first window is a whole one
        for i, tensors in enumerate(outputs):
            frames = tensors[self._output][0]
            if not np.isfinite(frames).all():
                raise EngineFailure("the model's scores of this recording are not finite")
            best = frames.argmax(axis=-1).tolist()
            ids += best[cut if i else 0 : len(best) - (cut if i < len(outputs) - 1 else 0)]
        return Transcript(str(self._tokenizer.decode(ids)).strip())

    def units(self, payload: Payload, prepared: Sequence[Tensors]) -> Units:
        """Seconds of sound, as heard."""
        assert isinstance(prepared, Windows)
        return Units(audio_seconds=prepared.seconds)

    def _extract(self, waveform: type_array) -> dict[str, type_array]:
        import numpy as np

        try:
            found = self._extractor(waveform, sampling_rate=self._rate, return_tensors="np")
        except Exception as error:
            raise InvalidPayload("the recording is too short for this model; send a longer one") from error
        name = next(k for k in ("input_features", "input_values") if k in found)
        features = np.ascontiguousarray(found[name], dtype=self._features.dtype)
        if features.ndim != len(self._features.shape):
            raise InvalidModel(
                f"the model's extractor makes features of shape {list(features.shape)}; its input '{self._features.name}' "
                f"has {len(self._features.shape)} axes"
            )
        inputs = {self._features.name: features}
        if self._mask is not None:
            mask = found.get("attention_mask")
            mask = np.ones(features.shape[:2]) if mask is None else mask
            inputs[self._mask.name] = np.ascontiguousarray(mask, dtype=self._mask.dtype)
        return inputs


def windows(samples: int, rate: int) -> list[tuple[int, int]]:
    """Where to cut: one window for a recording of up to WINDOW_SECONDS, else windows that overlap; the last may be short."""
    size, overlap = int(WINDOW_SECONDS * rate), int(OVERLAP_SECONDS * rate)
    if samples <= size:
        return [(0, samples)]
    starts = list(range(0, samples - overlap, size - overlap))
    return [(start, min(start + size, samples)) for start in starts]


def _open_extractor(folder: Path) -> Any:
    import transformers

    named = read_json(folder / "preprocessor_config.json") or read_json(folder / "processor_config.json").get(
        "feature_extractor", {}
    )
    for key, most in MOST.items():
        if isinstance(named.get(key), int | float) and named[key] > most:
            raise InvalidModel(f"the model's preprocessor_config.json has {key} {named[key]:,}; at most {most:,} is taken")
    name = named.get("feature_extractor_type")
    kind = getattr(transformers, name, None) if isinstance(name, str) and name.isidentifier() else None
    if kind is None or not issubclass(kind, transformers.SequenceFeatureExtractor):
        raise InvalidModel(
            f"the model's files name no feature extractor that transformers has (they say {name!r}); "
            "name a Hugging Face folder that has a preprocessor_config.json with --processor"
        )
    return kind(**{k: v for k, v in named.items() if k not in ("feature_extractor_type", "processor_class")})


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


def _inputs(signature: Signature) -> tuple[TensorSpec, TensorSpec | None]:
    floats = [s for s in signature.inputs if s.dtype.startswith("float")]
    others = [s for s in signature.inputs if not s.dtype.startswith("float")]
    if len(floats) != 1 or len(others) > 1 or (others and "mask" not in others[0].name):
        has = ", ".join(f"{s.name} ({s.dtype})" for s in signature.inputs)
        raise InvalidModel(f"a CTC model takes one tensor of floats and perhaps a mask; this model takes {has}")
    return floats[0], others[0] if others else None


def _frames_output(signature: Signature) -> str:
    found = [s for s in signature.outputs if s.name == "logits"]
    found = found or [s for s in signature.outputs if len(s.shape) == 3 and s.dtype.startswith("float")]
    if len(found) != 1:
        has = ", ".join(s.name for s in signature.outputs)
        raise InvalidModel(f"a CTC model gives one output of 3 axes, or one called 'logits'; this model gives {has}")
    return found[0].name
