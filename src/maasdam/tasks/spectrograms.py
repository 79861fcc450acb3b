"""The features of Audio Spectrogram Transformers without torch, which transformers' own extractor of them needs.

Knows what that extractor computes where torchaudio is not installed: the same numbers, with numpy alone.
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
