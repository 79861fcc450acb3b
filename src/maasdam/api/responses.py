"""OpenAI's Responses API: answers that are kept and continued. Knows its routes; the answers come as a chat's do.

body -> items (of what it continues, too) -> messages -> operations.infer -> a response, kept before it is given out
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Query
from fastapi import Request as HttpRequest
from fastapi.responses import Response

from maasdam.api import errors
from maasdam.api.entrance import READING, caller_of, request_of
from maasdam.api.events import EventStream
from maasdam.api.response_items import Item, items_of, messages_of
from maasdam.api.response_schema import ResponseBody, check_fields, sampling_of, tools_of
from maasdam.api.response_writer import ResponseWriter
from maasdam.api.routing import JsonRoute
from maasdam.api.tools import variables_from
from maasdam.core import Caller, Chunk, Entry, Request, Sampling, TextPayload
from maasdam.errors import InvalidField
from maasdam.operations import deployments
from maasdam.operations.responses import StoredResponse
from maasdam.operations.service import Service

ENDPOINT = "/v1/responses"
MOST_LISTED = 100
_TOOL = {"description": None, "parameters": None, "strict": None}


def routes(service: Service) -> APIRouter:
    """The router for /v1/responses."""
    router = APIRouter(prefix=ENDPOINT, tags=["OpenAI"], route_class=JsonRoute)
    kept = service.responses

    @router.post("")
    async def create(body: ResponseBody, http: HttpRequest) -> Response:
        """Answer a text or a conversation; with `stream`, as server-sent events; with `background`, later."""
        service.check_model(body.model)
        check_fields(body)
        sampling = sampling_of(body)
        tools, calling = tools_of(service, body, sampling)
        template = variables_from(body.chat_template_kwargs)
        if sampling.constraint is not None:
            deployments.check_holds(service, body.model, sampling.constraint.field)
        readers = http.scope.get(READING)
        read = partial(_read, body)
        items, size = read() if readers is None else await asyncio.get_running_loop().run_in_executor(readers, read)
        caller, before = caller_of(http.scope), None
        if body.previous_response_id is not None:
            before = await kept.continued(caller, body.previous_response_id, size)
        if body.background and not kept.keeps:
            raise InvalidField("'background' is not for a service that keeps no responses (response_days is 0)", "background")
        messages = messages_of([*_all_items(before), *items], body.instructions)
        payload = TextPayload(messages=messages, sampling=sampling, tools=tools, calling=calling, template=template)
        request = request_of(http.scope, body.model, (payload,), ENDPOINT, service.settings.request_timeout_seconds)
        writer = ResponseWriter(f"resp_{request.id}", _echo(service, body, sampling), sampling.logprobs is not None)
        stored = partial(_stored, items=items, previous=before)
        if body.background:
            return await _behind(service, caller, replace(request, deadline=None), writer, stored)
        keep = partial(kept.keep_now, caller) if kept.keeps and body.store is not False else None
        if body.stream:
            return await _streamed(service, request, writer, None if keep is None else lambda one: keep(stored(one)))

        async def written(chunks: list[Chunk], entry: Entry) -> bytes:
            response = writer.whole(chunks[0], entry)
            if keep is not None:
                await asyncio.to_thread(keep, stored(response))
            return orjson.dumps(response)

        return Response(await service.inference.whole(request, written), media_type="application/json")

    @router.get("/{response_id}")
    async def retrieve(response_id: str, http: HttpRequest) -> dict[str, Any]:
        """One response of this key."""
        return dict((await kept.find(caller_of(http.scope), response_id)).body)

    @router.delete("/{response_id}")
    async def delete(response_id: str, http: HttpRequest) -> dict[str, Any]:
        """Keep one no longer."""
        await kept.delete(caller_of(http.scope), response_id)
        return {"id": response_id, "object": "response", "deleted": True}

    @router.post("/{response_id}/cancel")
    async def cancel(response_id: str, http: HttpRequest) -> dict[str, Any]:
        """Have one that is written in the background written no further."""
        return dict((await kept.cancel(caller_of(http.scope), response_id)).body)

    @router.get("/{response_id}/input_items")
    async def input_items(
        response_id: str,
        http: HttpRequest,
        limit: Annotated[int, Query(ge=1, le=MOST_LISTED)] = 20,
        order: Literal["asc", "desc"] = "desc",
        after: str | None = None,
    ) -> dict[str, Any]:
        """What one response was asked; what it continues has input items of its own."""
        items = list((await kept.find(caller_of(http.scope), response_id)).items)
        return _page(items if order == "asc" else items[::-1], limit, after)

    return router


def _read(body: ResponseBody) -> tuple[list[Item], int]:
    """The items of a body, and their size as they are kept. Raises InvalidField."""
    items = items_of(body.input)
    try:
        size = len(orjson.dumps([items, body.metadata, body.instructions, body.user]))
    except orjson.JSONEncodeError as error:  # half a character, which JSON can carry and UTF-8 can't
        raise InvalidField("'input', 'instructions' or 'metadata' is not valid Unicode text; send UTF-8", "input") from error
    return items, size


def _stored(response: Mapping[str, Any], items: list[Item], previous: StoredResponse | None) -> StoredResponse:
    return StoredResponse(response["id"], response, items, previous)


def _all_items(one: StoredResponse | None) -> list[Item]:
    """The conversation so far, oldest first."""
    turns: list[list[Any]] = []
    while one is not None:
        turns.append([*one.items, *one.body["output"]])
        one = one.previous
    return [item for turn in reversed(turns) for item in turn]


def _page(items: list[Mapping[str, Any]], limit: int, after: str | None) -> dict[str, Any]:
    start = 0
    if after is not None:
        places = [i for i, item in enumerate(items) if item["id"] == after]
        if not places:
            raise InvalidField(f"'after' is '{after[:80]}', which is no item of this response", "after")
        start = places[0] + 1
    data = items[start : start + limit]
    ends = {"first_id": data[0]["id"] if data else None, "last_id": data[-1]["id"] if data else None}
    return {"object": "list", "data": data, **ends, "has_more": start + limit < len(items)}


async def _behind(
    service: Service, caller: Caller, request: Request, writer: ResponseWriter, stored: Callable[..., StoredResponse]
) -> Response:
    """Answer that it is queued; it is written meanwhile."""

    async def work(done: Callable[[Mapping[str, Any]], Any]) -> None:
        async def written(chunks: list[Chunk], entry: Entry) -> None:
            await done(writer.whole(chunks[0], entry))

        try:
            await service.inference.whole(request, written)
        except Exception as error:
            await done(writer.unfinished("failed", errors.refusal(error, request.id)))

    queued = writer.unfinished("queued")
    await service.responses.write(caller, stored(queued), work)
    return Response(orjson.dumps(queued), media_type="application/json")


async def _streamed(
    service: Service, request: Request, writer: ResponseWriter, keep: Callable[[Mapping[str, Any]], None] | None
) -> Response:
    """Its events as they come; the last ones once it is kept."""

    def failed(error: BaseException) -> bytes:
        return writer.failed(errors.refusal(error, request.id))

    def begin(hear: Callable[[Any, bool], None]) -> Callable[[], None]:
        def heard(event: bytes | BaseException, is_last: bool) -> None:
            if isinstance(event, BaseException) and writer.has_begun:
                event = failed(event)
            response = writer.last
            if not is_last or keep is None or response is None:
                hear(event, is_last)
            else:
                service.in_thread(partial(keep, response), lambda error: hear(error or event, True))

        return service.inference.begin_stream(request, writer.event, heard)

    return await EventStream(failed).begun(begin)


def _echo(service: Service, body: ResponseBody, sampling: Sampling) -> dict[str, Any]:
    """What a response says of its request; how it is sampled by default is the model's own to say."""
    served = deployments.served_version(service, body.model)
    effort = (body.reasoning or {}).get("effort")
    if effort is not None and served.reasons and not body.chat_template_kwargs:
        raise InvalidField(
            "'reasoning.effort' is not what this model's chat template reads; send chat_template_kwargs, as it names them",
            "reasoning.effort",
            "unsupported_parameter",
        )
    own = service.defaults(served.version.digest)
    temperature = (0.0 if own.is_greedy else own.temperature) if sampling.temperature is None else sampling.temperature
    given = (body.text or {}).get("format") or {"type": "text"}
    if given["type"] == "json_schema":
        given = {"description": None} | given | {"strict": given.get("strict") is not False}
    return {
        "model": body.model,
        "previous_response_id": body.previous_response_id,
        "instructions": body.instructions,
        "background": bool(body.background),
        "store": service.responses.keeps and body.store is not False,
        "temperature": temperature,
        "top_p": own.top_p if sampling.top_p is None else sampling.top_p,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "max_output_tokens": body.max_output_tokens,
        "top_logprobs": body.top_logprobs or 0,
        "text": {"format": given, "verbosity": "medium"},
        "tools": [_TOOL | tool for tool in body.tools or ()],
        "tool_choice": body.tool_choice or "auto",
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "max_tool_calls": body.max_tool_calls,
        "reasoning": {"effort": effort, "summary": None},
        "truncation": "disabled",
        "service_tier": "default",
        "metadata": body.metadata or {},
        "user": body.user,
        "safety_identifier": body.safety_identifier,
        "prompt_cache_key": body.prompt_cache_key,
    }
