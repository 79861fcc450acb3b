"""Models that hear and write by themselves: Whisper by CTranslate2 through faster-whisper, or by transformers, as Moonshine.

Knows waveforms at 16 kHz and segments. Refuses to know audio files and HTTP.

A request carries "waveform" [1, S] float32, and where the caller said so "language" [1] object ("en"), "timestamps" [1] bool
(word times), "translates" [1] bool (into English) and "prompt" [1] object; of its `Sampling` temperature and logprobs count.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from maasdam.core import Artifact, Cost, Meter, SequenceRequest, Tensors, Tokens, total_cost
from maasdam.engines.mailbox import Hear, Job, Turns, tokens_of
from maasdam.engines.tensors import chosen, closed, first_line, loading_with
from maasdam.engines.transformers_library import MOONSHINE, architecture_of
from maasdam.errors import EngineFailure, InvalidField, MaasdamError, Unsupported
from maasdam.telemetry.meter import CpuMeter

if TYPE_CHECKING:
    from maasdam.core import type_array

NAME = "ctranslate2"
RATE = 16000
COMPUTE_TYPES = {"f32": "float32", "int8": "int8", "bf16": "bfloat16", "f16": "float16", "auto": "default"}

LONGEST_PROMPT = 8192
"""Characters of a prompt that are looked at, from its end: of those the model hears the last tokens, half its context."""

Segment = Mapping[str, Any]
"""{"start", "end", "text", "tokens"[, "words", "marks", …]}, see `core.Transcript` and `core.Tokens`."""


class Manner(NamedTuple):
    """How a recording is to be written."""

    language: str | None = None
    """None: as it is heard."""
    words: bool = False
    """With their times."""
    translates: bool = False
    """Into English."""
    prompt: str = ""
    temperature: float = 0.0
    logprobs: bool = False


class Writes(Protocol):
    """A Whisper model as the engine needs it. Used by one thread at a time."""

    end: int
    """The first token that is no text."""
    abilities: Mapping[str, bool]
    """See `core.Able`."""

    def transcribe(self, waveform: type_array, manner: Manner) -> tuple[str | None, Iterable[Segment]]:
        """waveform [S] at 16 kHz -> (its language, segments as they come). Raises InvalidField for what it can't give."""
        ...

    def log_likelihoods(self, waveform: type_array, tokens: Sequence[int], language: str | None) -> type_array:
        """How likely each of the `tokens` of text is after those before it, [T] float64, in the first half minute."""
        ...


