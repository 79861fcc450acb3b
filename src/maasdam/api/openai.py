"""The OpenAI API for text: models, chat completions, completions; plain or as server-sent events.

Knows OpenAI's JSON. Refuses to know engines and tokenizers; answers come from `operations.infer`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import orjson
from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import Response

from maasdam.api import errors
from maasdam.api.entrance import READING, request_of
from maasdam.api.events import EventStream, as_event
from maasdam.api.measured import measured
from maasdam.api.openai_schema import ChatBody, CompletionBody, EmbeddingBody, TextBody, check_fields, has_usage, messages_of
from maasdam.api.paths import MODELS
from maasdam.api.routing import JsonRoute
from maasdam.api.sampling import MOST_PROMPTS, sampling_from
from maasdam.core import Chunk, Entry, Sampling, TextPayload, TextPiece
from maasdam.errors import InvalidField, Unsupported
from maasdam.operations import deployments
from maasdam.operations.service import Service

LARGEST_TOKEN = (1 << 31) - 1
"""No vocabulary has as many."""
_ANY = "\0\0"
"""A text that stands in no name of a model."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How one of the two routes writes a choice."""

    object: str
    stream_object: str
    prefix: str
    whole: Callable[[TextPiece], dict[str, Any]]
    delta: Callable[[TextPiece, bool], dict[str, Any]]


CHAT = Shape(
    "chat.completion",
    "chat.completion.chunk",
    "chatcmpl-",
    lambda piece: {"message": {"role": "assistant", "content": piece.text, "refusal": None}},
    lambda piece, is_first: {"delta": ({"role": "assistant"} if is_first else {}) | {"content": piece.text}},
)
COMPLETION = Shape(
    "text_completion",
    "text_completion",
    "cmpl-",
    lambda piece: {"text": piece.text},
    lambda piece, is_first: {"text": piece.text},
)


def routes(service: Service) -> APIRouter:
    """The router for /v1 text routes and models."""
    router = APIRouter(prefix="/v1", tags=["OpenAI"], route_class=JsonRoute)

    @router.get("/models")
    async def models() -> dict[str, Any]:
        """Every deployed model."""
        return {"object": "list", "data": [_model(one) for one in deployments.default_versions(service)]}

    @router.get(MODELS)
    async def model(model: str) -> dict[str, Any]:
        """One deployed model."""
        return _model(deployments.served_version(service, model))

    @router.post("/chat/completions")
    async def chat(body: ChatBody, http: HttpRequest) -> Response:
        """Answer a conversation; with `stream`, as server-sent events."""
        service.check_model(body.model)
        check_fields(body)
        sampling = sampling_from(vars(body))
        readers: Executor | None = http.scope.get(READING)
        if readers is None:
            messages = messages_of(body)
        else:
            messages = await asyncio.get_running_loop().run_in_executor(readers, messages_of, body)
        payload = TextPayload(messages=messages, sampling=sampling)
        return await _answer(service, http, body, CHAT, [payload], "/v1/chat/completions")

    @router.post("/completions")
    async def completions(body: CompletionBody, http: HttpRequest) -> Response:
        """Continue a prompt, or several; with `stream`, one, as server-sent events."""
        service.check_model(body.model)
        check_fields(body)
        payloads = _prompts(body.prompt, sampling_from(vars(body), least_tokens=0))
        return await _answer(service, http, body, COMPLETION, payloads, "/v1/completions")

    @router.post("/embeddings")
    async def embeddings(body: EmbeddingBody) -> None:
        """No model of this service makes embeddings."""
        service.check_model(body.model)
        raise Unsupported("no deployed model makes embeddings; this service does text generation, speech and images")

    return router


async def _answer(
    service: Service, http: HttpRequest, body: TextBody, shape: Shape, payloads: Sequence[TextPayload], endpoint: str
) -> Response:
    request = request_of(http.scope, body.model, tuple(payloads), endpoint, service.settings.request_timeout_seconds)
    writer = _Writer(shape, body, request.id)
    ends_with_usage = has_usage(body)
    if not body.stream:

        async def written(chunks: list[Chunk], entry: Entry) -> bytes:
            return orjson.dumps(writer.whole(chunks, entry))

        return Response(await service.inference.whole(request, written), media_type="application/json")
    if len(payloads) > 1:
        raise InvalidField("streaming takes one prompt; send several requests", "prompt")

    def failed(error: BaseException) -> bytes:
        return as_event({"error": errors.openai_error(errors.refusal(error, request.id))})

    write = partial(writer.event, has_usage=ends_with_usage)
    return await EventStream(failed).begun(partial(service.inference.begin_stream, request, write))


