"""POST /v1/images/classifications: ours, for what no standard covers. Knows forms and base64; never pixels."""

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
from maasdam.core import Chunk, Classification, Entry, ImagePayload
from maasdam.errors import InvalidField, InvalidInput, WrongContentType
from maasdam.operations.service import Service

ENDPOINT = "/v1/images/classifications"
MOST_LABELS = 1000
FORM_FIELDS, JSON_FIELDS = ("model", "file", "top_k"), ("model", "image", "top_k")
SCHEMA: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["file", "model"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "model": {"type": "string", "minLength": 1},
                        "top_k": {"type": "integer", "default": 5, "minimum": 1, "maximum": 1000},
                    },
                }
            },
            "application/json": {
                "schema": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["image", "model"],
                    "properties": {
                        "image": {"type": "string", "format": "byte", "description": "base64 or a data URL"},
                        "model": {"type": "string", "minLength": 1},
                        "top_k": {"type": "integer", "default": 5, "minimum": 1, "maximum": 1000},
                    },
                }
            },
        },
    }
}


def routes(service: Service) -> APIRouter:
    """The router for /v1/images."""
    router = APIRouter(prefix="/v1/images", tags=["Maasdam"])

    @router.post("/classifications", openapi_extra=SCHEMA)
    async def classifications(http: HttpRequest) -> Response:
        """Name what is in an image: the likeliest labels, best first."""
        model, data, top_k = await _read(http, service)
        request = request_of(
            http.scope, model, (ImagePayload(data, top_k),), ENDPOINT, service.settings.request_timeout_seconds
        )

        async def written(chunks: list[Chunk], entry: Entry) -> bytes:
            labels = cast(Classification, chunks[0].value).labels
            answer = {
                "model": model,
                "data": [{"label": label.label, "label_id": label.label_id, "score": label.score} for label in labels],
                "usage": {"images": entry.items, "maasdam": measured(entry)},
            }
            return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)

        return Response(await service.inference.whole(request, written), media_type="application/json")

    return router


async def _read(http: HttpRequest, service: Service) -> tuple[str, bytes, int]:
    """The model, the image's bytes, and how many labels."""
    kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        async with http.form(max_files=1, max_fields=10) as form:
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise InvalidField("the form has no file; send the image as field 'file'", "file")
            check_known(form.keys(), FORM_FIELDS, "form field")
            return _model(form.get("model"), service), await file.read(), _top_k(form.get("top_k"))
    if kind == "application/json":
        body = http.scope.get(JSON)
        if not isinstance(body, dict):
            raise InvalidInput('the body is not a JSON object; send {"model": ..., "image": ...}')
        check_known(body, JSON_FIELDS)
        model, top_k = _model(body.get("model"), service), _top_k(body.get("top_k"))
        return model, await asyncio.to_thread(_image, body.get("image")), top_k
    raise WrongContentType(f"content type '{kind[:60]}' is not read here; send multipart/form-data or application/json")


def _model(model: Any, service: Service) -> str:
    if not isinstance(model, str) or not model:
        raise InvalidField("'model' is missing; name a deployed model (GET /v1/models lists them)", "model")
    service.check_model(model)
    return model


def _image(image: Any) -> bytes:
    if not isinstance(image, str):
        raise InvalidField("'image' is missing; send base64 or a data URL", "image")
    if image.startswith("data:"):
        head, _, image = image.partition(",")
        if not head.endswith(";base64"):
            raise InvalidField("'image' is a data URL that is not base64; send data:image/png;base64,...", "image")
    elif image.startswith(("http://", "https://", "file:")):
        raise InvalidField("'image' is an address; this service fetches nothing: send the bytes in base64", "image")
    try:
        return from_base64(image)
    except ValueError:
        raise InvalidField("'image' is not valid base64", "image") from None


def _top_k(value: Any) -> int:
    if value is None or value == "":
        return 5
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_LABELS:
        raise InvalidField(f"'top_k' is {value!r:.40}; send a whole number from 1 to {MOST_LABELS}", "top_k")
    return value
