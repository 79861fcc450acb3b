"""How good answers are. Knows each task's metric; never models or limits."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from maasdam.core import Classification, Example, Score, Transcript
from maasdam.errors import InvalidInput
from maasdam.tasks.task import Metric

TOP = 5


def _top1(answers: Sequence[Classification], examples: Sequence[Example]) -> Score:
    among = 0
    right: list[tuple[float, float]] = []
    has_top = True
    for answer, example in zip(answers, examples, strict=True):
        ids = [label.label_id for label in answer.labels[:TOP]]
        right.append((float(ids[0] == example.truth), 1.0))
        among += example.truth in ids
        has_top = has_top and len(ids) == TOP
    count = len(examples)
    value = sum(above for above, _ in right) / count
    return Score("top1", value, count, {"top5": among / count} if has_top else {}, tuple(right))


def _wer(answers: Sequence[Transcript], examples: Sequence[Example]) -> Score:
    """Over all words of all recordings, as is usual: long recordings count more than short ones."""
    characters = wrong = perfect = 0
    heard_wrong: list[tuple[float, float]] = []
    for answer, example in zip(answers, examples, strict=True):
        truth, heard = normalised(str(example.truth)), normalised(answer.text)
        distance = edits(truth.split(), heard.split())
        heard_wrong.append((float(distance), float(len(truth.split()))))
        perfect += distance == 0
        characters, wrong = characters + len(truth), wrong + edits(truth, heard)
    errors, words = (sum(column) for column in zip(*heard_wrong, strict=True))
    if words == 0:
        raise InvalidInput("none of the transcriptions has a word in it; word error rate needs some")
    extra = {"cer": wrong / characters, "sentences_right": perfect / len(examples)}
    return Score("wer", errors / words, len(examples), extra, tuple(heard_wrong))


def normalised(text: str) -> str:
    """Lower case, Unicode composed, without punctuation but apostrophes inside words, single spaces.

    Numbers stay as they are written: "3" is not "three".
    """
    text = unicodedata.normalize("NFKC", text).lower().replace("\u2019", "'")
    kept = "".join(c if c == "'" or not unicodedata.category(c).startswith(("P", "S")) else " " for c in text)
    return " ".join(word for w in kept.split() if (word := w.strip("'")))


def edits(one: Sequence[str], other: Sequence[str]) -> int:
    """Insertions, deletions and replacements that turn one into the other, at least (Levenshtein)."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        previous, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (a != b))
    return row[-1]


TOP1 = Metric("top1", "accuracy", "Top-1 accuracy", most=1.0, score=_top1)
WER = Metric("wer", "wer", "Word error rate", is_lower_better=True, score=_wer)
PERPLEXITY = Metric("perplexity", "perplexity", "Perplexity", is_lower_better=True, is_relative=True)
COSINE = Metric("cosine")
METRICS = {metric.name: metric for metric in (TOP1, WER, PERPLEXITY, COSINE)}
