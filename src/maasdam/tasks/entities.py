"""Token classification: a text to the stretches of it that have a label. Knows tags and stretches; never engines or HTTP.

Words that follow each other with one label are one stretch, in any of the ways to write tags: B-PER I-PER, S-PER or PER.
A tag is that of the first piece of a word, since data have tags a word.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maasdam.core import TOKEN_CLASSIFICATION, Answer, Payload, ReadPayload, Signature, Span, Spans, Tensors
from maasdam.errors import EngineFailure, InvalidInput, InvalidModel
from maasdam.tasks.examples import read_texts, text_in
from maasdam.tasks.files import labels_of
from maasdam.tasks.reading import Reader, Words, chances, units
from maasdam.tasks.scoring import ENTITIES
from maasdam.tasks.spans import finding, one_output, trimmed

if TYPE_CHECKING:
    from maasdam.core import type_array

OUTSIDE = "O"
BEGINS = ("B-", "S-", "U-")
INSIDE = ("I-", "E-", "L-", "M-")


class Tagger:
    """The processor of one tagger. Thread-safe."""

    task = TOKEN_CLASSIFICATION

    def __init__(self, folder: Path, signature: Signature | None) -> None:
        self.reader = Reader(folder, signature, "a token classifier")
        self.longest, self.spell = self.reader.longest, self.reader.spell
        assert signature is not None
        self._output = one_output(signature, 3, "a token classifier gives scores of each token's classes")
        self._labels = labels_of(folder)
        if not self._labels:
            raise InvalidModel("a token classifier needs id2label in its config.json: what its classes are called")

    def prepare(self, payload: Payload) -> list[dict[str, type_array]]:
        """One text -> one row. Raises InvalidPayload, InputTooLong."""
        assert isinstance(payload, ReadPayload)
        return self.reader.read(self.reader.of(payload))

    def finish(self, outputs: Sequence[Tensors], payload: Payload) -> Answer:
        """Scores of classes [1, T, C] -> stretches with their labels. Raises EngineFailure for NaN."""
        import numpy as np

        assert isinstance(payload, ReadPayload) and isinstance(payload.text, str)
        words = self.reader.of(payload)
        scores = np.asarray(outputs[0][self._output][0], dtype=np.float64)
        if not np.isfinite(scores).all():
            raise EngineFailure("the model's scores of this text are not finite")
        rows = chances(scores)
        tags = [(at, self._labels.get(int(rows[at].argmax()), OUTSIDE), float(rows[at].max())) for at in _first_pieces(words)]
        return Spans(tuple(_stretches(tags, words, payload.text)), words.cut)

    units = staticmethod(units)


def _first_pieces(words: Words) -> list[int]:
    """The first token of each word of the text."""
    return [
        at
        for at, of in enumerate(words.of)
        if of is not None and (words.word[at] is None or at == 0 or words.word[at] != words.word[at - 1])
    ]


def _stretches(tags: Sequence[tuple[int, str, float]], words: Words, text: str) -> list[Span]:
    """Tags of words -> stretches of the text; the score of one is the mean of its words'."""
    found: list[tuple[str, list[int], list[float]]] = []
    before = OUTSIDE
    for at, tag, score in tags:
        begins, label = tag.startswith(BEGINS), tag[2:] if tag.startswith((*BEGINS, *INSIDE)) else tag
        if label == OUTSIDE:
            before = OUTSIDE
            continue
        if begins or label != before:
            found.append((label, [], []))
        found[-1][1].append(at)
        found[-1][2].append(score)
        before = label
    out = []
    for label, places, scores in found:
        last = places[-1]
        while last + 1 < len(words.ids) and words.word[last] is not None and words.word[last + 1] == words.word[last]:
            last += 1  # the other pieces of the last word
        start, end = trimmed(text, words.spans[places[0]][0], words.spans[last][1])
        out.append(Span(text[start:end], start, end, sum(scores) / len(scores), label))
    return out


def tagged(
    tokens: Sequence[Any], tags: Sequence[Any], names: Mapping[int, str] | None, where: str
) -> tuple[str, tuple[Any, ...]]:
    """Words with their tags, as data have them -> the text, and its stretches as (start, end, label). Raises InvalidInput."""
    if len(tokens) != len(tags) or not all(isinstance(token, str) and token for token in tokens):
        raise InvalidInput(f"{where}: 'tokens' are texts, one for each of 'ner_tags'")
    names = names or {}
    text, spans, before = " ".join(tokens), [], OUTSIDE
    begin = 0
    for token, tag in zip(tokens, tags, strict=True):
        tag = names.get(tag, str(tag)) if isinstance(tag, int) else str(tag)
        label = tag[2:] if tag.startswith((*BEGINS, *INSIDE)) else tag
        if label != OUTSIDE:
            if tag.startswith(BEGINS) or label != before:
                spans.append((begin, begin + len(token), label))
            else:
                spans[-1] = (spans[-1][0], begin + len(token), label)
        before = label
        begin += len(token) + 1
    return text, tuple(spans)


def _read(path: Path, labels: Mapping[int, str] | None, signature: Signature | None) -> list[Any]:
    out: list[Any] = []
    for name, row in read_texts(path, "text", "tokens"):
        if isinstance(row.get("tokens"), list) and row["tokens"]:
            tags = row.get("ner_tags", row.get("tags"))
            text, spans = tagged(row["tokens"], tags or [0] * len(row["tokens"]), labels, name)
            out.append((name, ReadPayload(text, cuts=True), None if tags is None or labels is None else spans))
        else:
            out.append((name, ReadPayload(text_in(row, "text"), cuts=True), None))
    return out


def _places(answer: Spans) -> list[tuple[int, int, str | None]]:
    return [(span.start, span.end, span.label) for span in answer.spans]


TASK = finding(
    name=TOKEN_CLASSIFICATION,
    takes="texts",
    doors=("/v1/texts/entities",),
    open=lambda folder, signature, settings: Tagger(folder, signature),
    warm_up=lambda signature: ReadPayload("a", cuts=True),
    read_examples=_read,
    metric=ENTITIES,
    same=lambda one, other: _places(one) == _places(other),
    of_row=lambda row, top_k: ReadPayload(text_in(row, "text"), top_k=top_k),
)
