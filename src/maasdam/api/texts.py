"""Routes of ours for what models find in texts: classes, entities, words for masks, answers. Knows JSON; never models."""

from __future__ import annotations

from typing import Any, cast

import orjson
from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from maasdam.api.entrance import request_of
from maasdam.api.fields import check_known, check_text
from maasdam.api.measured import measured
from maasdam.api.routing import JsonRoute
from maasdam.core import Chunk, Classification, Entry, ReadPayload, Spans, check_within
from maasdam.errors import InvalidField
from maasdam.operations.service import Service
from maasdam.tasks.spans import shown

MOST_INPUTS = 256
MOST_LABELS = 1000
PATHS = ("/v1/texts/classifications", "/v1/texts/entities", "/v1/texts/masks", "/v1/texts/answers")
ANSWERS = PATHS[3]


class ReadBody(BaseModel):
    """Texts to read. Unknown fields are kept, to be refused by name."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: str = Field(description="NAME, NAME:VERSION or NAME@ALIAS")
    input: Any = Field(None, description="a text, or up to 256 texts")
    top_k: Any = Field(5, description="labels, words or answers of each")


class PairBody(ReadBody):
    """The same, where a second text may stand beside the first."""

    text_pair: str | None = Field(None, description="a second text, read beside input")


class QuestionBody(BaseModel):
    """A question and where its answer is looked for. Unknown fields are kept, to be refused by name."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: str = Field(description="NAME, NAME:VERSION or NAME@ALIAS")
    question: str
    context: str
    top_k: Any = Field(1, description="answers")


def routes(service: Service) -> APIRouter:
    """The routes."""
    router = APIRouter(tags=["Maasdam"], route_class=JsonRoute)

    async def answered(http: HttpRequest, path: str, model: str, payloads: list[ReadPayload], is_list: bool) -> Response:
        service.check_model(model)
        request = request_of(http.scope, model, tuple(payloads), path, service.settings.request_timeout_seconds)

        async def written(chunks: list[Chunk], entry: Entry) -> bytes:
            data = [_found(chunk.value) for chunk in chunks]
            usage = {"prompt_tokens": entry.prompt_tokens or 0, "maasdam": measured(entry)}
            return orjson.dumps({"model": model, "data": data if is_list else data[0], "usage": usage})

        return Response(await service.inference.whole(request, written), media_type="application/json")

    def asked(body: ReadBody, beside: str | None = None) -> list[ReadPayload]:
        check_known(body.model_extra or (), (*type(body).model_fields,))
        check_within("top_k", body.top_k, int, 1, MOST_LABELS)
        many = body.input if isinstance(body.input, list) else [body.input]
        if not 1 <= len(many) <= MOST_INPUTS:
            raise InvalidField(f"'input' holds {len(many)} texts; send 1 to {MOST_INPUTS}", "input")
        wrong = next((i for i, one in enumerate(many) if not isinstance(one, str) or not one), None)
        if wrong is not None:
            where = f"input[{wrong}]" if isinstance(body.input, list) else "input"
            raise InvalidField(f"'{where}' must be a text that is not empty", where)
        return [ReadPayload(one, beside, top_k=body.top_k) for one in many]

    @router.post(PATHS[0])
    async def classifications(body: PairBody, http: HttpRequest) -> Response:
        """The likeliest labels of texts, best first."""
        return await answered(http, PATHS[0], body.model, asked(body, body.text_pair), isinstance(body.input, list))

    @router.post(PATHS[1])
    async def entities(body: ReadBody, http: HttpRequest) -> Response:
        """Stretches of texts with their labels: names, places."""
        return await answered(http, PATHS[1], body.model, asked(body), isinstance(body.input, list))

    @router.post(PATHS[2])
    async def masks(body: ReadBody, http: HttpRequest) -> Response:
        """The likeliest words for each mask of texts."""
        return await answered(http, PATHS[2], body.model, asked(body), isinstance(body.input, list))

    @router.post(ANSWERS)
    async def answers(body: QuestionBody, http: HttpRequest) -> Response:
        """The stretches of a context that answer a question, best first."""
        check_known(body.model_extra or (), (*QuestionBody.model_fields,))
        check_text(body.question, "question")
        check_text(body.context, "context")
        check_within("top_k", body.top_k, int, 1, MOST_LABELS)
        payload = ReadPayload(body.question, body.context, top_k=body.top_k)
        return await answered(http, ANSWERS, body.model, [payload], is_list=False)

    return router


def _found(value: Any) -> list[dict[str, Any]]:
    if isinstance(value, Classification):
        return [{"label": one.label, "label_id": one.label_id, "score": one.score} for one in value.labels]
    return [shown(span) for span in cast(Spans, value).spans]
