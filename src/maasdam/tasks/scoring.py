"""How good answers are. Knows each task's metric; never models or limits."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from maasdam.core import IMAGE_CLASSIFICATION, SPEECH_RECOGNITION, Answer, Classification, Example, Score, Transcript
from maasdam.errors import InvalidInput, Unsupported

TOP = 5


def score_answers(task: str, answers: Sequence[Answer], examples: Sequence[Example]) -> Score:
    """See `maasdam.tasks.score`."""
    if len(answers) != len(examples):
        raise InvalidInput(f"{len(answers)} answers to {len(examples)} examples; they go one to one")
    if not examples:
        raise InvalidInput("there are no examples to score; give --data that holds some")
    unlabelled = next((e.name for e in examples if e.truth is None), None)
    if unlabelled is not None:
        raise InvalidInput(f"example '{unlabelled}' has no label to score against; add one to metadata.csv")
    if task == IMAGE_CLASSIFICATION:
        return _top1(answers, examples)
    if task == SPEECH_RECOGNITION:
        return _wer(answers, examples)
    raise Unsupported(f"task '{task}' has no metric over answers")


def _top1(answers: Sequence[Answer], examples: Sequence[Example]) -> Score:
    among = 0
    right: list[tuple[float, float]] = []
    has_top = True
    for answer, example in zip(answers, examples, strict=True):
        assert isinstance(answer, Classification)
        ids = [label.label_id for label in answer.labels[:TOP]]
        right.append((float(ids[0] == example.truth), 1.0))
        among += example.truth in ids
        has_top = has_top and len(ids) == TOP
    count = len(examples)
    value = sum(above for above, _ in right) / count
    return Score("top1", value, count, {"top5": among / count} if has_top else {}, tuple(right))


def _wer(answers: Sequence[Answer], examples: Sequence[Example]) -> Score:
    """Over all words of all recordings, as is usual: long recordings count more than short ones."""
    characters = wrong = perfect = 0
    heard_wrong: list[tuple[float, float]] = []
    for answer, example in zip(answers, examples, strict=True):
        assert isinstance(answer, Transcript)
        said, heard = normalised(str(example.truth)), normalised(answer.text)
        distance = edits(said.split(), heard.split())
        heard_wrong.append((float(distance), float(len(said.split()))))
        perfect += distance == 0
        characters, wrong = characters + len(said), wrong + edits(said, heard)
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
