"""POST /v2/models/NAME/generate and /generate_stream: text in, text out, as Triton and the Open Inference Protocol have it.

Knows their JSON: Triton's parameters stand beside the text or under "parameters", the protocol's under "parameters". Refuses to
know what parameters mean (`oip_call`) and engines.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response

from maasdam.api import errors
from maasdam.api.entrance import JSON, REQUEST_ID, caller_of
from maasdam.api.events import EventStream, as_event
from maasdam.api.measured import measured_headers
from maasdam.api.oip_call import OipCall, call_of, name_of
from maasdam.api.paths import MODELS
from maasdam.api.routing import JsonRoute
from maasdam.core import Chunk, Entry
from maasdam.errors import InvalidField, InvalidInput, WrongContentType
from maasdam.operations.service import Service

SCHEMA: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["text_input"],
                    "properties": {
                        "id": {"type": "string"},
                        "text_input": {"type": "string"},
                        "parameters": {"type": "object"},
                    },
                }
            }
        },
    }
}
_PATHS = (MODELS, MODELS + "/versions/{version}")


def routes(service: Service) -> APIRouter:
    """The router of both."""
    router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"], route_class=JsonRoute)

    async def generate(http: Request, model: str, version: str | None = None) -> Response:
        """Continue a text: one answer. Parameters stand beside the text or under `parameters`."""
        call = _asked(service, http, name_of(model, version), may_stream=False)
        request = call.request(http.scope[REQUEST_ID], caller_of(http.scope), "/v2/generate", _seconds(service))

        async def write(chunks: list[Chunk], entry: Entry) -> tuple[bytes, Entry]:
            return orjson.dumps(_said(call, chunks, entry)), entry

        body, entry = await service.inference.whole(request, write)
        headers = {name.decode(): value.decode() for name, value in measured_headers(entry)}
        return Response(body, headers=headers, media_type="application/json")

    async def generate_stream(http: Request, model: str, version: str | None = None) -> Response:
        """Continue a text: pieces as server-sent events, the last one with `done` true; with `stream` false, one."""
        call = _asked(service, http, name_of(model, version), may_stream=True)
        request = call.request(http.scope[REQUEST_ID], caller_of(http.scope), "/v2/generate", _seconds(service))
        if not call.is_text:

            async def write(chunks: list[Chunk], entry: Entry) -> bytes:
                return as_event(_said(call, chunks, entry) | {"done": True})

            return Response(await service.inference.whole(request, write), media_type="text/event-stream")

        def event(chunk: Chunk, entry: Entry) -> bytes:
            return as_event(_said(call, [chunk], entry) | {"done": chunk.is_last})

        def failed(error: BaseException) -> bytes:
            return as_event({"error": errors.refusal(error, request.id).message})

        return await EventStream(failed).begun(partial(service.inference.begin_stream, request, event))

    for path in _PATHS:
        router.post(path + "/generate", openapi_extra=SCHEMA)(generate)
        router.post(path + "/generate_stream", openapi_extra=SCHEMA)(generate_stream)
    return router


def _asked(service: Service, http: Request, name: str, may_stream: bool) -> OipCall:
    service.check_model(name)
    asked = http.scope.get(JSON)
    if asked is None:
        raise WrongContentType(
            "the body is no JSON; send {\"text_input\": ...} with the header 'Content-Type: application/json'"
        )
    if not isinstance(asked, dict) or not isinstance(asked.get("text_input"), str):
        raise InvalidField("'text_input' is missing; send the text to continue, a string", "text_input")
    under = asked.get("parameters")
    if under is not None and not isinstance(under, dict):
        raise InvalidInput("'parameters' is not a JSON object; send {} or leave it out")
    call_id = asked.get("id")
    if call_id is not None and not isinstance(call_id, str):
        raise InvalidField(f"'id' is {call_id!r:.60}; send a string", "id")
    beside = {name: value for name, value in asked.items() if name not in ("id", "text_input", "parameters")}
    try:
        text = asked["text_input"].encode()
    except UnicodeEncodeError:
        raise InvalidField("'text_input' holds half of a character (a lone surrogate); send text", "text_input") from None
    inputs = {"text_input": np.array([text], object)}
    return call_of(name, inputs, (), {**beside, **(under or {})}, call_id, may_stream=may_stream)


def _seconds(service: Service) -> float:
    return service.settings.request_timeout_seconds


def _said(call: OipCall, chunks: list[Chunk], entry: Entry) -> dict[str, Any]:
    reply = call.reply(chunks, entry)
    said = {"model_name": reply.model, "model_version": reply.version, "text_output": reply.outputs["text_output"][0].decode()}
    return said if reply.id is None else {"id": reply.id} | said
