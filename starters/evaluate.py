"""Measure the shipped starter models again: every number in their cards comes from here.

    python starters/evaluate.py                          # what the repository alone can tell
    python starters/evaluate.py --data ../shared/data    # and what needs the shared data

Prints one JSON object. Runs the reference implementation (transformers, float32) on the
committed weights and files.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from PIL import Image
from speech import recordings, speak
from text import corpus, write
from torch.nn.functional import cross_entropy
from transformers import AutoImageProcessor, AutoModelForImageClassification, Wav2Vec2BertForCTC, Wav2Vec2BertProcessor

HERE = Path(__file__).parent
Scores = dict[str, float]
Sound = NDArray[np.float32]


def rows(folder: Path) -> list[dict[str, str]]:
    """The rows of a sample folder's `metadata.csv`."""
    with (folder / "metadata.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@torch.inference_mode()
def images() -> Scores:
    """Top-1 on the held-out images."""
    processor = AutoImageProcessor.from_pretrained(HERE / "images" / "model", backend="pil")
    model = AutoModelForImageClassification.from_pretrained(HERE / "images" / "model", dtype=torch.float32).eval()
    samples = HERE / "images" / "samples"
    described = rows(samples)
    pixels = processor([Image.open(samples / r["file_name"]) for r in described], return_tensors="np")["pixel_values"]
    answers = model(pixel_values=torch.from_numpy(pixels)).logits.argmax(-1).tolist()
    right = sum(model.config.id2label[a] == r["label"] for a, r in zip(answers, described, strict=True))
    return {"images": len(described), "top_1": right / len(described)}


@torch.inference_mode()
def bits_per_byte(text: str) -> tuple[float, float]:
    """Bits a byte, and perplexity a token, of `text`; each token sees 256-511 tokens before it."""
    model, tokenizer = write.load(HERE / "text" / "model")
    tokens = [tokenizer.bos_token_id, *tokenizer.encode(text, add_special_tokens=False)]
    half, nats = model.config.max_position_embeddings // 2, 0.0
    for start in range(0, len(tokens) - 1, half):
        window = torch.tensor(tokens[max(0, start - half) : start + half + 1])
        new = min(half, len(tokens) - 1 - start)
        nats += cross_entropy(model(input_ids=window[None, :-1]).logits[0, -new:], window[-new:], reduction="sum").item()
    return nats / np.log(2) / len(text.encode()), float(np.exp(nats / (len(tokens) - 1)))


def text(data: Path | None, count: int) -> Scores:
    """Loss on the held-out tenth; and of `count` completions of 128 tokens (half plain, half chat),
    how many words are real and how long the longest copied run is."""
    texts = [json.loads(line)["text"] for line in (HERE / "text" / "samples" / "text.jsonl").read_text().splitlines()]
    scores: Scores = {"samples_perplexity": _samples_perplexity(texts)}
    if data is None:
        return scores
    file = data / "text" / "tinyshakespeare.txt"
    scores["test_bits_per_byte"], scores["test_perplexity"] = bits_per_byte(corpus.parts(file).test)
    model, tokenizer = write.load(HERE / "text" / "model")
    everything = file.read_text()
    half = count // 2
    chats = write.chat_prompts(tokenizer)
    prompts = [str(tokenizer.bos_token)] * half + (chats * (half // len(chats) + 1))[:half]
    for name, settings in {"as_shipped": {}, "at_temperature_1": {"temperature": 1.0, "top_p": 1.0}}.items():
        written = write.completions(model, tokenizer, prompts, 128, seed=11, **settings)
        scores[f"real_words_{name}"] = corpus.real_share(written, everything)
        scores[f"longest_copy_{name}"] = corpus.longest_copy(written, everything)
        scores[f"words_{name}"] = sum(len(corpus.words(w)) for w in written)
        scores[f"chat_turns_ended_{name}"] = _ended(model, tokenizer, written[half:])
    scores["samples_longest_copy"] = corpus.longest_copy(texts, everything)
    return scores


def _ended(model: object, tokenizer: object, turns: Sequence[str]) -> float:
    """The share of chat turns that the model ended itself, within 128 tokens."""
    return sum(len(tokenizer.encode(t, add_special_tokens=False)) < 120 for t in turns) / len(turns)  # type: ignore[attr-defined]


def _samples_perplexity(texts: Sequence[str]) -> float:
    """Perplexity a token of the shipped samples, each scored on its own after the first token."""
    model, tokenizer = write.load(HERE / "text" / "model")
    nats, count = 0.0, 0
    with torch.inference_mode():
        for each in texts:
            tokens = torch.tensor([tokenizer.bos_token_id, *tokenizer.encode(each, add_special_tokens=False)])
            nats += cross_entropy(model(input_ids=tokens[None, :-1]).logits[0], tokens[1:], reduction="sum").item()
            count += len(tokens) - 1
    return float(np.exp(nats / count))


class Listener:
    """The speech model behind its own processor."""

    def __init__(self, folder: Path) -> None:
        self.processor = Wav2Vec2BertProcessor.from_pretrained(folder)
        self.model = Wav2Vec2BertForCTC.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.inference_mode()
    def transcripts(self, sounds: Sequence[Sound], together: int = 16) -> list[str]:
        """What is said in each 16 kHz sound, `together` at a time. Padding is decoded too: the model says nothing there."""
        found: list[str] = []
        for start in range(0, len(sounds), together):
            features = self.processor(
                list(sounds[start : start + together]), sampling_rate=16_000, return_tensors="pt", padding=True
            )
            found += self.processor.batch_decode(self.model(**features).logits.argmax(-1))
        return found

    def word_error_rate(self, examples: Sequence[tuple[Sequence[str], Sound]]) -> float:
        """Over (words, sound) pairs."""
        answers = self.transcripts([sound for _, sound in examples])
        return recordings.word_error_rate([(w, a.split()) for (w, _), a in zip(examples, answers, strict=True)])


def speech(data: Path | None, synthesise: bool) -> Scores:
    """Word error rates on shipped samples, on held-back recordings and on unheard voices."""
    listener, samples = Listener(HERE / "speech" / "model"), HERE / "speech" / "samples"
    shipped = [
        (r["transcription"].split(), soundfile.read(samples / r["file_name"], dtype="float32")[0]) for r in rows(samples)
    ]
    scores: Scores = {"samples": len(shipped), "samples_wer": listener.word_error_rate(shipped)}
    if data is not None:
        held = recordings.load(data / "spoken-digits", "test")
        scores["recordings"] = len(held)
        scores["recordings_wer"] = listener.word_error_rate([((r.word,), r.samples) for r in held])
        strung = recordings.strings(held, count=200, seed=77)
        scores["strings_wer"] = listener.word_error_rate(strung)
        mixed = [sound for _, sound in strung[:60]] + [r.samples for r in held[::5]]
        mixed = [mixed[i] for i in np.random.default_rng(0).permutation(len(mixed))]
        changed = [a != b for a, b in zip(listener.transcripts(mixed), listener.transcripts(mixed, together=1), strict=True)]
        scores["changed_by_batching"] = sum(changed) / len(changed)
    if synthesise:
        unheard = speak.unheard(seed=99, count=300)
        scores["unheard_voices_wer"] = listener.word_error_rate([(u.words, u.samples) for u in unheard])
        for program in ("espeak-ng", "flite"):
            mine = [(u.words, u.samples) for u in unheard if u.voice.program == program]
            scores[f"unheard_voices_wer_{program}"] = listener.word_error_rate(mine)
        silence = [np.zeros(16_000, np.float32), *np.random.default_rng(0).normal(0, 0.01, (19, 24_000)).astype(np.float32)]
        scores["wordless_with_words"] = sum(bool(t.strip()) for t in listener.transcripts(silence)) / len(silence)
    return scores


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="the shared data folder, for the numbers that need it")
    parser.add_argument("--only", choices=["images", "text", "speech"], help="one starter alone")
    parser.add_argument("--completions", type=int, default=200, help="how many texts to sample")
    parser.add_argument("--no-synthesis", action="store_true", help="skip what needs espeak-ng and flite")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data: Path | None = arguments.data
    measures = {
        "images": images,
        "text": lambda: text(data, arguments.completions),
        "speech": lambda: speech(data, not arguments.no_synthesis),
    }
    print(json.dumps({name: measure() for name, measure in measures.items() if arguments.only in (None, name)}, indent=2))


if __name__ == "__main__":
    main()
