"""Make training recordings vary the way users' recordings do, and turn them into log-mel features.

Knows sound; never words, voices or models. Everything is float32 mono at 16 kHz.
"""

from __future__ import annotations

import numpy as np
import soxr
from numpy.typing import NDArray
from scipy import fft
from transformers import SeamlessM4TFeatureExtractor

RATE = 16_000
Sound = NDArray[np.float32]


def respeed(sound: Sound, factor: float) -> Sound:
    """Play `factor` times faster: tempo, pitch and formants all move."""
    if abs(factor - 1) < 0.005:
        return sound
    return soxr.resample(sound, round(RATE * factor), RATE, quality="LQ").astype(np.float32)


class Augmenter:
    """Random recording conditions. Keeps a bank of coloured noise, since making noise is slow."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self._bank = np.stack([self._coloured(14 * RATE, slope) for slope in np.linspace(0, 1.5, 12)])

    def _coloured(self, length: int, slope: float) -> Sound:
        """Noise of unit power whose spectrum falls by 6 * `slope` dB an octave."""
        spectrum = fft.rfft(self.rng.standard_normal(length, dtype=np.float32))
        hertz = np.maximum(np.arange(len(spectrum)) / length * RATE, 40.0).astype(np.float32)
        sound = fft.irfft(spectrum * hertz ** np.float32(-slope), length)
        return sound / sound.std()

    def noise(self, length: int) -> Sound:
        """Noise of a random colour and about unit power, up to 14 s."""
        row = self._bank[self.rng.integers(len(self._bank))]
        start = self.rng.integers(0, max(1, len(row) - length))
        return np.resize(row[start : start + length], length)

    def _filtered(self, sound: Sound) -> Sound:
        """A random smooth tone curve (a microphone), a random room and a random band, in one product."""
        rng = self.rng
        length = fft.next_fast_len(len(sound) + RATE // 4, real=True)
        spectrum = fft.rfft(sound, length)
        hertz = np.arange(len(spectrum), dtype=np.float32) * np.float32(RATE / length)
        if rng.random() < 0.4:
            knots = np.array([0, 200, 500, 1000, 2000, 4000, 8000])
            coarse = hertz[::64]
            gains = 10 ** (np.interp(coarse, knots, rng.uniform(-9, 9, len(knots))) / 20)
            spectrum *= np.repeat(gains.astype(np.float32), 64)[: len(spectrum)]
        if rng.random() < 0.25:
            seconds = rng.uniform(0.05, 0.25)
            decay = np.exp(-6.9 * np.arange(RATE // 4) / RATE / seconds)
            room = rng.standard_normal(RATE // 4) * decay
            room *= rng.uniform(0.1, 0.6) / np.sqrt((room**2).sum())
            room[0] = 1.0
            spectrum *= fft.rfft(room.astype(np.float32), length)
        if rng.random() < 0.5:
            low, high = rng.uniform(1, 300), rng.choice([3400.0, 3900.0, 4000.0, 5500.0, 7000.0])
            width = rng.uniform(50, 600)
            spectrum *= np.clip((high + width - hertz) / width, 0.001, 1) * np.clip(hertz / low, 0, 1)
        return fft.irfft(spectrum, length)[: len(sound)]

    def as_recorded(self, sound: Sound, with_silence: bool | None = None) -> tuple[Sound, int]:
        """One speech sound as some user might have recorded it: silence around it, level, noise, room.

        `with_silence` forces or forbids the silence. Also returns how many samples of it went before.
        """
        rng, before = self.rng, 0
        if rng.random() < 0.5 if with_silence is None else with_silence:
            before, after = (min(int(RATE * rng.exponential(0.2)), RATE) for _ in range(2))
            sound = np.pad(sound, (before, after))
        if rng.random() < 0.5:
            sound = self._filtered(sound)
        sound = sound / (np.abs(sound).max() + np.float32(1e-9))
        if rng.random() < 0.06:
            sound = np.clip(sound, -rng.uniform(0.2, 0.7), 0.7)
        sound = sound * np.float32(10 ** (-rng.uniform(0, 40) / 20))
        if rng.random() < 0.55:
            power = np.sqrt((sound**2).mean()) + 1e-9
            sound = sound + self.noise(len(sound)) * np.float32(power * 10 ** (-rng.uniform(3, 50) / 20))
        if rng.random() < 0.6:
            sound = np.round(sound * 32767) / 32768
        return sound.astype(np.float32), before

    def wordless(self) -> Sound:
        """A recording in which nobody speaks: silence, noise, a hum or a few clicks."""
        rng = self.rng
        length = int(RATE * rng.uniform(0.2, 2.5))
        sound = np.zeros(length, np.float32)
        kind = rng.random()
        if kind > 0.15:
            sound += self.noise(length) * np.float32(10 ** (-rng.uniform(20, 80) / 20))
        if kind > 0.7:
            phase = 2 * np.pi * rng.uniform(50, 1500) * np.arange(length) / RATE
            sound += (np.sin(phase) * 10 ** (-rng.uniform(20, 60) / 20)).astype(np.float32)
        if kind > 0.85:
            for start in rng.integers(0, length, rng.integers(1, 6)):
                click = self.noise(400) * np.exp(-np.arange(400) / 60).astype(np.float32)
                piece = sound[start : start + 400]
                piece += click[: len(piece)] * np.float32(rng.uniform(0.01, 0.3))
        return (np.round(sound * 32767) / 32768).astype(np.float32) if rng.random() < 0.5 else sound


class LogMel:
    """The numbers of `SeamlessM4TFeatureExtractor`, about ten times faster (frames in one product)."""

    def __init__(self, extractor: SeamlessM4TFeatureExtractor) -> None:
        self.window = extractor.window.astype(np.float32)
        self.mel_filters = extractor.mel_filters.astype(np.float32)

    def __call__(self, sound: Sound) -> Sound:
        """Features of shape (frames of 20 ms, 160), normalised per mel bin; an odd last frame is dropped."""
        frames = np.lib.stride_tricks.sliding_window_view(sound * np.float32(2**15), 400)[::160]
        frames = frames - frames.mean(1, keepdims=True)
        first = frames[:, :1] * np.float32(0.03)
        frames = np.concatenate([first, frames[:, 1:] - np.float32(0.97) * frames[:, :-1]], 1)
        power = np.abs(fft.rfft(frames * self.window, 512)) ** 2
        logmel = np.log(np.maximum(power.astype(np.float32) @ self.mel_filters, np.float32(1.192092955078125e-07)))
        logmel = (logmel - logmel.mean(0)) / np.sqrt(logmel.var(0, ddof=1) + np.float32(1e-7))
        return logmel[: len(logmel) // 2 * 2].reshape(-1, 160)
