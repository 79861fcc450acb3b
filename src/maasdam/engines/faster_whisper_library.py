"""Whisper in CTranslate2, driven by faster-whisper, hearing what the model's own feature extractor hears.

Knows faster-whisper, and where it and transformers part. Refuses to know artifacts, requests and settings.

faster-whisper fills a half minute up with zeros *after* the logarithm and the normalisation, where a zero is a loud noise;
OpenAI's code and transformers fill the sound up with silence *before* it, and the model was trained so.
"""

from __future__ import annotations

import codecs
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ctranslate2
import numpy as np
from faster_whisper import WhisperModel
from faster_whisper.feature_extractor import FeatureExtractor
from faster_whisper.tokenizer import Tokenizer

from maasdam.core import BYTES_OF_LETTERS, Mark
from maasdam.engines.whisper_engine import Manner, abilities, check_translates, prompt_ids, unknown_language

if TYPE_CHECKING:
    from maasdam.core import type_array

logging.getLogger("faster_whisper").setLevel(logging.WARNING)  # it tells how long each recording is
QUIET = -1.5
"""What silence of digital zeros is after normalisation, in a recording of nothing else: (log10(1e-10) + 4) / 4."""
RANGE = 2.0
"""What is quieter than the loudest by more is raised to that: 8 / 4."""


class FasterWhisper:
    """One opened model. Used by one thread at a time. See `whisper_engine.Writes`."""

    def __init__(self, folder: Path, device: str, compute_type: str, threads: int) -> None:
        can = ctranslate2.get_supported_compute_types(device)
        kind = compute_type if compute_type in (*can, "default") else "float32"
        self._model = _Model(str(folder), device=device, compute_type=kind, cpu_threads=threads, local_files_only=True)
        extractor = self._model.feature_extractor
        self._model.feature_extractor = _Features(extractor)
        self.end = int(self._model.hf_tokenizer.token_to_id("<|endoftext|>"))
        config = json.loads((folder / "config.json").read_text())
        plain = self._model.model
        self._said = _Said(plain)
        self._models = {False: plain, True: self._said}
        spelled = self._model.hf_tokenizer.token_to_id
        self._known = [code for code in self._model.supported_languages if spelled(f"<|{code}|>") is not None] or ["en"]
        self.abilities: Mapping[str, bool] = abilities(bool(plain.is_multilingual), is_whole=True)
        self._how = {
            "beam_size": 1,
            "best_of": 1,
            "condition_on_previous_text": False,
            "suppress_tokens": list(config.get("suppress_ids") or []),  # the model's own, not faster-whisper's guess
        }

    def transcribe(self, waveform: type_array, manner: Manner) -> tuple[str | None, Iterable[Mapping[str, Any]]]:
        """See `whisper_engine.Writes`."""
        if manner.language is not None and manner.language not in self._known:
            raise unknown_language(manner.language, self._known)
        check_translates(manner, self.abilities["translations"])
        encode = self._model.hf_tokenizer.encode
        ids = prompt_ids(manner.prompt, lambda text: encode(text, add_special_tokens=False).ids, self.end)
        self._model.model = self._models[manner.logprobs]
        segments, info = self._model.transcribe(
            waveform,
            language=manner.language,
            task="translate" if manner.translates else "transcribe",
            word_timestamps=manner.words,
            initial_prompt=ids or None,
            temperature=manner.temperature,
            **self._how,
        )
        return str(info.language), self._segments(segments, manner)

    def log_likelihoods(self, waveform: type_array, tokens: Sequence[int], language: str | None) -> type_array:
        """See `whisper_engine.Writes`."""
        model = self._model
        features = model.feature_extractor(waveform[: model.feature_extractor.n_samples])[:, :-1]
        room = model.feature_extractor.nb_max_frames - features.shape[1]
        encoded = model.encode(np.pad(features, [(0, 0), (0, max(0, room))]))
        if model.model.is_multilingual and language is None:
            language = model.model.detect_language(encoded)[0][0][0].strip("<|>")
        tokenizer = Tokenizer(model.hf_tokenizer, model.model.is_multilingual, task="transcribe", language=language or "en")
        alignment = model.model.align(encoded, tokenizer.sot_sequence, [list(tokens)], features.shape[1])[0]
        likely: type_array = np.log(np.maximum(np.asarray(alignment.text_token_probs, np.float64), 1e-30))
        return likely

    def _segments(self, segments: Iterable[Any], manner: Manner) -> Iterator[Mapping[str, Any]]:
        decoder, length = codecs.getincrementaldecoder("utf-8")("replace"), 0
        for s in segments:  # its numbers are numpy's
            segment: dict[str, Any] = {"start": _at(s.start), "end": _at(s.end), "text": s.text}
            if manner.words:
                timed = s.words or ()
                segment["words"] = [{"word": w.word, "start": _at(w.start), "end": _at(w.end)} for w in timed]
            segment |= {"tokens": tuple(int(token) for token in s.tokens), "seek": int(s.seek)}
            for name in ("temperature", "avg_logprob", "compression_ratio", "no_speech_prob"):
                segment[name] = float(getattr(s, name))
            if manner.logprobs:
                marks = []
                for token, logprob in self._said.of(s.tokens):
                    if token < self.end:
                        data = _bytes(self._model.hf_tokenizer.id_to_token(token))
                        marks.append(Mark(data, length, logprob))
                        length += len(decoder.decode(data))
                segment["marks"] = tuple(marks)
            yield segment


