"""POST /v1/rerank, /v2/rerank, /rerank: Cohere's and Jina's. Knows their JSON; never how a document is scored.

Of a cross-encoder a document's score is that of the pair; of an embedding model the cosine of its vector with the query's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import orjson
from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from maasdam.api.entrance import request_of
from maasdam.api.fields import check_known, check_neutral, check_text
from maasdam.api.measured import measured
from maasdam.api.routing import JsonRoute
from maasdam.core import FEATURES, Chunk, Entry, ReadPayload, Relevance, Request, Vector, check_within
from maasdam.errors import InvalidField
from maasdam.operations import deployments
from maasdam.operations.service import Service

PATHS = ("/v1/rerank", "/v2/rerank", "/rerank")
MOST_DOCUMENTS = 1000
"""As Cohere has it."""
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "max_chunks_per_doc": (1,),
    "rank_fields": (["text"],),
    "relevant_spans": (),
    "priority": (0,),
    "truncation": (True,),
}
"""Fields of theirs that can't be honoured -> the values that ask for what is done anyway."""


class RerankBody(BaseModel):
    """A query and documents. Unknown fields are kept, to be refused by name."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: str = Field(description="NAME, NAME:VERSION or NAME@ALIAS: of a cross-encoder or an embedding model")
    query: str
    documents: list[Any] = Field(description='up to 1000 texts, or objects {"text": ...}')
    top_n: Any = Field(None, description="so many of the most relevant; all without it")
    return_documents: bool | None = Field(None, description="true: each result holds its document")
    max_tokens_per_doc: Any = Field(None, description="at least the model's length: documents are cut there")


def routes(service: Service) -> APIRouter:
    """The router."""
    router = APIRouter(tags=["Rerank"], route_class=JsonRoute)
    for path in PATHS:
        _add(router, service, path)
    return router


def _add(router: APIRouter, service: Service, path: str) -> None:
    @router.post(path)
    async def rerank(body: RerankBody, http: HttpRequest) -> Response:
        """Documents by how well they answer a query, the best first."""
        service.check_model(body.model)
        extra = body.model_extra or {}
        check_known(extra, (*RerankBody.model_fields, *NEUTRAL))
        check_neutral(extra, NEUTRAL)
        check_text(body.query, "query")
        texts = [_text(one, i) for i, one in enumerate(body.documents)]
        if not 1 <= len(texts) <= MOST_DOCUMENTS:
            raise InvalidField(f"'documents' holds {len(texts)} documents; send 1 to {MOST_DOCUMENTS}", "documents")
        if body.top_n is not None:
            check_within("top_n", body.top_n, int, 1, MOST_DOCUMENTS)
        by_vectors, longest = _what(service, body.model)
        if body.max_tokens_per_doc is not None:
            check_within("max_tokens_per_doc", body.max_tokens_per_doc, int, longest or 1, 1 << 31)
        payloads = [ReadPayload(body.query, text, cuts=True) for text in texts]
        if by_vectors:
            payloads = [ReadPayload(body.query, role="query"), *(ReadPayload(t, role="document", cuts=True) for t in texts)]
        request = request_of(http.scope, body.model, tuple(payloads), path, service.settings.request_timeout_seconds)

        async def written(chunks: list[Chunk], entry: Entry) -> bytes:
            return _written(body, request, texts, chunks, entry)

        return Response(await service.inference.whole(request, written), media_type="application/json")


def _what(service: Service, model: str) -> tuple[bool, int | None]:
    """Whether it gives vectors, and how many tokens it reads."""
    served = deployments.served_version(service, model)
    return served.version.task == FEATURES, served.context_length


def _text(given: Any, i: int) -> str:
    where = f"documents[{i}]"
    if isinstance(given, dict):
        check_known(given, ("text",), where=where)
        given = given.get("text")
    if not isinstance(given, str) or not given:
        raise InvalidField(f"'{where}' must be a text, or an object {{\"text\": ...}}, that is not empty", where)
    return given


def _scores(chunks: Sequence[Chunk]) -> tuple[list[float], list[bool]]:
    """Of each document, and whether it was cut."""
    if isinstance(chunks[0].value, Relevance):
        read = [cast(Relevance, chunk.value) for chunk in chunks]
        return [one.score for one in read], [one.cut > 0 for one in read]
    query, *documents = (cast(Vector, chunk.value) for chunk in chunks)
    lengths = [float(np.linalg.norm(one.values) * np.linalg.norm(query.values)) for one in documents]
    scores = [float(one.values @ query.values) / max(length, 1e-12) for one, length in zip(documents, lengths, strict=True)]
    return scores, [one.cut > 0 for one in documents]


def _written(body: RerankBody, request: Request, texts: Sequence[str], chunks: list[Chunk], entry: Entry) -> bytes:
    scores, cut = _scores(chunks)
    best = sorted(range(len(scores)), key=lambda i: -scores[i])[: body.top_n]
    results: list[dict[str, Any]] = [{"index": i, "relevance_score": scores[i]} for i in best]
    if body.return_documents:
        results = [result | {"document": {"text": texts[i]}} for result, i in zip(results, best, strict=True)]
    tokens = entry.prompt_tokens or 0
    meta: dict[str, Any] = {"api_version": {"version": "2" if request.endpoint.startswith("/v2") else "1"}}
    meta |= {"billed_units": {"search_units": 1}, "tokens": {"input_tokens": tokens}}
    if any(cut):
        which = ", ".join(str(i) for i, was in enumerate(cut) if was)
        meta["warnings"] = [f"longer than the model reads, and cut: documents {which}"[:500]]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens, "maasdam": measured(entry)}
    return orjson.dumps({"id": request.id, "model": body.model, "results": results, "meta": meta, "usage": usage})
