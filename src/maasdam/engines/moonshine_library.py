"""Moonshine on transformers: it hears samples as they are and writes what is said, in one language that it isn't told.

Knows transformers' module, and where a recording is cut. Refuses to know artifacts, requests and settings.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maasdam.engines.transformers_library import open_module, transformers_with_torch
from maasdam.errors import InvalidField, InvalidPayload

if TYPE_CHECKING:
    from maasdam.core import type_array
    from maasdam.engines.whisper_engine import Manner

RATE = 16_000
LONGEST_SECONDS, LOOKS_SECONDS, QUIET_SECONDS = 30, 5, 0.1
"""A longer recording is cut where it is quietest for a tenth of a second, in the last five seconds of each half minute."""
LEAST_SAMPLES = 1_000
"""Its convolutions make no frame of fewer."""
TOKENS_A_SECOND = 13
"""Where Moonshine's makers stop it from repeating itself: 6.5 in English, twice that in languages of finer tokens."""


class Moonshine:
    """One opened model. Used by one thread at a time. See `whisper_engine.Writes`."""

    def __init__(self, folder: Path, device: str) -> None:
        transformers = transformers_with_torch()
        self._module = open_module(folder).to(device)
        self._extractor = transformers.AutoFeatureExtractor.from_pretrained(str(folder), local_files_only=True)
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        self._special = frozenset(self._tokenizer.all_special_ids)
        self._device = device
        self.end = int(self._module.config.vocab_size)
        names = ("translations", "word_times", "transcript_logprobs", "transcript_prompt", "transcript_temperature")
        self.abilities: Mapping[str, bool] = dict.fromkeys(names, False)

    def transcribe(self, waveform: type_array, manner: Manner) -> tuple[str | None, Iterable[Mapping[str, Any]]]:
        """See `whisper_engine.Writes`. Raises InvalidField for what it knows nothing of: languages, times, prompts."""
        for name, is_asked in (
            ("language", manner.language is not None),
            ("timestamp_granularities", manner.words),
            ("prompt", bool(manner.prompt)),
            ("temperature", manner.temperature != 0),
            ("include", manner.logprobs),
        ):
            if is_asked:
                raise InvalidField(f"this model writes what it hears in its one language; leave '{name}' out", name)
        if manner.translates:
            raise InvalidField("this model translates nothing; POST /v1/audio/transcriptions", "model")
        if len(waveform) < LEAST_SAMPLES:
            raise InvalidPayload("the recording is too short for this model; send a longer one")
        return None, self._segments(waveform)

    def log_likelihoods(self, waveform: type_array, tokens: Sequence[int], language: str | None) -> type_array:
        """See `whisper_engine.Writes`."""
        import numpy as np
        import torch

        start, stop = next(pieces(waveform))
        ids = torch.tensor([[self._module.config.decoder_start_token_id, *tokens]], device=self._device)
        with torch.inference_mode():
            logits = self._module(**self._heard(waveform[start:stop]), decoder_input_ids=ids).logits[0, :-1]
        return np.asarray(logits.double().log_softmax(-1)[range(len(tokens)), list(tokens)].cpu().numpy())

    def _segments(self, waveform: type_array) -> Iterator[Mapping[str, Any]]:
        import torch

        for start, stop in pieces(waveform):
            most = math.ceil((stop - start) / RATE * TOKENS_A_SECOND)
            with torch.inference_mode():
                ids = self._module.generate(**self._heard(waveform[start:stop]), max_new_tokens=most)[0].tolist()
            tokens = tuple(i for i in ids if i not in self._special)
            text = str(self._tokenizer.decode(tokens)).strip()
            text = f" {text}" if text else ""
            yield {"start": round(start / RATE, 3), "end": round(stop / RATE, 3), "text": text, "tokens": tokens}

    def _heard(self, samples: type_array) -> dict[str, Any]:
        inputs = self._extractor(samples, sampling_rate=RATE, return_tensors="pt")
        return {name: tensor.to(self._device) for name, tensor in inputs.items()}


def pieces(waveform: type_array) -> Iterator[tuple[int, int]]:
    """(start, stop) of each piece, none longer than LONGEST_SECONDS and none shorter than LEAST_SAMPLES."""
    import numpy as np

    start, size = 0, int(QUIET_SECONDS * RATE)
    while len(waveform) - start > LONGEST_SECONDS * RATE:
        first = start + (LONGEST_SECONDS - LOOKS_SECONDS) * RATE
        looked = waveform[first : min(start + LONGEST_SECONDS * RATE, len(waveform) - LEAST_SAMPLES)]
        loud = np.square(looked[: len(looked) // size * size].reshape(-1, size)).sum(axis=1)
        stop = first + int(loud.argmin()) * size + size // 2
        yield start, stop
        start = stop
    yield start, len(waveform)
