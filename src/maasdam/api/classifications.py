"""Routes that name what is in a file: ours, for what no standard covers. Knows forms and base64; never pixels or sound."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import orjson
from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import Response
from starlette.datastructures import UploadFile

from maasdam.api.entrance import JSON, request_of
from maasdam.api.fields import check_known
from maasdam.api.json_body import from_base64
from maasdam.api.measured import measured
from maasdam.api.paths import CLASSIFIES
from maasdam.core import Chunk, Classification, Entry
from maasdam.errors import InvalidField, InvalidInput, WrongContentType
from maasdam.operations.service import Service
from maasdam.tasks.task import Task

MOST_LABELS = 1000
_REST: dict[str, Any] = {
    "model": {"type": "string", "minLength": 1},
    "top_k": {"type": "integer", "default": 5, "minimum": 1, "maximum": MOST_LABELS},
}


def _schema(field: str) -> dict[str, Any]:
    file = {"file": {"type": "string", "format": "binary"}}
    inline = {field: {"type": "string", "format": "byte", "description": "base64 or a data URL"}}
    kinds = {"multipart/form-data": file, "application/json": inline}
    rest = {"type": "object", "additionalProperties": False}
    content = {
        kind: {"schema": {**rest, "required": [*own, "model"], "properties": own | _REST}} for kind, own in kinds.items()
    }
    return {"requestBody": {"required": True, "content": content}}


def routes(service: Service) -> APIRouter:
    """The routes of every task that classifies."""
    router = APIRouter(tags=["Maasdam"])
    for path, task in CLASSIFIES.items():
        _add(router, service, path, task)
    return router


def _add(router: APIRouter, service: Service, path: str, task: Task) -> None:
    @router.post(path, openapi_extra=_schema(task.field), name=task.name)
    async def classifications(http: HttpRequest) -> Response:
        """Name what is in a file: the likeliest labels, best first."""
        model, data, top_k = await _read(http, service, task.field)
        seconds = service.settings.request_timeout_seconds
        request = request_of(http.scope, model, (task.payload(data, top_k),), path, seconds)

        async def written(chunks: list[Chunk], entry: Entry) -> bytes:
            labels = cast(Classification, chunks[0].value).labels
            heard = entry.audio_seconds
            units = {"images": entry.items} if heard is None else {"type": "duration", "seconds": heard}
            answer = {
                "model": model,
                "data": [{"label": label.label, "label_id": label.label_id, "score": label.score} for label in labels],
                "usage": units | {"maasdam": measured(entry)},
            }
            return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)

        return Response(await service.inference.whole(request, written), media_type="application/json")


async def _read(http: HttpRequest, service: Service, field: str) -> tuple[str, bytes, int]:
    """The model, the file's bytes, and how many labels. JSON holds them in `field`."""
    kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        async with http.form(max_files=1, max_fields=10) as form:
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise InvalidField("the form has no file; send it as field 'file'", "file")
            check_known(form.keys(), ("model", "file", "top_k"), "form field")
            return _model(form.get("model"), service), await file.read(), _top_k(form.get("top_k"))
    if kind == "application/json":
        body = http.scope.get(JSON)
        if not isinstance(body, dict):
            raise InvalidInput(f'the body is not a JSON object; send {{"model": ..., "{field}": ...}}')
        check_known(body, ("model", field, "top_k"))
        model, top_k = _model(body.get("model"), service), _top_k(body.get("top_k"))
        return model, await asyncio.to_thread(_bytes, body.get(field), field), top_k
    raise WrongContentType(f"content type '{kind[:60]}' is not read here; send multipart/form-data or application/json")


def _model(model: Any, service: Service) -> str:
    if not isinstance(model, str) or not model:
        raise InvalidField("'model' is missing; name a deployed model (GET /v1/models lists them)", "model")
    service.check_model(model)
    return model


def _bytes(value: Any, field: str) -> bytes:
    if not isinstance(value, str):
        raise InvalidField(f"'{field}' is missing; send base64 or a data URL", field)
    if value.startswith("data:"):
        head, _, value = value.partition(",")
        if not head.endswith(";base64"):
            raise InvalidField(f"'{field}' is a data URL that is not base64; send data:TYPE;base64,...", field)
    elif value.startswith(("http://", "https://", "file:")):
        raise InvalidField(f"'{field}' is an address; this service fetches nothing: send the bytes in base64", field)
    try:
        return from_base64(value)
    except ValueError:
        raise InvalidField(f"'{field}' is not valid base64", field) from None


def _top_k(value: Any) -> int:
    if value is None or value == "":
        return 5
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_LABELS:
        raise InvalidField(f"'top_k' is {value!r:.40}; send a whole number from 1 to {MOST_LABELS}", "top_k")
    return value
