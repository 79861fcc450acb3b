"""POST /v1/custom: what does a task of a user's own. Knows forms and JSON; never what the code makes of them."""

from __future__ import annotations

import json
from typing import Any, cast

import orjson
from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import Response
from starlette.datastructures import UploadFile

from maasdam.api.entrance import JSON, request_of
from maasdam.api.fields import check_known
from maasdam.api.measured import measured
from maasdam.api.paths import CUSTOM_DOOR
from maasdam.core import Chunk, CustomAnswer, CustomPayload, Entry
from maasdam.errors import InvalidField, InvalidInput, WrongContentType
from maasdam.operations.service import Service

_MODEL: dict[str, Any] = {"type": "string", "minLength": 1}
_ANY: dict[str, Any] = {"description": "Whatever the task takes"}
_FIELDS: dict[str, dict[str, Any]] = {
    "multipart/form-data": {"model": _MODEL, "file": {"type": "string", "format": "binary"}},
    "application/json": {"model": _MODEL, "input": _ANY},
}
_SCHEMA: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            kind: {"schema": {"type": "object", "additionalProperties": False, "required": [*fields], "properties": fields}}
            for kind, fields in _FIELDS.items()
        },
    }
}


def routes(service: Service) -> APIRouter:
    """The router for /v1/custom."""
    router = APIRouter(tags=["Maasdam"])

    @router.post(CUSTOM_DOOR, openapi_extra=_SCHEMA)
    async def custom(http: HttpRequest) -> Response:
        """Have a model with a task of its own answer a file, or a value in JSON."""
        model, payload = await _read(http)
        service.check_model(model)
        request = request_of(http.scope, model, (payload,), CUSTOM_DOOR, service.settings.request_timeout_seconds)

        async def written(chunks: list[Chunk], entry: Entry) -> bytes:
            answer = orjson.Fragment(cast(CustomAnswer, chunks[0].value).json)
            usage = {"items": entry.items, "maasdam": measured(entry)}
            return orjson.dumps({"model": model, "answer": answer, "usage": usage})

        return Response(await service.inference.whole(request, written), media_type="application/json")

    return router


async def _read(http: HttpRequest) -> tuple[str, CustomPayload]:
    kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        async with http.form(max_files=1, max_fields=10) as form:
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise InvalidField("the form has no file; send it as field 'file'", "file")
            check_known(form.keys(), ("model", "file"), "form field")
            return _name(form.get("model")), CustomPayload(await file.read())
    if kind == "application/json":
        body = http.scope.get(JSON)
        if not isinstance(body, dict):
            raise InvalidInput('the body is not a JSON object; send {"model": ..., "input": ...}')
        check_known(body, ("model", "input"))
        if "input" not in body:
            raise InvalidField("'input' is missing; send what the model's task takes", "input")
        return _name(body.get("model")), CustomPayload(json.dumps(body["input"]).encode(), is_file=False)
    raise WrongContentType(f"content type '{kind[:60]}' is not read here; send multipart/form-data or application/json")


def _name(model: Any) -> str:
    if not isinstance(model, str) or not model:
        raise InvalidField("'model' is missing; name a deployed model (GET /v1/models lists them)", "model")
    return model
