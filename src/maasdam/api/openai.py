"""The OpenAI API for text: models, chat completions, completions; plain or as server-sent events.

Knows OpenAI's JSON. Refuses to know engines and tokenizers; answers come from `operations.infer`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import orjson
from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import Response

from maasdam.api import errors, logprobs, tools
from maasdam.api.choices import Choices, choices_from
from maasdam.api.entrance import READING, request_of
from maasdam.api.events import EventStream, as_event
from maasdam.api.forms import constraint_from
from maasdam.api.measured import measured
from maasdam.api.openai_schema import ChatBody, CompletionBody, TextBody, check_fields, has_usage, messages_of
from maasdam.api.paths import MODELS
from maasdam.api.routing import JsonRoute
from maasdam.api.sampling import MOST_PROMPTS, sampling_from
from maasdam.core import (
    FEATURES,
    SPEECH_RECOGNITION,
    TEXT_CLASSIFICATION,
    TEXT_RANKING,
    Chunk,
    Entry,
    Mark,
    Sampling,
    TextPayload,
    TextPiece,
)
from maasdam.errors import InvalidField
from maasdam.operations import deployments
from maasdam.operations.service import Service

LARGEST_TOKEN = (1 << 31) - 1
"""No vocabulary has as many."""
ABLE = {
    "embeddings": (FEATURES,),
    "rerank": (FEATURES, TEXT_RANKING),
    "moderations": (TEXT_CLASSIFICATION,),
    "transcriptions": (SPEECH_RECOGNITION,),
}
"""What a model of these tasks can, in the words of the routes that ask for it."""
HEARS = ("translations", "word_times", "transcript_logprobs", "transcript_prompt", "transcript_temperature")
"""What a model that writes down speech can or can't."""
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
    logprobs: Callable[[Sequence[Mark]], dict[str, Any]]


def _said(piece: TextPiece, *, has_index: bool) -> dict[str, Any]:
    """The text; apart from it what reasons and what calls."""
    if not (piece.reasoning or piece.calls):
        return {"content": piece.text}
    said: dict[str, Any] = {}
    if piece.text or not has_index:
        said["content"] = piece.text or None
    if piece.reasoning:
        said |= {"reasoning_content": piece.reasoning, "reasoning": piece.reasoning}
    return said | ({"tool_calls": tools.shown(piece.calls, has_index=has_index)} if piece.calls else {})