class _Writer:
    """One answer's JSON."""

    def __init__(self, shape: Shape, body: TextBody, request_id: str) -> None:
        self.shape = shape
        self.request_id = request_id
        self._model = body.model
        self._has_token_ids = bool(body.return_token_ids)
        self._created = int(time.time())
        self._has_begun = False
        self._between: tuple[bytes, bytes] | None = None
        """What stands around the text in the events between the first and the last."""

    def envelope(self, kind: str) -> dict[str, Any]:
        """The fields around the choices."""
        identity = self.shape.prefix + self.request_id
        return {"id": identity, "object": kind, "created": self._created, "model": self._model}

    def whole(self, chunks: Sequence[Chunk], entry: Entry) -> dict[str, Any]:
        """An answer in one piece."""
        choices = []
        for i, chunk in enumerate(chunks):
            piece = cast(TextPiece, chunk.value)
            choices.append(self._choice(i, piece) | self.shape.whole(piece))
        return self.envelope(self.shape.object) | {"choices": choices, "usage": self.usage(entry)}

    def event(self, chunk: Chunk, entry: Entry, has_usage: bool) -> bytes:
        """The next piece of a streamed answer; with the last one, what ends the stream."""
        piece = cast(TextPiece, chunk.value)
        if self._between is not None and not chunk.is_last:
            before, after = self._between
            return before + orjson.dumps(piece.text) + after
        event = self._piece(piece, not self._has_begun, has_usage)
        self._has_begun = True
        if not chunk.is_last:
            if not self._has_token_ids:  # what follows differs in its text alone
                before, _, after = self._piece(TextPiece(_ANY, ()), False, has_usage).partition(orjson.dumps(_ANY))
                self._between = before, after
            return event
        if has_usage:
            event += as_event(self.envelope(self.shape.stream_object) | {"choices": [], "usage": self.usage(entry)})
        return event + b"data: [DONE]\n\n"

    def _piece(self, piece: TextPiece, is_first: bool, has_usage: bool) -> bytes:
        choice = self._choice(0, piece) | self.shape.delta(piece, is_first)
        no_usage_yet = {"usage": None} if has_usage else {}
        return as_event(self.envelope(self.shape.stream_object) | {"choices": [choice]} | no_usage_yet)

    def usage(self, entry: Entry) -> dict[str, Any]:
        """Tokens, and what they cost."""
        prompt, completion = entry.prompt_tokens or 0, entry.completion_tokens or 0
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "maasdam": measured(entry),
        }

    def _choice(self, index: int, piece: TextPiece) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index, "logprobs": None, "finish_reason": piece.finish_reason}
        if self._has_token_ids:
            choice["token_ids"] = list(piece.token_ids)
        return choice


def _model(served: deployments.ServedVersion) -> dict[str, Any]:
    version = served.version
    return {
        "id": version.model,
        "object": "model",
        "created": int(version.created_at.timestamp()),
        "owned_by": "maasdam",
        "version": version.version,
        "task": version.task,
        "engine": version.engine,
        "state": served.state,
    }


def _prompts(prompt: Any, sampling: Sampling) -> list[TextPayload]:
    many = prompt if isinstance(prompt, list) else [prompt]
    if many and isinstance(prompt, list) and all(_is_token(token) for token in many):
        many = [many]
    if not many or len(many) > MOST_PROMPTS:
        raise InvalidField(f"'prompt' holds {len(many)} prompts; send 1 to {MOST_PROMPTS}", "prompt")
    payloads = []
    for one in many:
        if isinstance(one, str):
            payloads.append(TextPayload(prompt=one, sampling=sampling))
        elif isinstance(one, list) and one and all(_is_token(token) for token in one):
            unknown = next((token for token in one if not 0 <= token <= LARGEST_TOKEN), None)
            if unknown is not None:
                raise InvalidField(f"'prompt' holds {unknown!r:.30}, a token of no model's vocabulary", "prompt")
            payloads.append(TextPayload(token_ids=tuple(one), sampling=sampling))
        else:
            raise InvalidField("'prompt' must be a string, strings, token ids or lists of token ids", "prompt")
    return payloads


def _is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
