"""A recording to what a model hears: features or samples, by the model's own extractor.

Knows recordings, extractors and windows. Refuses to know what is made of them.

Each recording keeps its own length: nothing is padded that the extractor itself doesn't pad, so what else is in a batch can't
change an answer.
"""

from __future__ import annotations

import io
import wave
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maasdam.core import AudioPayload, Payload, Section, Signature, TensorSpec
from maasdam.errors import InvalidModel, InvalidPayload
from maasdam.tasks.files import opened, preprocessor
from maasdam.tasks.pauses import pieces
from maasdam.tasks.recordings import Heard, decode_audio
from maasdam.tasks.spectrograms import ParakeetSpectrograms, Spectrograms

if TYPE_CHECKING:
    from maasdam.core import type_array

RECORDINGS = (
    ".wav", ".w64", ".aif", ".aiff", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".m4a", ".mp4", ".webm", ".aac"
)  # fmt: skip
WINDOW_SECONDS = 30.0
"""A longer recording is heard in windows of this length: attention over all of it would take memory with its square."""
OVERLAP_SECONDS = 4.0
"""What neighbouring windows share; each is trusted to the middle of it."""
MOST = {"feature_size": 4096, "num_mel_bins": 4096, "n_fft": 65_536, "sampling_rate": 192_000, "max_length": 65_536}
"""Settings of extractors that tables of their size are made for."""
TORCHLESS = {"ASTFeatureExtractor": Spectrograms, "ParakeetFeatureExtractor": ParakeetSpectrograms}
"""In the place of extractors that need torch, which a process that serves has not."""


class Windows(list[dict[str, "type_array"]]):
    """The inputs of one recording, and how long it was heard: a header may say more than there is."""

    def __init__(self, inputs: Iterable[dict[str, type_array]], seconds: float) -> None:
        super().__init__(inputs)
        self.seconds = seconds


class Recording:
    """The parts of one recording, cut at its pauses. See `core.Sections`."""

    def __init__(
        self, payload: AudioPayload, rate: int, max_seconds: float, inputs_of: Callable[[type_array], dict[str, type_array]]
    ) -> None:
        """`inputs_of` makes a model's inputs of samples [S] at `rate` Hz. `payload` says how pauses are told."""
        self._payload, self._rate, self._inputs_of = payload, rate, inputs_of
        self._heard = Heard(rate, max_seconds)

    @property
    def seconds(self) -> float:
        """That were heard until now."""
        return self._heard.seconds

    def __iter__(self) -> Iterator[Section | None]:
        """Raises InvalidPayload."""
        assert self._payload.pauses is not None
        for piece in pieces(self._heard.blocks(self._payload.data), self._rate, self._payload.pauses):
            yield None if piece is None else Section(self._inputs_of(piece.samples), piece.start)


class Hearing:
    """The extractor of one model. Thread-safe."""

    def __init__(self, folder: Path, signature: Signature, max_seconds: float, who: str) -> None:
        """`who` is the kind of model ("a CTC model"). Raises InvalidModel where files or signature are of no such model."""
        self._extractor = opened("feature extractor", folder, lambda: _open_extractor(folder))
        self._rate = int(self._extractor.sampling_rate)
        self._max_seconds = max_seconds
        self._features, self._mask = _inputs(signature, who)
        self._is_whole = None not in self._features.shape[1:]  # then the extractor pads or cuts it itself

    def __call__(self, payload: Payload) -> Windows:
        """One input for each window: features [1, T, F] or samples [1, S], and the mask if the model takes one.

        A model that takes one length alone hears no windows, but what its extractor makes of it all. Raises InvalidPayload.
        """
        assert isinstance(payload, AudioPayload)
        waveform, seconds = decode_audio(payload.data, self._rate, self._max_seconds)
        places = [(0, len(waveform))] if self._is_whole else windows(len(waveform), self._rate)
        return Windows((self._extract(waveform[start:stop]) for start, stop in places), seconds)

    def parts(self, payload: Payload) -> Recording | None:
        """The same by pieces between pauses, where the payload says how those are told. See `core.PiecewiseProcessor`."""
        assert isinstance(payload, AudioPayload)
        if payload.pauses is None or self._is_whole:
            return None
        return Recording(payload, self._rate, self._max_seconds, self._extract)

    def _extract(self, waveform: type_array) -> dict[str, type_array]:
        import numpy as np

        try:
            output = self._extractor(waveform, sampling_rate=self._rate, return_tensors="np")
        except Exception as error:
            raise InvalidPayload("the recording is too short for this model; send a longer one") from error
        name = next(k for k in ("input_features", "input_values") if k in output)
        features = np.ascontiguousarray(output[name], dtype=self._features.dtype)
        if features.ndim != len(self._features.shape):
            raise InvalidModel(
                f"the model's extractor makes features of shape {list(features.shape)}; its input '{self._features.name}' "
                f"has {len(self._features.shape)} axes"
            )
        inputs = {self._features.name: features}
        if self._mask is not None:
            mask = output.get("attention_mask")
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

    named = preprocessor(folder, "feature_extractor")
    for key, most in MOST.items():
        if isinstance(named.get(key), int | float) and named[key] > most:
            raise InvalidModel(f"the model's preprocessor_config.json has {key} {named[key]:,}; at most {most:,} is taken")
    name = named.get("feature_extractor_type")
    if name in TORCHLESS:
        return TORCHLESS[name](named)
    kind = getattr(transformers, name, None) if isinstance(name, str) and name.isidentifier() else None
    if kind is None or not issubclass(kind, transformers.SequenceFeatureExtractor):
        raise InvalidModel(
            f"the model's files name no feature extractor that transformers has (they say {name!r}); "
            "name a Hugging Face folder that has a preprocessor_config.json with --processor"
        )
    return kind(**{k: v for k, v in named.items() if k not in ("feature_extractor_type", "processor_class")})


def _inputs(signature: Signature, who: str) -> tuple[TensorSpec, TensorSpec | None]:
    floats = [s for s in signature.inputs if s.dtype.startswith("float")]
    others = [s for s in signature.inputs if not s.dtype.startswith("float")]
    if len(floats) != 1 or len(others) > 1 or (others and "mask" not in others[0].name):
        has = ", ".join(f"{s.name} ({s.dtype})" for s in signature.inputs)
        raise InvalidModel(f"{who} takes one tensor of floats and perhaps a mask; this model takes {has}")
    return floats[0], others[0] if others else None


def quiet(signature: Signature | None) -> Payload:
    """Half a second of silence."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(bytes(2 * 8000))
    return AudioPayload(out.getvalue())
