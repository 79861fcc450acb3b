"""How likely somebody speaks, frame by frame, in sound that comes in pieces. Knows samples; never files, words or cuts.

Silero's detector of voice activity (version 6, MIT licence), which faster-whisper brings with it: an ONNX file of 1.2 MB, by
which onnxruntime hears half an hour in five seconds. Where it is not installed, what is loud enough counts as speech.
"""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maasdam.core import type_array

FRAME_SECONDS = 0.032
"""What one probability is about."""
RATE = 16_000
FRAME = 512
CONTEXT = 64
"""Samples before a frame that are heard with it."""
FILE = Path("assets", "silero_vad_v6.onnx")
FLOOR_DECIBELS, RANGE_DECIBELS = -72.0, 40.0
"""Of full scale: what is below the first is surely silence, what is above both surely a sound."""


def detects() -> bool:
    """Whether the detector is installed, or only loudness can be told."""
    return _file() is not None


class Voice:
    """Of one recording, whose samples come in order."""

    def __init__(self, rate: int) -> None:
        """`rate` is that of the samples, Hz."""
        import numpy as np
        import soxr

        file = _file()
        self._session = None if file is None else _opened(file)
        self._resampler = None if rate == RATE else soxr.ResampleStream(rate, RATE, 1, dtype="float32")
        self._rest = np.zeros(0, np.float32)
        self._context = np.zeros(CONTEXT, np.float32)
        self._state = {name: np.zeros((1, 1, 128), np.float32) for name in ("h", "c")}

    def __call__(self, samples: type_array, is_last: bool = False) -> type_array:
        """The next samples [S] -> [N] float32, 0 to 1, of each frame that they complete; the last is filled up with zeros."""
        import numpy as np

        if self._resampler is not None:
            samples = self._resampler.resample_chunk(samples, last=is_last)
        there = np.concatenate([self._rest, samples])
        if is_last:
            there = np.pad(there, (0, -len(there) % FRAME))
        whole = len(there) // FRAME * FRAME
        frames, self._rest = there[:whole].reshape(-1, FRAME), there[whole:]
        if not len(frames):
            return np.zeros(0, np.float32)
        if self._session is None:
            decibels = 10 * np.log10(np.square(frames).mean(axis=1) + 1e-12)
            loud: type_array = np.clip((decibels - FLOOR_DECIBELS) / RANGE_DECIBELS, 0, 1)
            return loud
        before = np.concatenate([self._context[None], frames[:-1, -CONTEXT:]])
        self._context = frames[-1, -CONTEXT:]
        inputs = {"input": np.concatenate([before, frames], axis=1), **self._state}
        found, self._state["h"], self._state["c"] = self._session.run(None, inputs)
        likely: type_array = found.reshape(-1)
        return likely


def _file() -> Path | None:
    found = importlib.util.find_spec("faster_whisper")  # it is not imported: that takes a second
    folders = [] if found is None else list(found.submodule_search_locations or ())
    return next((file for folder in folders if (file := Path(folder) / FILE).is_file()), None)


@lru_cache(maxsize=1)
def _opened(file: Path) -> Any:
    """Its session, which any number of threads may run."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
