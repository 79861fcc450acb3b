"""When words were said, and how surely, from the frames in which a CTC model spelled them.

Knows frames, letters and pauses; never sound.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maasdam.core import Mark
from maasdam.tasks.files import preprocessor, read_json

if TYPE_CHECKING:
    from maasdam.core import type_array

PAUSE_SECONDS = 0.8
"""Of silence between words, where a subtitle ends."""
LONGEST_SECONDS = 8.0
"""Of a subtitle that somebody can read while it is said."""
CONVOLVED = ("wav2vec2", "hubert", "wavlm", "unispeech", "unispeech-sat", "data2vec-audio")
"""Kinds of model whose frames come out of strided convolutions over samples."""
MEL_HOP_SECONDS = 0.01
"""Between the frames of SeamlessM4T's extractor, which it joins by its `stride`."""
WORD_BEGINS = "\u2581"
"""SentencePiece's mark."""

Word = dict[str, Any]


def frame_seconds(folder: Path) -> float | None:
    """How long after another each frame begins; None where this kind of model is not known."""
    config, extractor = read_json(folder / "config.json"), preprocessor(folder, "feature_extractor")
    kind = config.get("model_type")
    try:
        steps = config.get("adapter_stride", 2) ** config.get("num_adapter_layers", 3) if config.get("add_adapter") else 1
        if kind in CONVOLVED:
            seconds = math.prod(config["conv_stride"]) / extractor.get("sampling_rate", 16_000)
        elif kind == "wav2vec2-bert":
            seconds = MEL_HOP_SECONDS * extractor.get("stride", 2)
        elif kind == "parakeet_ctc":
            hop = extractor.get("hop_length", 160) / extractor.get("sampling_rate", 16_000)
            seconds = hop * config["encoder_config"].get("subsampling_factor", 8)
        else:
            return None
        return float(seconds * steps) or None
    except (KeyError, TypeError, ZeroDivisionError, OverflowError):
        return None


def spelled(tokenizer: Any, ids: Sequence[int]) -> tuple[str, list[Mapping[str, Any]]]:
    """The frames' likeliest tokens as text, and what `timed_words` takes: what each token spells, and between which frames.

    A tokenizer that knows no frames (Parakeet's) spells pieces of words, those that begin one with a mark.
    """
    if hasattr(tokenizer, "word_delimiter_token"):
        told = tokenizer.decode(ids, output_char_offsets=True)
        return str(told.text).strip(), told.char_offsets
    letters: list[Mapping[str, Any]] = []
    frame = 0
    for token, group in groupby(ids):
        end = frame + len(list(group))
        if token != tokenizer.pad_token_id:
            piece = str(tokenizer.convert_ids_to_tokens(token)).replace(WORD_BEGINS, " ")
            letters.append({"char": piece, "start_offset": frame, "end_offset": end})
        frame = end
    return str(tokenizer.decode(ids)).strip(), letters


def certainties(frames: type_array) -> list[float]:
    """How likely each frame's likeliest token is, a natural logarithm, of scores or probabilities [T, V]."""
    import numpy as np

    rows = frames.astype(np.float64)
    if (rows >= 0).all() and np.allclose(rows.sum(-1), 1, atol=1e-3):
        likeliest = np.log(np.maximum(rows.max(-1), 1e-30))
    else:
        likeliest = -np.log(np.exp(rows - rows.max(-1, keepdims=True)).sum(-1))
    return [float(value) for value in likeliest]


def marked(letters: Sequence[Mapping[str, Any]], certain: Sequence[float]) -> tuple[Mark, ...]:
    """What the tokenizer spelled as tokens, but for the space around it: each as likely as the frames that spell it are in the
    mean, as `certainties` has them.
    """
    spelled = [(str(letter["char"]), range(int(letter["start_offset"]), int(letter["end_offset"]))) for letter in letters]
    said = [i for i, (text, _) in enumerate(spelled) if text.strip()]
    marks, at = [], 0
    for text, frames in spelled[said[0] : said[-1] + 1] if said else ():
        marks.append(Mark(text.encode(), at, sum(certain[i] for i in frames) / len(frames)))
        at += len(text)
    return tuple(marks)


def timed_words(letters: Sequence[Mapping[str, Any]], times: Sequence[float], frame: float) -> list[Word]:
    """Words and their times from what the tokenizer spelled: "char", and between which frames ("start_offset", "end_offset").

    `times` are those of the frames, each `frame` seconds long. A token may be a letter, a whole word, or the space between.
    """
    words: list[Word] = []
    is_inside = False
    for letter in letters:
        text = str(letter["char"])
        start, end = times[int(letter["start_offset"])], times[int(letter["end_offset"]) - 1] + frame
        for place, part in enumerate(text.split(" ")):
            is_inside = is_inside and not place
            if part and is_inside:
                words[-1]["word"] += part
                words[-1]["end"] = end
            elif part:
                words.append({"word": part, "start": start, "end": end})
                is_inside = True
    return [word | {"start": round(word["start"], 3), "end": round(word["end"], 3)} for word in words]


def segments_of(words: Sequence[Word], with_words: bool) -> tuple[Mapping[str, Any], ...]:
    """The words as subtitles: one ends where nothing is said for a while, or where it would be long."""
    groups: list[list[Word]] = []
    for word in words:
        last = groups[-1] if groups else None
        if last and word["start"] - last[-1]["end"] < PAUSE_SECONDS and word["end"] - last[0]["start"] <= LONGEST_SECONDS:
            last.append(word)
        else:
            groups.append([word])
    return tuple(
        {
            "start": group[0]["start"],
            "end": group[-1]["end"],
            "text": " ".join(word["word"] for word in group),
            **({"words": group} if with_words else {}),
        }
        for group in groups
    )
