"""Whisper, which decodes text by itself: CTranslate2 through faster-whisper, or transformers as it is.

Knows waveforms at 16 kHz and segments. Refuses to know audio files and HTTP.

A request carries "waveform" [1, S] float32, and where the caller said so "language" [1] object ("en") and
"timestamps" [1] bool (word times).
"""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from maasdam.core import Artifact, Meter, SequenceRequest, Tensors, Tokens
from maasdam.engines.mailbox import Job, tokens_of
from maasdam.engines.tensors import first_line, loading_with
from maasdam.errors import DeadlineExceeded, EngineFailure, InvalidInput, InvalidPayload, MaasdamError
from maasdam.telemetry.meter import CpuMeter

if TYPE_CHECKING:
    from maasdam.core import type_array

NAME = "ctranslate2"
RATE = 16000
COMPUTE_TYPES = {"f32": "float32", "int8": "int8", "bf16": "bfloat16", "f16": "float16", "auto": "default"}

Segment = Mapping[str, Any]
"""{"start", "end", "text", "tokens"[, "words", …]}, see `core.Transcript`."""


class Writes(Protocol):
    """A Whisper model as the engine needs it. Used by one thread at a time."""

    end: int
    """The first token that is no text."""

    def transcribe(self, waveform: type_array, language: str | None, words: bool) -> tuple[str | None, Iterable[Segment]]:
        """waveform [S] at 16 kHz -> (its language, segments as they come); `words` adds their times. Raises InvalidPayload."""
        ...

    def log_likelihoods(self, waveform: type_array, tokens: Sequence[int], language: str | None) -> type_array:
        """How likely each of the `tokens` of text is after those before it, [T] float64, in the first half minute."""
        ...


def open(artifact: Artifact, device: str, settings: Mapping[str, Any]) -> WhisperEngine:
    """Open a CTranslate2 folder.

    Settings: "threads"; "precision": f32 (default), int8, bf16, f16, auto; what the processor has not is computed in float32.
    Greedy, as transformers: the same recording always gives the same transcript, nothing is sampled again at higher
    temperatures.
    """
    precision = settings.get("precision", "f32")
    if precision not in COMPUTE_TYPES:
        raise InvalidInput(f"setting 'precision' is {precision!r}; it takes one of: {', '.join(COMPUTE_TYPES)}")
    with loading_with(NAME, artifact, "speech"):
        from maasdam.engines.faster_whisper_library import FasterWhisper

        kind = COMPUTE_TYPES[precision]
        model = FasterWhisper(artifact.path, device, kind, settings["threads"])
    return WhisperEngine(model, NAME)


def open_transformers_whisper(folder: Path, device: str) -> WhisperEngine:
    """Whisper on transformers and torch, with the folder's own feature extractor and tokenizer."""
    return WhisperEngine(_Transformers(folder, device), "transformers")


class _Transformers:
    """As transformers runs it: what its `generate` writes."""

    def __init__(self, folder: Path, device: str) -> None:
        from maasdam.engines.transformers_library import open_module, transformers_with_torch

        self._module = open_module(folder).to(device)
        self._processor = transformers_with_torch().WhisperProcessor.from_pretrained(str(folder), local_files_only=True)
        self._device = device
        told = self._module.generation_config
        self._is_multilingual = bool(getattr(told, "is_multilingual", hasattr(told, "lang_to_id")))
        self.end = int(self._processor.tokenizer.convert_tokens_to_ids("<|endoftext|>"))

    def transcribe(self, waveform: type_array, language: str | None, words: bool) -> tuple[str | None, Iterable[Segment]]:
        """See `Writes`. Raises InvalidPayload for words, whose times this engine does not give."""
        import torch

        if words:
            raise InvalidPayload(
                "the engine transformers gives no times of words; leave 'word' out, or deploy a build for CTranslate2"
            )
        # without truncation, transformers walks over recordings of any length by itself
        is_long = len(waveform) > 30 * RATE
        how = {"truncation": False, "padding": "longest", "return_attention_mask": True} if is_long else {}
        features = self._features(waveform, **how)
        language = self._language(features["input_features"], language)
        options = {"language": language, "task": "transcribe"} if language and self._is_multilingual else {}
        with torch.inference_mode():
            out = self._module.generate(**features, return_timestamps=True, return_segments=True, **options)
        return language, [self._segment(found) for found in out["segments"][0]]

    def log_likelihoods(self, waveform: type_array, tokens: Sequence[int], language: str | None) -> type_array:
        """See `Writes`."""
        import numpy as np
        import torch

        features = self._features(waveform[: 30 * RATE])
        tokenizer = self._processor.tokenizer
        names = ["<|startoftranscript|>"]
        if self._is_multilingual:
            names += [f"<|{self._language(features['input_features'], language)}|>", "<|transcribe|>"]
        start = [tokenizer.convert_tokens_to_ids(name) for name in [*names, "<|notimestamps|>"]]
        ids = torch.tensor([[*start, *tokens]], device=self._device)
        with torch.inference_mode():
            logits = self._module(**features, decoder_input_ids=ids).logits[0, len(start) - 1 : -1, : self.end]
        likely = logits.double().log_softmax(-1)[range(len(tokens)), list(tokens)]
        return np.asarray(likely.cpu().numpy())

    def _features(self, waveform: type_array, **how: Any) -> dict[str, Any]:
        found = self._processor.feature_extractor(waveform, sampling_rate=RATE, return_tensors="pt", **how)
        return {name: tensor.to(self._device) for name, tensor in found.items()}

    def _language(self, features: Any, asked: str | None) -> str | None:
        if not self._is_multilingual:
            return "en"
        known = [name.strip("<|>") for name in self._module.generation_config.lang_to_id]
        if asked is None:
            import torch

            with torch.inference_mode():
                found = self._module.detect_language(input_features=features[..., :3000])
            return str(self._processor.tokenizer.decode(found[:1])).strip("<|>")
        if asked not in known:
            raise InvalidPayload(f"this model doesn't know the language '{asked}'; it knows: {', '.join(sorted(known))}")
        return asked

    def _segment(self, found: Mapping[str, Any]) -> Segment:
        tokens = tuple(int(token) for token in found["tokens"])
        text = self._processor.tokenizer.decode(tokens, skip_special_tokens=True)
        return {"start": round(float(found["start"]), 3), "end": round(float(found["end"]), 3), "text": text, "tokens": tokens}


