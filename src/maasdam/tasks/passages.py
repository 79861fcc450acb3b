"""Question answering: the stretch of a context that answers a question. Knows texts and stretches; never engines or HTTP.

A context longer than the model reads is read in windows that overlap by half, and the best stretch of all is the answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maasdam.core import QUESTION_ANSWERING, Answer, Payload, ReadPayload, Signature, Span, Spans, Tensors
from maasdam.errors import EngineFailure, InvalidModel, InvalidPayload
from maasdam.tasks.examples import read_texts, text_in
from maasdam.tasks.reading import Reader, Words, chances, units
from maasdam.tasks.scoring import ANSWERS
from maasdam.tasks.spans import finding, trimmed

if TYPE_CHECKING:
    from maasdam.core import type_array

MOST_TOKENS = 30
"""Of an answer."""
MOST_WINDOWS = 64
LEAST_ROOM = 8
"""Tokens of a context beside a question."""
LOGITS = ("start_logits", "end_logits")


class Answerer:
    """The processor of one model that finds answers. Thread-safe."""

    task = QUESTION_ANSWERING

    def __init__(self, folder: Path, signature: Signature | None) -> None:
        self.reader = Reader(folder, signature, "a model that finds answers")
        self.longest, self.spell = self.reader.longest, self.reader.spell
        assert signature is not None
        if not set(LOGITS) <= {spec.name for spec in signature.outputs}:
            has = ", ".join(spec.name for spec in signature.outputs)
            raise InvalidModel(f"a model that finds answers gives {' and '.join(LOGITS)}; this model gives {has}")

    def prepare(self, payload: Payload) -> list[dict[str, type_array]]:
        """A question and a context -> a row a window. Raises InvalidPayload."""
        return self.reader.read(*self._windows(payload))

    def _windows(self, payload: Payload) -> list[Words]:
        assert isinstance(payload, ReadPayload)
        if payload.beside is None or not isinstance(payload.text, str):
            raise InvalidPayload("a model that finds answers reads a question and a context; send both")
        words = self.reader.words(payload.text, payload.beside, is_bounded=False)
        longest = self.longest or len(words.ids)
        if len(words.ids) <= longest:
            return [words]
        context = [at for at, of in enumerate(words.of) if of == 1]
        room = longest - (len(words.ids) - len(context))
        if room < LEAST_ROOM:
            raise InvalidPayload(f"the question is too long: it leaves {max(room, 0)} of {longest} tokens for its context")
        steps = range(0, max(1, len(context) - room // 2), max(1, room // 2))
        if len(steps) > MOST_WINDOWS:
            raise InvalidPayload(
                f"the context has {len(context):,} tokens, and this model reads {room} at a time, at most "
                f"{room // 2 * MOST_WINDOWS:,} in all; send less"
            )
        kept = [set(context[begin : begin + room]) for begin in steps]
        return [words.without(set(context) - window)._replace(cuts=(0, 0)) for window in kept]

    def finish(self, outputs: Sequence[Tensors], payload: Payload) -> Answer:
        """Scores of where an answer starts and ends [1, T] a window -> the `top_k` best stretches. Raises EngineFailure."""
        import numpy as np

        assert isinstance(payload, ReadPayload) and payload.beside is not None
        found: dict[tuple[int, int], float] = {}
        for words, tensors in zip(self._windows(payload), outputs, strict=True):
            starts, ends = (np.asarray(tensors[name][0], dtype=np.float64) for name in LOGITS)
            if not (np.isfinite(starts).all() and np.isfinite(ends).all()):
                raise EngineFailure("the model's scores of this text are not finite")
            is_context = np.array([of == 1 for of in words.of])
            starts, ends = (chances(np.where(is_context, x, -1e4)[None])[0] for x in (starts, ends))
            behind = np.concatenate([ends, np.zeros(MOST_TOKENS - 1)])  # of each start only so many ends are looked at
            table = starts[:, None] * np.lib.stride_tricks.sliding_window_view(behind, MOST_TOKENS)
            for place in np.argsort(-table, axis=None, kind="stable")[: max(1, payload.top_k)]:
                start, more = np.unravel_index(place, table.shape)
                if table[start, more] > 0:
                    where = trimmed(payload.beside, words.spans[start][0], words.spans[start + more][1])
                    found[where] = max(found.get(where, 0.0), float(table[start, more]))
        best = sorted(found.items(), key=lambda one: -one[1])[: max(1, payload.top_k)]
        return Spans(tuple(Span(payload.beside[start:end], start, end, score) for (start, end), score in best))

    units = staticmethod(units)


def _read(path: Path, labels: Mapping[int, str] | None, signature: Signature | None) -> list[Any]:
    """Rows as SQuAD has them: question, context and answers {"text": [...]}."""
    out = []
    for name, row in read_texts(path, "question", "context"):
        answers = row.get("answers")
        texts = answers.get("text") if isinstance(answers, dict) else answers
        truths = tuple(str(text) for text in texts) if isinstance(texts, list) else (texts,) if isinstance(texts, str) else None
        out.append((name, _payload(row, 1), truths or None))
    return out


def _payload(row: Mapping[str, Any], top_k: int) -> ReadPayload:
    return ReadPayload(text_in(row, "question"), text_in(row, "context"), top_k=top_k)


TASK = finding(
    name=QUESTION_ANSWERING,
    takes="questions with contexts",
    doors=("/v1/texts/answers",),
    open=lambda folder, signature, settings: Answerer(folder, signature),
    warm_up=lambda signature: ReadPayload("a", "a"),
    read_examples=_read,
    metric=ANSWERS,
    same=lambda one, other: [s.text for s in one.spans[:1]] == [s.text for s in other.spans[:1]],
    of_row=_payload,
)
