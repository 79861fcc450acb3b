"""POST /tokenize and /detokenize: vLLM's, of every model with a tokenizer. Knows their JSON; no tokenizer."""

from __future__ import annotations

from typing import Any, cast

import orjson
from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from maasdam.api.embeddings import inputs_of
from maasdam.api.entrance import request_of
from maasdam.api.fields import check_known, check_neutral
from maasdam.api.openai_schema import ChatBody, messages_of
from maasdam.api.routing import JsonRoute
from maasdam.core import Chunk, Entry, Spelled, SpellPayload
from maasdam.errors import InvalidField
from maasdam.operations import deployments
from maasdam.operations.service import Service

TOKENIZE, DETOKENIZE = "/tokenize", "/detokenize"
MOST_TOKENS = 1 << 20
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "tools": ([],),
}
"""Of a chat: what its template is not asked for -> the values that ask for nothing else."""


class TokenizeBody(BaseModel):
    """A prompt or messages. Unknown fields are kept, to be refused by name."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: str = Field(description="NAME, NAME:VERSION or NAME@ALIAS")
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    add_special_tokens: bool | None = Field(None, description="true with a prompt; a chat's template writes its own")
    return_token_strs: bool | None = Field(None, description="true: what each token is called, too")


class DetokenizeBody(BaseModel):
    """Token ids. Unknown fields are kept, to be refused by name."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: str = Field(description="NAME, NAME:VERSION or NAME@ALIAS")
    tokens: Any = Field(description="token ids")


def routes(service: Service) -> APIRouter:
    """The router."""
    router = APIRouter(tags=["vLLM"], route_class=JsonRoute)

    async def asked(http: HttpRequest, path: str, model: str, payload: SpellPayload) -> Spelled:
        service.check_model(model)
        request = request_of(http.scope, model, (payload,), path, service.settings.request_timeout_seconds)

        async def written(chunks: list[Chunk], entry: Entry) -> Spelled:
            return cast(Spelled, chunks[0].value)

        return await service.inference.whole(request, written)

    @router.post(TOKENIZE)
    async def tokenize(body: TokenizeBody, http: HttpRequest) -> Response:
        """The tokens of a prompt or of a chat, counted."""
        extra = body.model_extra or {}
        check_known(extra, (*TokenizeBody.model_fields, *NEUTRAL))
        check_neutral(extra, NEUTRAL)
        if (body.prompt is None) == (body.messages is None):
            raise InvalidField("send exactly one of 'prompt' and 'messages'", "prompt" if body.messages is None else "messages")
        if body.messages is not None and body.add_special_tokens:
            raise InvalidField(
                "'add_special_tokens' goes with a prompt: a chat's template writes its own", "add_special_tokens"
            )
        chat = None
        if body.messages is not None:
            chat = messages_of(ChatBody.model_construct(messages=body.messages))
        payload = SpellPayload(body.prompt, chat, None, body.add_special_tokens is not False, bool(body.return_token_strs))
        found = await asked(http, TOKENIZE, body.model, payload)
        answer = {
            "count": len(found.token_ids),
            "max_model_len": deployments.served_version(service, body.model).context_length,
            "tokens": found.token_ids,
            "token_strs": found.names if payload.shows else None,
        }
        return Response(orjson.dumps(answer), media_type="application/json")

    @router.post(DETOKENIZE)
    async def detokenize(body: DetokenizeBody, http: HttpRequest) -> Response:
        """The text of tokens, control tokens too."""
        check_known(body.model_extra or (), (*DetokenizeBody.model_fields,))
        if not isinstance(body.tokens, list) or len(body.tokens) > MOST_TOKENS:
            raise InvalidField(f"'tokens' must be a list of up to {MOST_TOKENS:,} token ids", "tokens")
        (ids,) = inputs_of([body.tokens], "tokens", 1) if body.tokens else ((),)
        found = await asked(http, DETOKENIZE, body.model, SpellPayload(token_ids=tuple(cast(tuple[int, ...], ids))))
        return Response(orjson.dumps({"prompt": found.text}), media_type="application/json")

    return router
