"""Routes that say what is in a file: ours, for what no standard covers. Knows forms and base64; never pixels or sound."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import orjson
from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import Response
from starlette.datastructures import UploadFile

from maasdam.api.entrance import JSON, request_of
from maasdam.api.fields import check_known
from maasdam.api.measured import measured
from maasdam.api.media import file_in
from maasdam.api.paths import CLASSIFIES
from maasdam.core import Chunk, Entry, ImagePayload, Payload
from maasdam.errors import InvalidField, InvalidInput, WrongContentType
from maasdam.operations.service import Service
from maasdam.tasks.task import Task

MOST_LABELS = 1000
LONGEST_LABEL = 1000
"""Characters."""
_OPTIONS: dict[str, Any] = {
    "top_k": {"type": "integer", "minimum": 1, "maximum": MOST_LABELS},
    "threshold": {"type": "number", "minimum": 0, "maximum": 1},
    "labels": {
        "type": "array",
        "items": {"type": "string"},
        "description": "which of these; of models that read labels (CLIP)",
    },
    "hypothesis_template": {"type": "string", "description": "what is read for a label, which stands for {}"},
}
_MODEL: dict[str, Any] = {"model": {"type": "string", "minLength": 1}}


def _schema(task: Task) -> dict[str, Any]:
    field, options = task.field, {name: _OPTIONS[name] for name in task.asks}
    file = {"file": {"type": "string", "format": "binary"}}
    inline = {field: {"type": "string", "format": "byte", "description": "base64 or a data URL"}}
    kinds = {"multipart/form-data": file, "application/json": inline}
    rest: dict[str, Any] = {"type": "object", "additionalProperties": False}
    content = {
        kind: {"schema": {**rest, "required": [*own, "model"], "properties": {**own, **_MODEL, **options}}}
        for kind, own in kinds.items()
    }
    return {"requestBody": {"required": True, "content": content}}


def routes(service: Service) -> APIRouter:
    """The routes of every task that says what is in a file."""
    router = APIRouter(tags=["Maasdam"])
    for path, task in CLASSIFIES.items():
        _add(router, service, path, task)
    return router


def _add(router: APIRouter, service: Service, path: str, task: Task) -> None:
    data_of = task.data
    assert data_of is not None

    @router.post(path, openapi_extra=_schema(task), name=task.name)
    async def seen(http: HttpRequest) -> Response:
        """Say what is in a file, the surest first."""
        model, payload = await _read(http, service, task)
        seconds = service.settings.request_timeout_seconds
        request = request_of(http.scope, model, (payload,), path, seconds)

        async def written(chunks: list[Chunk], entry: Entry) -> bytes:
            heard = entry.audio_seconds
            units = {"images": entry.items} if heard is None else {"type": "duration", "seconds": heard}
            answer = {
                "model": model,
                "data": data_of(chunks[0].value),
                "usage": units | {"maasdam": measured(entry)},
            }
            return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)

        return Response(await service.inference.whole(request, written), media_type="application/json")


async def _read(http: HttpRequest, service: Service, task: Task) -> tuple[str, Payload]:
    """The model, and what is to be looked through: the bytes of a file, and what is asked of it."""
    kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        async with http.form(max_files=1, max_fields=10 + MOST_LABELS) as form:
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise InvalidField("the form has no file; send it as field 'file'", "file")
            check_known(form.keys(), ("model", "file", *task.asks), "form field")
            body: Mapping[str, Any] = {**form, "labels": form.getlist("labels") or None}
            model, data = _model(form.get("model"), service), await file.read()
    elif kind == "application/json":
        body = http.scope.get(JSON)  # type: ignore[assignment]  # looked at in the next line
        if not isinstance(body, dict):
            raise InvalidInput(f'the body is not a JSON object; send {{"model": ..., "{task.field}": ...}}')
        check_known(body, ("model", task.field, *task.asks))
        model = _model(body.get("model"), service)
        _top_k(body.get("top_k"))
        data = await file_in(body.get(task.field), task.field, service.settings, fetches=ImagePayload in task.payloads)
    else:
        raise WrongContentType(f"content type '{kind[:60]}' is not read here; send multipart/form-data or application/json")
    payload = task.payload(data, _top_k(body.get("top_k")))
    if not isinstance(payload, ImagePayload):
        return model, payload
    asked = _of_labels(body) if "labels" in task.asks else {"threshold": _share("threshold", body.get("threshold"))}
    return model, replace(payload, **asked)


def _share(name: str, value: Any) -> float | None:
    if value in (None, ""):
        return None
    with suppress(ValueError):
        value = float(value) if isinstance(value, str) and len(value) < 30 else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise InvalidField(f"'{name}' is {value!r:.40}; send a number from 0 to 1", name)
    return float(value)


def _model(model: Any, service: Service) -> str:
    if not isinstance(model, str) or not model:
        raise InvalidField("'model' is missing; name a deployed model (GET /v1/models lists them)", "model")
    service.check_model(model)
    return model


def _of_labels(body: Mapping[str, Any]) -> dict[str, Any]:
    """What a payload has of labels that the caller sent. Raises InvalidField."""
    labels, template = body.get("labels"), body.get("hypothesis_template")
    if template is not None and (not isinstance(template, str) or len(template) > LONGEST_LABEL):
        raise InvalidField(
            f"'hypothesis_template' must be a text of up to {LONGEST_LABEL} characters with {{}} in it", "hypothesis_template"
        )
    if labels is None:
        return {"labels": (), "template": template}
    if not isinstance(labels, list) or not 1 <= len(labels) <= MOST_LABELS:
        raise InvalidField(f"'labels' must be a list of 1 to {MOST_LABELS} texts", "labels")
    for i, label in enumerate(labels):
        where = f"labels[{i}]"
        if not isinstance(label, str) or not label.strip() or len(label) > LONGEST_LABEL:
            raise InvalidField(f"'{where}' must be a text of 1 to {LONGEST_LABEL} characters", where)
    twice = next((i for i, label in enumerate(labels) if label in labels[:i]), None)
    if twice is not None:
        raise InvalidField(f"'labels[{twice}]' stands in the list before; send each label once", f"labels[{twice}]")
    return {"labels": tuple(labels), "template": template}


def _top_k(value: Any) -> int | None:
    if value in (None, ""):
        return None
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_LABELS:
        raise InvalidField(f"'top_k' is {value!r:.40}; send a whole number from 1 to {MOST_LABELS}", "top_k")
    return value
