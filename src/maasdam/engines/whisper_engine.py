"""Models that hear and write by themselves: Whisper by CTranslate2 through faster-whisper, or by transformers, as Moonshine.

Knows waveforms at 16 kHz and segments. Refuses to know audio files and HTTP.

A request carries "waveform" [1, S] float32, and where the caller said so "language" [1] object ("en") and
"timestamps" [1] bool (word times).
"""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from maasdam.core import Artifact, Cost, Meter, SequenceRequest, Tensors, Tokens, total_cost
from maasdam.engines.mailbox import Hear, Job, Turns, tokens_of
from maasdam.engines.tensors import chosen, closed, first_line, loading_with
from maasdam.engines.transformers_library import MOONSHINE, architecture_of
from maasdam.errors import EngineFailure, InvalidPayload, MaasdamError, Unsupported
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
    kind = COMPUTE_TYPES[chosen(settings, "precision", "f32", COMPUTE_TYPES)]
    with loading_with(NAME, artifact, "speech"):
        from maasdam.engines.faster_whisper_library import FasterWhisper

        model = FasterWhisper(artifact.path, device, kind, settings["threads"])
    return WhisperEngine(model, NAME)


def open_transformers_speech(folder: Path, device: str) -> WhisperEngine:
    """Whisper or Moonshine on transformers and torch, with the folder's own extractor and tokenizer. Raises Unsupported."""
    kind = architecture_of(folder)
    if kind == MOONSHINE:
        from maasdam.engines.moonshine_library import Moonshine

        return WhisperEngine(Moonshine(folder, device), "transformers")
    if not kind.startswith("Whisper"):
        raise Unsupported(f"{kind} writes what it hears, and of such models only Whisper and Moonshine are run here")
    return WhisperEngine(_Transformers(folder, device), "transformers")


class _Transformers:
    """As transformers runs it: what its `generate` writes."""

    def __init__(self, folder: Path, device: str) -> None:
        from maasdam.engines.transformers_library import open_module, transformers_with_torch

        self._module = open_module(folder).to(device)
        self._processor = transformers_with_torch().WhisperProcessor.from_pretrained(str(folder), local_files_only=True)
        self._device = device
        config = self._module.generation_config
        self._is_multilingual = bool(getattr(config, "is_multilingual", hasattr(config, "lang_to_id")))
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
        return language, [self._segment(segment) for segment in out["segments"][0]]

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
        features = self._processor.feature_extractor(waveform, sampling_rate=RATE, return_tensors="pt", **how)
        return {name: tensor.to(self._device) for name, tensor in features.items()}

    def _language(self, features: Any, language: str | None) -> str | None:
        if not self._is_multilingual:
            return "en"
        known = [name.strip("<|>") for name in self._module.generation_config.lang_to_id]
        if language is None:
            import torch

            with torch.inference_mode():
                ids = self._module.detect_language(input_features=features[..., :3000])
            return str(self._processor.tokenizer.decode(ids[:1])).strip("<|>")
        if language not in known:
            raise InvalidPayload(f"this model doesn't know the language '{language}'; it knows: {', '.join(sorted(known))}")
        return language

    def _segment(self, raw: Mapping[str, Any]) -> Segment:
        tokens = tuple(int(token) for token in raw["tokens"])
        text = self._processor.tokenizer.decode(tokens, skip_special_tokens=True)
        return {"start": round(float(raw["start"]), 3), "end": round(float(raw["end"]), 3), "text": text, "tokens": tokens}


class _Running:
    """A recording that is being heard."""

    def __init__(self, job: Job, written: Iterator[Tokens]) -> None:
        self.job, self.written = job, written
        self.cost: Cost | None = None


class WhisperEngine:
    """One model, one recording at a time, in a thread of its own; segments are handed out as they come."""

    context_length = 448

    def __init__(self, model: Writes, name: str) -> None:
        self._model: Writes | None = model
        self._name = name
        self._alone = threading.Lock()
        self.meter: Meter = CpuMeter()
        self._turns = Turns(name, lambda job: _Running(job, _written(model, job.request.inputs)), self._step, most=1)

    def start(self, request: SequenceRequest, hear: Hear) -> Callable[[], object]:
        """Text by segments; the last Tokens has `finish_reason` "stop" and no text.

        `hear` is told of InvalidPayload (a language it doesn't know), DeadlineExceeded, EngineFailure.
        """
        return self._turns.start(request, hear, self.meter)

    def submit(self, request: SequenceRequest) -> AsyncGenerator[Tokens]:
        """The same, to be awaited; closing it cancels."""
        return tokens_of(self, request)

    def text_tokens(self, ids: Sequence[int]) -> list[int]:
        """Of an answer's tokens those that are text: no times, no controls."""
        model = self._model
        return [] if model is None else [i for i in ids if i < model.end]

    def log_likelihoods(self, inputs: Tensors, tokens: Sequence[int], language: str | None) -> type_array:
        """For verification: how likely each of the `tokens` of text is in the recording's first half minute, [T] float64."""
        model = self._model
        if model is None:
            raise closed(self._name)
        with self._alone:
            return model.log_likelihoods(inputs["waveform"][0], tokens, language)

    def close(self) -> None:
        """End what is in flight with EngineFailure and free the model."""
        self._turns.close()
        self._model = None

    def _step(self, running: list[_Running]) -> list[_Running]:
        return [r for r in running if not self._is_done(r)]

    def _is_done(self, r: _Running) -> bool:
        """Hear the next segment of a recording; True when that was the end."""
        try:
            span = self.meter.start()
            try:
                with self._alone:
                    tokens = next(r.written)
            finally:
                r.cost = total_cost((r.cost, self.meter.stop(span)))
        except MaasdamError as error:
            r.job.fail(error)
            return True
        except Exception as error:
            r.job.fail(EngineFailure(f"engine {self._name} broke on a recording: {first_line(error)}"))
            return True
        r.job.give(tokens._replace(cost=r.cost))
        return tokens.finish_reason is not None


def _written(model: Writes, inputs: Tensors) -> Iterator[Tokens]:
    """What the model writes of a recording, by segments, and then that it is done."""
    language = str(inputs["language"][0]) if "language" in inputs else None
    has_words = "timestamps" in inputs and bool(inputs["timestamps"][0])
    language, segments = model.transcribe(inputs["waveform"][0], language, has_words)
    for segment in segments:
        tokens = tuple(segment["tokens"])
        yield Tokens(tokens, text=segment["text"], segments=({**segment, "tokens": list(tokens)},))
    yield Tokens((), text="", finish_reason="stop", language=language)