CHAT = Shape(
    "chat.completion",
    "chat.completion.chunk",
    "chatcmpl-",
    lambda piece: {"message": {"role": "assistant", **_said(piece, has_index=False), "refusal": None}},
    lambda piece, is_first: {"delta": ({"role": "assistant"} if is_first else {}) | _said(piece, has_index=True)},
    logprobs.shown_in_chat,
)
COMPLETION = Shape(
    "text_completion",
    "text_completion",
    "cmpl-",
    lambda piece: {"text": piece.text},
    lambda piece, is_first: {"text": piece.text},
    logprobs.shown_in_completion,
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
        sampling = _sampling(service, body, replace(sampling_from(vars(body)), **logprobs.of_chat(vars(body))))
        choices = choices_from(body.n, None, 1, bool(body.stream))
        listed, calling = tools.tools_for(service, body.model, vars(body), sampling)
        readers: Executor | None = http.scope.get(READING)
        if readers is None:
            messages = messages_of(body)
        else:
            messages = await asyncio.get_running_loop().run_in_executor(readers, messages_of, body)
        payload = TextPayload(
            messages=messages,
            sampling=sampling,
            tools=listed,
            calling=calling,
            template=tools.with_effort(
                tools.variables_from(body.chat_template_kwargs), body.reasoning_effort, "reasoning_effort"
            ),
        )
        return await _answer(service, http, body, CHAT, [payload], choices, "/v1/chat/completions")

    @router.post("/completions")
    async def completions(body: CompletionBody, http: HttpRequest) -> Response:
        """Continue a prompt, or several; with `stream`, as server-sent events."""
        service.check_model(body.model)
        check_fields(body)
        sampling = replace(sampling_from(vars(body), least_tokens=0), **logprobs.of_completion(vars(body)))
        payloads = _prompts(body.prompt, _sampling(service, body, sampling))
        choices = choices_from(body.n, body.best_of, len(payloads), bool(body.stream))
        return await _answer(service, http, body, COMPLETION, payloads, choices, "/v1/completions")

    return router


def _sampling(service: Service, body: TextBody, sampling: Sampling) -> Sampling:
    """The same, and the form that the answer is held to. Raises InvalidField."""
    if sampling.logit_bias:
        deployments.check_biases(service, body.model)
    constraint = constraint_from(vars(body), sampling)
    if constraint is None:
        return sampling
    deployments.check_holds(service, body.model, constraint.field)
    return replace(sampling, constraint=constraint)


async def _answer(
    service: Service,
    http: HttpRequest,
    body: TextBody,
    shape: Shape,
    prompts: Sequence[TextPayload],
    choices: Choices,
    endpoint: str,
) -> Response:
    if body.return_token_ids:
        deployments.check_tells_ids(service, body.model)
    payloads = tuple(choices.payloads(prompts))
    request = request_of(http.scope, body.model, payloads, endpoint, service.settings.request_timeout_seconds)
    writer = _Writer(shape, body, request.id, len(payloads), prompts[0].sampling.logprobs is not None)
    ends_with_usage = has_usage(body)
    if not body.stream:

        async def written(chunks: list[Chunk], entry: Entry) -> bytes:
            return orjson.dumps(writer.whole(choices.best(chunks, prompts[0].sampling.echo), entry))

        return Response(await service.inference.whole(request, written), media_type="application/json")

    def failed(error: BaseException) -> bytes:
        return as_event({"error": errors.openai_error(errors.refusal(error, request.id))})

    write = partial(writer.event, has_usage=ends_with_usage)
    return await EventStream(failed).begun(partial(service.inference.begin_stream, request, write))


class _Writer:
    """One answer's JSON."""

    def __init__(self, shape: Shape, body: TextBody, request_id: str, count: int, has_logprobs: bool) -> None:
        """`count`: answers that a stream is of."""
        self.shape = shape
        self.request_id = request_id
        self._model = body.model
        self._has_token_ids = bool(body.return_token_ids)
        self._created = int(time.time())
        self._has_logprobs = has_logprobs
        self._left = count
        self._thought: int | None = None
        """Tokens of reasoning, where the model sets that apart."""
        self._cached: int | None = None
        """Of the prompts' tokens, those that were computed before; None: not known."""
        self._begun: set[int] = set()
        self._between: dict[int, tuple[bytes, bytes]] = {}
        """What stands around the text in the events between the first and the last of an answer."""

    def envelope(self, kind: str) -> dict[str, Any]:
        """The fields around the choices."""
        identity = self.shape.prefix + self.request_id
        return {"id": identity, "object": kind, "created": self._created, "model": self._model}

    def whole(self, chunks: Sequence[Chunk], entry: Entry) -> dict[str, Any]:
        """An answer in one piece."""
        choices = []
        for i, chunk in enumerate(chunks):
            piece = cast(TextPiece, chunk.value)
            self._count_cached(chunk)
            choices.append(self._choice(i, piece, is_whole=True) | self.shape.whole(piece))
            if piece.reasoning_tokens is not None:
                self._thought = (self._thought or 0) + piece.reasoning_tokens
        return self.envelope(self.shape.object) | {"choices": choices, "usage": self.usage(entry)}

    def event(self, chunk: Chunk, entry: Entry, has_usage: bool) -> bytes:
        """The next piece of a streamed answer; with the last one, what ends the stream."""
        piece, index = cast(TextPiece, chunk.value), chunk.number
        if piece.reasoning_tokens is not None:
            self._thought = (self._thought or 0) + piece.reasoning_tokens
        between = self._between.get(index)
        is_plain = not (chunk.is_last or piece.reasoning or piece.calls)
        if between is not None and is_plain:
            return between[0] + orjson.dumps(piece.text) + between[1]
        event = self._piece(index, piece, index not in self._begun, has_usage)
        self._begun.add(index)
        if not chunk.is_last:
            if is_plain and not (self._has_token_ids or self._has_logprobs):  # what follows differs in its text alone
                before, _, after = self._piece(index, TextPiece(_ANY, ()), False, has_usage).partition(orjson.dumps(_ANY))
                self._between[index] = before, after
            return event
        self._left -= 1
        self._count_cached(chunk)
        if self._left:
            return event
        if has_usage:
            event += as_event(self.envelope(self.shape.stream_object) | {"choices": [], "usage": self.usage(entry)})
        return event + b"data: [DONE]\n\n"

    def _piece(self, index: int, piece: TextPiece, is_first: bool, has_usage: bool) -> bytes:
        choice = self._choice(index, piece) | self.shape.delta(piece, is_first)
        no_usage_yet = {"usage": None} if has_usage else {}
        return as_event(self.envelope(self.shape.stream_object) | {"choices": [choice]} | no_usage_yet)

    def usage(self, entry: Entry) -> dict[str, Any]:
        """Tokens, and what they cost."""
        prompt, completion = entry.prompt_tokens or 0, entry.completion_tokens or 0
        usage: dict[str, Any] = {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "maasdam": measured(entry),
        }
        if self._thought is not None:
            usage["completion_tokens_details"] = {"reasoning_tokens": self._thought}
        if self._cached is not None:
            usage["prompt_tokens_details"] = {"cached_tokens": self._cached}
        return usage

    def _count_cached(self, chunk: Chunk) -> None:
        if chunk.units.cached_tokens is not None:
            self._cached = (self._cached or 0) + chunk.units.cached_tokens

    def _choice(self, index: int, piece: TextPiece, is_whole: bool = False) -> dict[str, Any]:
        shown = self.shape.logprobs(piece.marks) if self._has_logprobs and (is_whole or piece.marks) else None
        choice: dict[str, Any] = {"index": index, "logprobs": shown, "finish_reason": piece.finish_reason}
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
        "max_model_len": served.context_length,
        "capabilities": {
            "structured_output": served.holds_forms,
            "top_logprobs": served.likeliest,
            "tools": served.calls,
            "reasoning": served.reasons,
        }
        | {word: served.version.task in tasks for word, tasks in ABLE.items()}
        | ({word: bool(served.abilities.get(word)) for word in HEARS} if served.version.task == SPEECH_RECOGNITION else {})
        | dict(served.options),
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