def _at(seconds: Any) -> float:
    """A time as a plain number, to the millisecond: sums of hundredths leave 23.240000000000002."""
    return round(float(seconds), 3)


def _bytes(token: str) -> bytes:
    return bytes(BYTES_OF_LETTERS[c] for c in token) if all(c in BYTES_OF_LETTERS for c in token) else token.encode()


class _Said:
    """CTranslate2's model that also tells how likely each token of its newest half minute was, by the rules it decodes by."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._told: list[tuple[int, float]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def generate(self, *given: Any, **how: Any) -> Any:
        """As CTranslate2's."""
        results = self._model.generate(*given, return_logits_vocab=True, **how)
        here = ctranslate2.Device.cpu
        logits = (np.asarray(row.to_device(here), np.float64).reshape(-1) for row in results[0].logits[0])
        self._told = [(token, _logprob(row, token)) for token, row in zip(results[0].sequences_ids[0], logits, strict=False)]
        return results

    def of(self, tokens: Sequence[int]) -> list[tuple[int, float]]:
        """The next of them that are these tokens; what stands before them was said of no segment."""
        sought, told = list(tokens), [token for token, _ in self._told]
        start = next(i for i in range(len(told)) if told[i : i + len(sought)] == sought)
        found, self._told = self._told[start : start + len(sought)], self._told[start + len(sought) :]
        return found


def _logprob(row: type_array, token: int) -> float:
    most = row.max()
    return float(row[token] - most - np.log(np.exp(row - most).sum()))


class _Features(FeatureExtractor):  # type: ignore[misc]  # it ships no types
    """Log-mel features [mels, frames] of the sound followed by half a minute of silence, of which one frame is kept."""

    silence = QUIET
    """What a frame of the silence after the last recording holds."""

    def __init__(self, like: FeatureExtractor) -> None:
        self.__dict__ |= like.__dict__

    def __call__(self, waveform: type_array, padding: int = 0, chunk_length: int | None = None) -> type_array:
        """`padding` and `chunk_length` are faster-whisper's; neither changes what is given."""
        features: type_array = super().__call__(np.pad(waveform, (0, self.n_samples)), padding=0, chunk_length=chunk_length)
        self.silence = max(QUIET, float(features.max()) - RANGE)
        return features[:, : len(waveform) // self.hop_length + 1]


class _Model(WhisperModel):  # type: ignore[misc]  # it ships no types
    def encode(self, features: type_array) -> Any:
        """Encode one half minute; what it was filled up with becomes silence."""
        features = np.array(features)
        heard = np.flatnonzero(features.any(axis=-2))
        features[..., (heard[-1] + 1 if len(heard) else 0) :] = self.feature_extractor.silence
        return super().encode(features)
