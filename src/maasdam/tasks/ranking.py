"""Text ranking: how well a document answers a query, read together by one model (a cross-encoder).

Knows pairs of texts and a score. Refuses to know engines and HTTP.

The score goes through a sigmoid, whatever the folder says of it: an order is an order, and callers expect 0 to 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maasdam.core import TEXT_RANKING, Answer, Payload, ReadPayload, Relevance, Signature, Tensors
from maasdam.errors import EngineFailure, InvalidInput, InvalidModel, InvalidPayload
from maasdam.tasks.examples import read_texts, text_in
from maasdam.tasks.reading import Reader, units
from maasdam.tasks.scoring import ORDER
from maasdam.tasks.task import Task

if TYPE_CHECKING:
    from maasdam.core import type_array

DOORS = ("/v1/rerank", "/v2/rerank", "/rerank")


class Ranker:
    """The processor of one cross-encoder. Thread-safe."""

    task = TEXT_RANKING

    def __init__(self, folder: Path, signature: Signature | None) -> None:
        self.reader = Reader(folder, signature, "a cross-encoder")
        self.longest, self.spell = self.reader.longest, self.reader.spell
        assert signature is not None
        scores = [spec for spec in signature.outputs if len(spec.shape) == 2 and spec.shape[1] == 1]
        if len(scores) != 1:
            has = ", ".join(f"{spec.name} {spec.sizes}" for spec in signature.outputs)
            raise InvalidModel(
                f"a cross-encoder gives one score of a pair, [?, 1]; this model gives {has}: it tells classes apart"
            )
        self._output = scores[0].name

    def prepare(self, payload: Payload) -> list[dict[str, type_array]]:
        """A query and a document -> one row. What is too long of a document is cut where that may be; of a query never.

        Raises InvalidPayload, InputTooLong.
        """
        assert isinstance(payload, ReadPayload)
        if payload.beside is None:
            raise InvalidPayload("a cross-encoder reads a query and a document together; send both")
        words = self.reader.of(payload)
        if words.cuts[0]:
            raise InvalidPayload(f"the query is too long: with a document it may have half of {self.longest} tokens")
        return self.reader.read(words)

    def finish(self, outputs: Sequence[Tensors], payload: Payload) -> Answer:
        """A score [1, 1] -> 0 to 1. Raises EngineFailure for NaN."""
        assert isinstance(payload, ReadPayload)
        score = float(outputs[0][self._output].reshape(-1)[0])
        if not math.isfinite(score):
            raise EngineFailure("the model's score of this pair is not finite")
        cut = self.reader.of(payload).cut if payload.cuts else 0
        return Relevance(1 / (1 + math.exp(-score)) if score >= 0 else math.exp(score) / (1 + math.exp(score)), cut)

    units = staticmethod(units)


def _pairs(path: Path, labels: Mapping[int, str] | None, signature: Signature | None) -> list[Any]:
    """Rows of a query with a document, or with several."""
    out = []
    for name, row in read_texts(path, "query", "document", "documents"):
        many = row.get("documents") or [row.get("document")]
        if not isinstance(many, list) or not all(isinstance(one, str) and one for one in many):
            raise InvalidInput(f"{name}: 'documents' is a list of texts, and 'document' a text")
        query = text_in(row, "query", "text")
        out += [(f"{name}.{i}", ReadPayload(query, one, cuts=True), None) for i, one in enumerate(many)]
    return out


TASK = Task(
    name=TEXT_RANKING,
    payloads=(ReadPayload,),
    answer=Relevance,
    takes="queries with documents",
    doors=DOORS,
    open=lambda folder, signature, settings: Ranker(folder, signature),
    warm_up=lambda signature: ReadPayload("a", "a", cuts=True),
    read_examples=_pairs,
    metric=ORDER,
    same=lambda one, other: None,
    shown=lambda answer: round(answer.score, 6),
    lines=lambda answer: [f"{answer.score:.6f}{' (the document was cut)' if answer.cut else ''}"],
    to_json=lambda answer: {"relevance_score": answer.score, "truncated": bool(answer.cut)},
    of_row=lambda row, top_k: ReadPayload(text_in(row, "query"), text_in(row, "document"), cuts=True),
)