def open(artifact: Artifact, device: str, settings: Mapping[str, Any]) -> WhisperEngine:
    """Open a CTranslate2 folder.

    Settings: "threads"; "precision": f32 (default), int8, bf16, f16, auto; what the processor has not is computed in float32.
    Greedy where no temperature is asked for, as transformers: the same recording always gives the same transcript, nothing is
    sampled again at higher temperatures. A half minute that is likelier than 0.6 to hold no speech, and whose text is less
    likely than e^-1 a token, has no text, as faster-whisper has it.
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
        self.abilities: Mapping[str, bool] = abilities(self._is_multilingual, is_whole=False)

    def transcribe(self, waveform: type_array, manner: Manner) -> tuple[str | None, Iterable[Segment]]:
        """See `Writes`. Raises InvalidField for times of words and log-probabilities, which this engine does not give too."""
        import torch

        for name, what, is_asked in (
            ("timestamp_granularities", "times of words", manner.words),
            ("include", "log-probabilities", manner.logprobs),
        ):
            if is_asked:
                raise InvalidField(
                    f"the engine transformers gives no {what}; leave '{name}' out, or deploy a build for CTranslate2", name
                )
        check_translates(manner, self._is_multilingual)
        # without truncation, transformers walks over recordings of any length by itself
        is_long = len(waveform) > 30 * RATE
        how = {"truncation": False, "padding": "longest", "return_attention_mask": True} if is_long else {}
        features = self._features(waveform, **how)
        language = self._language(features["input_features"], manner.language)
        task = "translate" if manner.translates else "transcribe"
        options: dict[str, Any] = {"language": language, "task": task} if language and self._is_multilingual else {}
        if manner.temperature:
            options |= {"temperature": manner.temperature, "do_sample": True}
        ids = prompt_ids(manner.prompt, lambda text: self._processor.tokenizer.encode(text, add_special_tokens=False), self.end)
        if ids:
            before = self._processor.tokenizer.convert_tokens_to_ids("<|startofprev|>")
            kept = ids[-(self._module.config.max_target_positions // 2 - 1) :]
            options["prompt_ids"] = torch.tensor([before, *kept], device=self._device)
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
            if language not in (None, "en"):
                raise unknown_language(language, ["en"])
            return "en"
        known = [name.strip("<|>") for name in self._module.generation_config.lang_to_id]
        if language is None:
            import torch

            with torch.inference_mode():
                ids = self._module.detect_language(input_features=features[..., :3000])
            return str(self._processor.tokenizer.decode(ids[:1])).strip("<|>")
        if language not in known:
            raise unknown_language(language, sorted(known))
        return language

    def _segment(self, raw: Mapping[str, Any]) -> Segment:
        tokens = tuple(int(token) for token in raw["tokens"])
        text = self._processor.tokenizer.decode(tokens, skip_special_tokens=True)
        return {"start": round(float(raw["start"]), 3), "end": round(float(raw["end"]), 3), "text": text, "tokens": tokens}


def abilities(is_multilingual: bool, *, is_whole: bool) -> dict[str, bool]:
    """What a model can; one that is not whole gives neither times of words nor log-probabilities."""
    given = dict.fromkeys(("word_times", "transcript_logprobs"), is_whole)
    return {"translations": is_multilingual, **given, "transcript_prompt": True, "transcript_temperature": True}


def unknown_language(language: str | None, known: Sequence[str]) -> InvalidField:
    """What is said of a language that a model does not know."""
    return InvalidField(f"this model doesn't know the language '{language}'; it knows: {', '.join(known)}", "language")


def check_translates(manner: Manner, is_multilingual: bool) -> None:
    """Raise InvalidField where a translation is wanted of a model of one language."""
    if manner.translates and not is_multilingual:
        raise InvalidField("this model knows English alone, and translates nothing; POST /v1/audio/transcriptions", "model")


def prompt_ids(prompt: str, encode: Callable[[str], Sequence[int]], end: int) -> list[int]:
    """The tokens of a prompt; [] of none. Raises InvalidField where it spells control tokens, which are no words."""
    text = prompt[-LONGEST_PROMPT:].strip()
    ids = list(encode(f" {text}")) if text else []
    if any(token >= end for token in ids):
        raise InvalidField("'prompt' holds a control token of the model, such as <|en|>; send plain words", "prompt")
    return ids


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
        self.abilities = model.abilities
        self._alone = threading.Lock()
        self.meter: Meter = CpuMeter()
        self._turns = Turns(name, lambda job: _Running(job, _written(model, job.request)), self._step, most=1)

    def start(self, request: SequenceRequest, hear: Hear) -> Callable[[], object]:
        """Text by segments; the last Tokens has `finish_reason` "stop" and no text.

        `hear` is told of InvalidField (a language it doesn't know), DeadlineExceeded, EngineFailure.
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


def _written(model: Writes, request: SequenceRequest) -> Iterator[Tokens]:
    """What the model writes of a recording, by segments, and then that it is done."""
    inputs, sampling = request.inputs, request.sampling
    manner = Manner(
        str(inputs["language"][0]) if "language" in inputs else None,
        "timestamps" in inputs and bool(inputs["timestamps"][0]),
        "translates" in inputs and bool(inputs["translates"][0]),
        str(inputs["prompt"][0]) if "prompt" in inputs else "",
        sampling.temperature or 0.0,
        sampling.logprobs is not None,
    )
    language, segments = model.transcribe(inputs["waveform"][0], manner)
    for segment in segments:
        tokens, marks = tuple(segment["tokens"]), segment.get("marks", ())
        told = {name: value for name, value in segment.items() if name != "marks"} | {"tokens": list(tokens)}
        yield Tokens(tokens, text=segment["text"], segments=(told,), marks=marks)
    yield Tokens((), text="", finish_reason="stop", language=language)
