"""Text classification: a text, or two, to labels. Knows texts and labels. Refuses to know engines and HTTP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maasdam.core import TEXT_CLASSIFICATION, Answer, Payload, ReadPayload, Signature, Tensors
from maasdam.errors import InvalidModel
from maasdam.tasks.classes import Classes, classification
from maasdam.tasks.examples import read_texts, text_in
from maasdam.tasks.labels import LabelIds
from maasdam.tasks.reading import Reader, units

if TYPE_CHECKING:
    from maasdam.core import type_array

SECOND = ("text_pair", "sentence2", "hypothesis")
"""What data call the second of two texts."""


class TextClassifier:
    """The processor of one classifier. Thread-safe."""

    task = TEXT_CLASSIFICATION

    def __init__(self, folder: Path, signature: Signature | None) -> None:
        if signature is None:
            raise InvalidModel("a text classifier needs a signature: the names and shapes of its tensors")
        self.reader = Reader(folder, signature, "a text classifier")
        self.longest, self.spell = self.reader.longest, self.reader.spell
        self._classes = Classes(folder, signature, "text")

    def prepare(self, payload: Payload) -> list[dict[str, type_array]]:
        """One text, or two -> one row. Raises InvalidPayload, InputTooLong."""
        assert isinstance(payload, ReadPayload)
        return self.reader.read(self.reader.of(payload))

    def finish(self, outputs: Sequence[Tensors], payload: Payload) -> Answer:
        """Scores or probabilities [1, N] -> the `top_k` best labels. Raises EngineFailure for NaN."""
        assert isinstance(payload, ReadPayload)
        return self._classes.best(outputs, payload.top_k)

    units = staticmethod(units)


def _payload(row: Mapping[str, Any], top_k: int, cuts: bool) -> ReadPayload:
    second = next((name for name in SECOND if row.get(name)), None)
    text = text_in(row, "text", "sentence", "sentence1", "premise")
    return ReadPayload(text, None if second is None else text_in(row, second), top_k=top_k, cuts=cuts)


def _read(path: Path, labels: Mapping[int, str] | None, signature: Signature | None) -> list[Any]:
    ids = LabelIds(labels)
    return [
        (name, _payload(row, 5, cuts=True), None if labels is None else ids.of_row(row, name))
        for name, row in read_texts(path, "text", "sentence", "sentence1", "premise")
    ]


TASK = classification(
    name=TEXT_CLASSIFICATION,
    payloads=(ReadPayload,),
    takes="texts",
    doors=("/v1/texts/classifications", "/v1/moderations"),
    open=lambda folder, signature, settings: TextClassifier(folder, signature),
    warm_up=lambda signature: ReadPayload("a", cuts=True),
    read_examples=_read,
    of_row=lambda row, top_k: _payload(row, top_k, cuts=False),
    loss=None,
)
