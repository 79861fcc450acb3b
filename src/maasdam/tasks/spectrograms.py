"""The features of Audio Spectrogram Transformers and of Parakeet without torch, which transformers' own extractors need.

Knows what those extractors compute (of the first: where torchaudio is not installed): the same numbers, with numpy alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maasdam.core import type_array

FRAME, HOP, TRANSFORM = 400, 160, 512
"""Samples of one frame, between two, and of one Fourier transform, whatever the rate: transformers' constants."""
LEAST = 1.192092955078125e-07
"""What no band is quieter than."""


class Spectrograms:
    """As `transformers.ASTFeatureExtractor` of the same settings. Thread-safe."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        from transformers.audio_utils import mel_filter_bank, window_function

        self.sampling_rate = int(settings.get("sampling_rate", 16000))
        bands = int(settings.get("num_mel_bins", 128))
        self._frames = int(settings.get("max_length", 1024))
        normalizes = settings.get("do_normalize", True)
        self._mean = float(settings.get("mean", -4.2677393)) if normalizes else 0.0
        self._scale = 2 * float(settings.get("std", 4.5689974)) if normalizes else 1.0
        self._window = window_function(FRAME, "hann", periodic=False)
        self._filters = mel_filter_bank(
            num_frequency_bins=TRANSFORM // 2 + 1,
            num_mel_filters=bands,
            min_frequency=20,
            max_frequency=self.sampling_rate // 2,
            sampling_rate=self.sampling_rate,
            mel_scale="kaldi",
            triangularize_in_mel_space=True,
        )

    def __call__(self, waveform: type_array, *, sampling_rate: int, return_tensors: str) -> dict[str, type_array]:
        """Samples [S] -> {"input_values": [1, frames, bands]}, cut or filled up with nothing to the model's length."""
        import numpy as np
        from transformers.audio_utils import spectrogram

        bands = spectrogram(
            waveform,
            self._window,
            frame_length=FRAME,
            hop_length=HOP,
            fft_length=TRANSFORM,
            power=2.0,
            center=False,
            preemphasis=0.97,
            mel_filters=self._filters,
            log_mel="log",
            mel_floor=LEAST,
            remove_dc_offset=True,
        ).T[: self._frames]
        filled = np.pad(bands, ((0, self._frames - len(bands)), (0, 0)))
        return {"input_values": ((filled - self._mean) / self._scale)[None]}


LOUDER, STEADIER = 2.0**-24, 1e-5
"""What transformers adds to a band before its logarithm is taken, and to a deviation before it divides."""


class ParakeetSpectrograms:
    """As `transformers.ParakeetFeatureExtractor` (NeMo's) of the same settings. Thread-safe."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        from transformers.audio_utils import mel_filter_bank, window_function

        self.sampling_rate = int(settings.get("sampling_rate", 16000))
        self._hop, self._frame = int(settings.get("hop_length", 160)), int(settings.get("win_length", 400))
        self._transform = int(settings.get("n_fft", 512))
        if self._hop < 1 or not 0 < self._frame <= self._transform:
            raise ValueError(f"hop_length is {self._hop}, win_length {self._frame} and n_fft {self._transform}")
        self._preemphasis = settings.get("preemphasis", 0.97)
        self._window = window_function(self._frame, "hann", periodic=False)
        self._filters = mel_filter_bank(
            num_frequency_bins=self._transform // 2 + 1,
            num_mel_filters=int(settings.get("feature_size", 80)),
            min_frequency=0.0,
            max_frequency=self.sampling_rate / 2,
            sampling_rate=self.sampling_rate,
            norm="slaney",
            mel_scale="slaney",
        )

    def __call__(self, waveform: type_array, *, sampling_rate: int, return_tensors: str) -> dict[str, type_array]:
        """Samples [S] -> {"input_features": [1, frames, bands], "attention_mask": [1, frames]}.

        Each band has mean 0 and deviation 1. The last frame lies half beyond the end: it is masked. Raises ValueError for less
        than two others.
        """
        import numpy as np
        from transformers.audio_utils import spectrogram

        frames = len(waveform) // self._hop
        if frames < 2:
            raise ValueError("a deviation needs two frames")
        if self._preemphasis is not None:
            waveform = np.concatenate([waveform[:1], waveform[1:] - np.float32(self._preemphasis) * waveform[:-1]])
        bands = spectrogram(
            waveform,
            self._window,
            frame_length=self._frame,
            hop_length=self._hop,
            fft_length=self._transform,
            power=2.0,
            pad_mode="constant",
            mel_filters=self._filters,
            mel_floor=0.0,
        ).T
        told = np.log(bands + LOUDER)
        heard = told[:frames]
        normal = (told - heard.mean(axis=0)) / (heard.std(axis=0, ddof=1) + STEADIER)
        mask = np.arange(len(told)) < frames
        return {"input_features": (normal * mask[:, None])[None], "attention_mask": mask[None]}