class WhisperEngine:
    """One model, one recording at a time, in a thread of its own; segments are handed out as they come."""

    context_length = 448

    def __init__(self, model: Writes, name: str) -> None:
        self._model: Writes | None = model
        self._name = name
        self.meter: Meter = CpuMeter()
        self._lock = threading.Lock()
        self._jobs: set[Job] = set()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)

    def submit(self, request: SequenceRequest) -> AsyncGenerator[Tokens]:
        """Text by segments; the last Tokens has `finish_reason` "stop" and no text. Closing the iterator cancels.

        Raises InvalidPayload (a language it doesn't know), DeadlineExceeded, EngineFailure.
        """
        return tokens_of(Job(request), self._start)

    def text_tokens(self, ids: Sequence[int]) -> list[int]:
        """Of an answer's tokens those that are text: no times, no controls."""
        model = self._model
        return [] if model is None else [i for i in ids if i < model.end]

    def log_likelihoods(self, inputs: Tensors, tokens: Sequence[int], language: str | None) -> type_array:
        """For verification: how likely each of the `tokens` of text is in the recording's first half minute, [T] float64."""
        if self._model is None:
            raise EngineFailure(f"the {self._name} engine was closed; open the model again")
        return self._pool.submit(self._model.log_likelihoods, inputs["waveform"][0], tokens, language).result()

    def close(self) -> None:
        """End what is in flight with EngineFailure and free the model."""
        self._model = None
        with self._lock:
            for job in self._jobs:
                job.is_cancelled = True
                job.fail(EngineFailure(f"the {self._name} engine was closed while it transcribed"))
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _start(self, job: Job) -> None:
        self.meter.exclude_this_thread()
        if self._model is None:
            raise EngineFailure(f"the {self._name} engine was closed; open the model again")
        with self._lock:
            self._jobs.add(job)
        self._pool.submit(self._run, job)

    def _run(self, job: Job) -> None:
        try:
            self._answer(job)
        except MaasdamError as error:
            job.fail(error)
        except Exception as error:
            job.fail(EngineFailure(f"engine {self._name} broke on a recording: {first_line(error)}"))
        finally:
            with self._lock:
                self._jobs.discard(job)

    def _answer(self, job: Job) -> None:
        model, inputs, deadline = self._model, job.request.inputs, job.request.deadline
        if model is None or job.is_cancelled:
            return
        language = str(inputs["language"][0]) if "language" in inputs else None
        has_words = "timestamps" in inputs and bool(inputs["timestamps"][0])
        span = self.meter.start()
        try:
            language, segments = model.transcribe(inputs["waveform"][0], language, has_words)
            for segment in segments:
                if job.is_cancelled:
                    return
                if deadline is not None and time.monotonic() > deadline:
                    raise DeadlineExceeded(f"request {job.request.id} was not transcribed in time")
                shown = {**segment, "tokens": list(segment["tokens"])}
                job.give(Tokens(tuple(segment["tokens"]), text=segment["text"], segments=(shown,)))
        finally:
            spent = self.meter.stop(span)
        job.give(Tokens((), text="", finish_reason="stop", cost=spent, language=language))
