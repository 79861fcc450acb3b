"""Whisper, which decodes text by itself: CTranslate2 through faster-whisper, or transformers as it is.

Knows waveforms at 16 kHz and segments. Refuses to know audio files and HTTP.

A request carries "waveform" [1, S] float32, and where the caller said so "language" [1] object ("en") and
"timestamps" [1] bool (word times).
"""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maasdam.core import Artifact, SequenceRequest, Tokens
from maasdam.engines.compute_share import CpuMeter
from maasdam.engines.mailbox import Job, tokens_of
from maasdam.engines.tensors import first_line, loading_with
from maasdam.errors import DeadlineExceeded, EngineFailure, InvalidInput, InvalidPayload, MaasdamError

if TYPE_CHECKING:
    from maasdam.core import type_array

NAME = "ctranslate2"
RATE = 16000
COMPUTE_TYPES = {"f32": "float32", "int8": "int8", "bf16": "bfloat16", "f16": "float16", "auto": "default"}

Transcribe = Callable[["type_array", str | None, bool], Iterator[Mapping[str, Any]]]
"""waveform [S], language, word times? -> segments {"start", "end", "text", "tokens"[, "words"]}."""


def open(artifact: Artifact, device: str, settings: Mapping[str, Any]) -> WhisperEngine:
    """Open a CTranslate2 folder.

    Settings: "threads"; "precision": f32 (default), int8, bf16, f16, auto; "beam_size" (default 1: greedy, as transformers).
    The same recording always gives the same transcript: nothing is sampled again at higher temperatures.
    """
    precision = settings.get("precision", "f32")
    if precision not in COMPUTE_TYPES:
        raise InvalidInput(f"setting 'precision' is {precision!r}; it takes one of: {', '.join(COMPUTE_TYPES)}")
    with loading_with(NAME, artifact, "speech"):
        from faster_whisper import WhisperModel

        model = WhisperModel(
            str(artifact.path),
            device=device,
            compute_type=COMPUTE_TYPES[precision],
            cpu_threads=settings["threads"],
            local_files_only=True,
        )

    def transcribe(waveform: type_array, language: str | None, words: bool) -> Iterator[Mapping[str, Any]]:
        if language is not None and language not in model.supported_languages:
            raise InvalidPayload(
                f"this model doesn't know the language '{language}'; it knows: {', '.join(model.supported_languages)}"
            )
        how = {"beam_size": int(settings.get("beam_size", 1)), "temperature": 0.0, "condition_on_previous_text": False}
        for s in model.transcribe(waveform, language=language, word_timestamps=words, **how)[0]:
            segment: dict[str, Any] = {"start": s.start, "end": s.end, "text": s.text, "tokens": tuple(s.tokens)}
            if words:
                segment["words"] = [{"word": w.word, "start": w.start, "end": w.end} for w in s.words or ()]
            yield segment

    return WhisperEngine(transcribe, NAME)


def open_transformers_whisper(folder: Path, device: str) -> WhisperEngine:
    """Whisper on transformers and torch, with the folder's own feature extractor and tokenizer."""
    from maasdam.engines.transformers_library import open_module, transformers_with_torch

    module = open_module(folder).to(device)
    processor = transformers_with_torch().WhisperProcessor.from_pretrained(str(folder), local_files_only=True)
    import torch

    def transcribe(waveform: type_array, language: str | None, words: bool) -> Iterator[Mapping[str, Any]]:
        # without truncation, transformers walks over recordings of any length by itself
        is_long = len(waveform) > 30 * RATE
        how = {"truncation": False, "padding": "longest", "return_attention_mask": True} if is_long else {}
        features = processor.feature_extractor(waveform, sampling_rate=RATE, return_tensors="pt", **how)
        options = {"language": language} if language else {}
        with torch.inference_mode():
            out = module.generate(**{k: v.to(device) for k, v in features.items()}, return_timestamps=True, **options)
        parts = processor.tokenizer.decode(out[0], output_offsets=True)["offsets"]
        for part in parts:
            start, end = part["timestamp"]
            yield {"start": start, "end": end, "text": part["text"], "tokens": ()}

    return WhisperEngine(transcribe, "transformers")


class WhisperEngine:
    """One model, one recording at a time, in a thread of its own; segments are handed out as they come."""

    context_length = 448

    def __init__(self, transcribe: Transcribe, name: str) -> None:
        self._transcribe: Transcribe | None = transcribe
        self._name = name
        self._meter = CpuMeter()
        self._lock = threading.Lock()
        self._jobs: set[Job] = set()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)

    def submit(self, request: SequenceRequest) -> AsyncIterator[Tokens]:
        """Text by segments; the last Tokens has `finish_reason` "stop" and no text. Closing the iterator cancels.

        Raises InvalidPayload (a language it doesn't know), DeadlineExceeded, EngineFailure.
        """
        return tokens_of(Job(request), self._start)

    def close(self) -> None:
        """End what is in flight with EngineFailure and free the model."""
        self._transcribe = None
        with self._lock:
            for job in self._jobs:
                job.is_cancelled = True
                job.fail(EngineFailure(f"the {self._name} engine was closed while it transcribed"))
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _start(self, job: Job) -> None:
        self._meter.exclude_this_thread()
        if self._transcribe is None:
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
        transcribe, inputs, deadline = self._transcribe, job.request.inputs, job.request.deadline
        if transcribe is None or job.is_cancelled:
            return
        language = str(inputs["language"][0]) if "language" in inputs else None
        before = self._meter.seconds()
        for segment in transcribe(inputs["waveform"][0], language, "timestamps" in inputs and bool(inputs["timestamps"][0])):
            if job.is_cancelled:
                return
            if deadline is not None and time.monotonic() > deadline:
                raise DeadlineExceeded(f"request {job.request.id} was not transcribed in time")
            shown = {k: v for k, v in segment.items() if k != "tokens"}
            job.give(Tokens(tuple(segment["tokens"]), text=segment["text"], segments=(shown,)))
        job.give(Tokens((), text="", finish_reason="stop", compute_seconds=self._meter.seconds() - before))
