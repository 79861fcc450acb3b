"""How good answers are. Knows each task's metric; never models or limits."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence

from maasdam.core import Classification, Example, Relevance, Score, Spans, Transcript, Vector
from maasdam.errors import InvalidInput
from maasdam.tasks.box_scoring import OVERLAP, PRECISION
from maasdam.tasks.task import Metric

TOP = 5
NEAREST = 10
"""Neighbours of a text that are compared, or half of the others where there are fewer than twice as many."""
AS_NEAR = 1e-5
"""A neighbour whose cosine, by the source, is so little below that of the last of its nearest is one of them."""
AS_RELEVANT = 1e-6
"""Documents whose scores, by the source, are so little apart are in no order."""
MOST_COMPARED = 2000
"""Texts whose neighbours are compared."""


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


def _neighbours(answers: Sequence[Vector], truths: Sequence[Vector], examples: Sequence[Example]) -> Score | None:
    """Of each text, the share of its nearest neighbours among the others that are its nearest by the source's vectors, too.

    None for fewer than three texts: there is nothing to rank.
    """
    import numpy as np

    count = min(len(answers), MOST_COMPARED)
    if count < 3:
        return None
    likenesses = []
    for side in (truths, answers):
        rows = np.stack([vector.values for vector in side[:count]]).astype(np.float64)
        rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        likeness = rows @ rows.T
        np.fill_diagonal(likeness, -np.inf)
        likenesses.append(likeness)
    wanted, got = likenesses
    nearest = min(NEAREST, max(1, (count - 1) // 2))
    last = np.sort(wanted, axis=1)[:, -nearest] - AS_NEAR
    found = np.argsort(-got, axis=1, kind="stable")[:, :nearest]
    shares = (np.take_along_axis(wanted, found, axis=1) >= last[:, None]).mean(axis=1)
    alike = [float(vector.values @ truth.values) for vector, truth in zip(answers, truths, strict=True)]
    lengths = [float(np.linalg.norm(v.values) * np.linalg.norm(t.values)) for v, t in zip(answers, truths, strict=True)]
    cosines = [a / max(n, 1e-12) for a, n in zip(alike, lengths, strict=True)]
    extra = {"cosine": sum(cosines) / len(cosines), "nearest": float(nearest)}
    return Score("neighbours", float(shares.mean()), count, extra, tuple((float(s), 1.0) for s in shares))


def _order(answers: Sequence[Relevance], truths: Sequence[Relevance], examples: Sequence[Example]) -> Score | None:
    """Of each two documents of a query, whether they stand in the order in which the source has them. Those that it finds as
    relevant as each other say nothing. None where no query has two that differ.
    """
    of_query: dict[object, list[int]] = {}
    for i, example in enumerate(examples):
        of_query.setdefault(getattr(example.payload, "text", None), []).append(i)
    shares = []
    for places in of_query.values():
        pairs = [(i, j) for i in places for j in places if truths[i].score > truths[j].score + AS_RELEVANT]
        if pairs:
            shares.append((float(sum(answers[i].score > answers[j].score for i, j in pairs)), float(len(pairs))))
    if not shares:
        return None
    right, asked = (sum(column) for column in zip(*shares, strict=True))
    return Score("order", right / asked, len(examples), {"queries": float(len(shares))}, tuple(shares))


def _entities(answers: Sequence[Spans], examples: Sequence[Example]) -> Score:
    """F1 of stretches with their labels over all texts: one that begins or ends elsewhere is another, as CoNLL has it."""
    shares = []
    for answer, example in zip(answers, examples, strict=True):
        found, wanted = {(s.start, s.end, s.label) for s in answer.spans}, set(example.truth)
        shares.append((2.0 * len(found & wanted), float(len(found) + len(wanted))))
    both, all_ = (sum(column) for column in zip(*shares, strict=True))
    return Score("f1", both / all_ if all_ else 1.0, len(examples), {}, tuple(shares))


def _filled(answers: Sequence[Spans], examples: Sequence[Example]) -> Score:
    """Whether the likeliest word of the first mask is the right one; "top5" whether it is among five."""
    right, among = [], 0
    for answer, example in zip(answers, examples, strict=True):
        words = [span.text.lower() for span in answer.spans if span.start == answer.spans[0].start][:TOP]
        right.append((float(words[0] == example.truth.strip().lower()), 1.0))
        among += example.truth.strip().lower() in words
    count = len(examples)
    return Score("top1", sum(above for above, _ in right) / count, count, {"top5": among / count}, tuple(right))


def _answers(answers: Sequence[Spans], examples: Sequence[Example]) -> Score:
    """F1 of the words of the best answer with the right one that it is most like, as SQuAD has it; "exact" counts equals."""
    shares, exact = [], 0
    for answer, example in zip(answers, examples, strict=True):
        got = _as_squad(answer.spans[0].text) if answer.spans else []
        truths = [_as_squad(truth) for truth in example.truth]
        shares.append((max(_overlap(got, truth) for truth in truths), 1.0))
        exact += got in truths
    count = len(examples)
    return Score("f1", sum(above for above, _ in shares) / count, count, {"exact": exact / count}, tuple(shares))


def _as_squad(text: str) -> list[str]:
    return [word for word in normalised(text).replace("'", "").split() if word not in ("a", "an", "the")]


def _overlap(got: list[str], wanted: list[str]) -> float:
    if not got or not wanted:
        return float(got == wanted)
    return 2 * (Counter(got) & Counter(wanted)).total() / (len(got) + len(wanted))


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
NEIGHBOURS = Metric("neighbours", None, "Agreement of nearest neighbours with the source", most=1.0, beside=_neighbours)
ORDER = Metric("order", None, "Agreement of the order of documents with the source", most=1.0, beside=_order)
ENTITIES = Metric("f1", "f1", "F1", most=1.0, score=_entities)
ANSWERS = Metric("f1", "f1", "F1", most=1.0, score=_answers)
FILLED = Metric("top1", "accuracy", "Top-1 accuracy", most=1.0, score=_filled)
METRICS = {metric.name: metric for metric in (TOP1, WER, PERPLEXITY, COSINE, NEIGHBOURS, ORDER, ENTITIES, PRECISION, OVERLAP)}
