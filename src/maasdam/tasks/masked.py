"""Fill-mask: what may stand in the place of each mask of a text. Knows texts and masks. Refuses to know engines and HTTP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maasdam.core import FILL_MASK, Answer, Payload, ReadPayload, Signature, Span, Spans, Tensors
from maasdam.errors import EngineFailure, InvalidModel, InvalidPayload
from maasdam.tasks.examples import read_texts, text_in
from maasdam.tasks.reading import Reader, chances, units
from maasdam.tasks.scoring import FILLED
from maasdam.tasks.spans import finding, one_output

if TYPE_CHECKING:
    from maasdam.core import type_array

PLACE = "[MASK]"
"""A mask in data and in requests of those who don't know the model's own word for it."""


MOST_WORDS = 2_000
"""Of all masks of a text together."""


class Filler:
    """The processor of one model of masked words. Thread-safe."""

    task = FILL_MASK

    def __init__(self, folder: Path, signature: Signature | None) -> None:
        self.reader = Reader(folder, signature, "a model of masked words")
        self.longest, self.spell = self.reader.longest, self.reader.spell
        assert signature is not None
        self._output = one_output(signature, 3, "a model of masked words gives scores of the vocabulary for each token")
        if self.reader.tokenizer.mask_token_id is None:
            raise InvalidModel("the model's tokenizer has no mask token")
        self._mask, self._mask_id = str(self.reader.tokenizer.mask_token), int(self.reader.tokenizer.mask_token_id)

    def prepare(self, payload: Payload) -> list[dict[str, type_array]]:
        """A text with masks -> one row. Raises InvalidPayload (no mask), InputTooLong."""
        payload = self._own(payload)
        words = self.reader.of(payload)
        if self._mask_id not in words.ids:
            raise InvalidPayload(f"there is no mask in the text; write {self._mask} where a word is to be found")
        asked = words.ids.count(self._mask_id) * max(1, payload.top_k)
        if asked > MOST_WORDS:
            raise InvalidPayload(f"{asked:,} words are asked for in one text; at most {MOST_WORDS:,} are found: lower top_k")
        return self.reader.read(words)

    def _own(self, payload: Payload) -> ReadPayload:
        """With the model's own word for a mask."""
        assert isinstance(payload, ReadPayload)
        if not isinstance(payload.text, str) or self._mask == PLACE:
            return payload
        return ReadPayload(payload.text.replace(PLACE, self._mask), top_k=payload.top_k, cuts=payload.cuts)

    def finish(self, outputs: Sequence[Tensors], payload: Payload) -> Answer:
        """Scores [1, T, V] -> the `top_k` likeliest words of each mask, mask after mask. Raises EngineFailure for NaN."""
        import numpy as np

        own = self._own(payload)
        words, scores = self.reader.of(own), outputs[0][self._output][0]
        spans = []
        for at in (i for i, token in enumerate(words.ids) if token == self._mask_id):
            row = np.asarray(scores[at], dtype=np.float64)
            if not np.isfinite(row).all():
                raise EngineFailure("the model's scores of this text are not finite")
            row = chances(row[None])[0]
            for token in np.argsort(-row, kind="stable")[: max(1, own.top_k)]:
                text = self.reader.tokenizer.decode([int(token)]).strip()
                spans.append(Span(text, *words.spans[at], float(row[token]), None, int(token)))
        return Spans(tuple(spans), words.cut)

    units = staticmethod(units)


def _read(path: Path, labels: Mapping[int, str] | None, signature: Signature | None) -> list[Any]:
    """A text with one mask, and the word that belongs there where the data say it."""
    return [
        (name, ReadPayload(text_in(row, "text"), top_k=5, cuts=True), str(row["answer"]) if row.get("answer") else None)
        for name, row in read_texts(path, "text")
    ]


TASK = finding(
    name=FILL_MASK,
    takes="texts with masks",
    doors=("/v1/texts/masks",),
    open=lambda folder, signature, settings: Filler(folder, signature),
    warm_up=lambda signature: ReadPayload(PLACE),
    read_examples=_read,
    metric=FILLED,
    same=lambda one, other: one.spans[0].number == other.spans[0].number,
    of_row=lambda row, top_k: ReadPayload(text_in(row, "text"), top_k=top_k),
)
