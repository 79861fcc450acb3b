"""The OpenAPI document as the service really answers. Knows codes, shapes and who needs a key; never how an answer is made.

FastAPI writes paths and bodies; here are added the bearer scheme, the codes that come, in each door's words, and what
fields may hold where the code checks that itself to refuse by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from maasdam.api import errors
from maasdam.api.access import OPEN
from maasdam.api.audio_fields import FORMATS, GRANULARITIES
from maasdam.api.choices import MOST_ANSWERS
from maasdam.api.openai_schema import IGNORED, MEANINGLESS
from maasdam.core import Sampling

Schema = dict[str, Any]

ANSWERS_LATE = (
    "/v1/chat",
    "/v1/completions",
    "/v1/responses",
    "/v1/embeddings",
    "/v1/moderations",
    "/v1/texts",
    "/rerank",
    "tokenize",
    "/v1/audio",
    "/v1/images",
    "/v1/custom",
    "/infer",
)
"""Routes that run a model have these in their path."""
_STRING: Schema = {"type": "string"}
_STRING_OR_NULL: Schema = {"type": ["string", "null"]}


def _object(required: Schema, optional: Schema | None = None, **more: Any) -> Schema:
    return {"type": "object", "required": [*required], "properties": required | (optional or {}), **more}


ERRORS: dict[str, Schema] = {
    "openai": _object(
        {"error": _object(dict.fromkeys(("message", "type"), _STRING) | dict.fromkeys(("param", "code"), _STRING_OR_NULL))}
    ),
    "oip": _object({"error": _STRING}),
    "ours": _object(
        dict.fromkeys(("type", "title", "status", "detail", "instance", "request_id"), _STRING)
        | {"status": {"type": "integer"}}
    ),
}
EVENTS: Schema = {"text/event-stream": {"schema": {"type": "string"}}}
TEXT: Schema = {"text/plain": {"schema": {"type": "string"}}}
BINARY: Schema = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
MORE_ANSWERS: dict[str, Schema] = {
    # beside JSON, or in its place
    "/v1/chat/completions": EVENTS,
    "/v1/completions": EVENTS,
    "/v1/responses": EVENTS,
    "/v1/audio/transcriptions": TEXT | EVENTS,
    "/v1/audio/translations": TEXT,
    "/metrics": TEXT,
}


def _within(kind: type, low: float, high: float) -> Schema:
    return {"anyOf": [{"type": "integer" if kind is int else "number", "minimum": low, "maximum": high}, {"type": "null"}]}


_STOP: Schema = {"type": "string", "minLength": 1, "maxLength": Sampling.MOST_STOP_CHARACTERS}
_TOKENS: Schema = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}}
_TEXTS: Schema = {"type": "array", "minItems": 1, "maxItems": 64, "items": {"type": "string"}}
_PART: Schema = _object({"type": {"const": "text"}, "text": _STRING}, additionalProperties=False)
_MESSAGE: Schema = _object(
    {
        "role": {"enum": ["system", "developer", "user", "assistant"]},
        "content": {"anyOf": [_STRING, {"type": "array", "items": _PART}]},
    },
    {"name": {"anyOf": [_STRING, {"type": "null"}]}},
    additionalProperties=False,
)
FIELDS: dict[str, Schema] = {
    **{name: _within(*limits) for name, limits in Sampling.RANGES.items()},
    "top_logprobs": _within(*Sampling.RANGES["logprobs"]),
    **dict.fromkeys(("n", "best_of"), _within(int, 1, MOST_ANSWERS)),
    "echo": {"type": ["boolean", "null"]},
    "stop_token_ids": {
        "anyOf": [
            {"type": "array", "maxItems": Sampling.MOST_STOP_TOKENS, "items": {"type": "integer", "minimum": 0}},
            {"type": "null"},
        ]
    },
    "stop": {"anyOf": [_STOP, {"type": "array", "maxItems": Sampling.MOST_STOPS, "items": _STOP}, {"type": "null"}]},
    **dict.fromkeys(("max_tokens", "max_completion_tokens"), _within(int, 1, 1 << 31)),
    "messages": {"type": "array", "minItems": 1, "items": _MESSAGE},
    "prompt": {"anyOf": [{"type": "string"}, _TEXTS, _TOKENS, {**_TEXTS, "items": _TOKENS}]},
    **{name: {} for name in IGNORED},
}
"""What the fields of both text routes may hold: `sampling` and `openai_schema` refuse the rest by name."""
SPEECH_FIELDS: dict[str, Schema] = {
    "model": {"type": "string", "minLength": 1},
    "response_format": {"type": "string", "enum": list(FORMATS), "default": "json"},
    "timestamp_granularities[]": {"type": "array", "items": {"enum": [*GRANULARITIES]}},
    "include[]": {"type": "array", "items": {"enum": ["logprobs"]}},
}
"""What the fields of a form with a recording may hold."""
TRAFFIC: Schema = {
    "propertyNames": {"pattern": "^[1-9][0-9]{0,5}$"},
    "additionalProperties": {"type": "number", "exclusiveMinimum": 0, "maximum": 100},
}
KEY = {"type": "string", "pattern": "^[0-9a-f]{12}$"}
SINCE = {"anyOf": [{"type": "string", "format": "date"}, {"type": "string", "pattern": "^[0-9]{1,4}[hdw]$"}]}


def document(app: FastAPI) -> dict[str, Any]:
    """The document, made once."""
    if app.openapi_schema is None:
        spec = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        parts = spec.setdefault("components", {})
        parts["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer", "description": "maasdam keys create NAME"}}
        spec["security"] = [{"bearer": []}]
        schemas = parts.setdefault("schemas", {})
        for name, schema in ERRORS.items():
            schemas[f"Error-{name}"] = schema
        for name in ("ChatBody", "CompletionBody"):
            _tighten(schemas[name], name)
        for schema in schemas.values():
            if "file" in schema.get("properties", {}):
                schema["additionalProperties"] = False
                schema["properties"] |= {name: holds for name, holds in SPEECH_FIELDS.items() if name in schema["properties"]}
        schemas["KeyBody"]["properties"]["name"]["pattern"] = "^[ -~]+$"
        schemas["DeploymentBody"]["properties"]["traffic"]["anyOf"][0] |= TRAFFIC
        for path, methods in spec["paths"].items():
            for method, operation in methods.items():
                _complete(path, method, operation)
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        app.openapi_schema = spec
    return app.openapi_schema


def _tighten(schema: Schema, name: str) -> None:
    """Say of a body's fields what the code that refuses them by name says."""
    own = schema["properties"]
    for field, holds in FIELDS.items():
        if field in own or field in IGNORED:
            kept = {key: own[field][key] for key in ("description", "title") if field in own and key in own[field]}
            own[field] = kept | holds
    own |= {field: {"enum": [*values, None]} for field, values in MEANINGLESS.items() if field not in own}
    if name == "ChatBody":
        own["logprobs"] = own["logprobs"] | {"anyOf": [{"type": "boolean"}, {"type": "null"}]}
    else:
        own["max_tokens"] = own["max_tokens"] | _within(*Sampling.RANGES["max_tokens"])
    schema["additionalProperties"] = False


def _complete(path: str, method: str, operation: Schema) -> None:
    """The codes that come, who needs a key, and what else than JSON is answered."""
    responses = operation["responses"]
    responses.pop("422", None)
    for parameter in operation.get("parameters", ()):
        if parameter["name"] in ("key", "since"):
            parameter["schema"] = KEY if parameter["name"] == "key" else SINCE
    if path in OPEN:
        operation["security"] = []
    success = next(code for code in responses if code.startswith("2"))
    if path == "/metrics":
        responses[success]["content"] = TEXT
    elif path in MORE_ANSWERS:
        responses[success]["content"] |= MORE_ANSWERS[path]
    elif path.endswith("/infer"):
        responses[success]["content"] |= BINARY
        operation["parameters"] = [one for one in operation["parameters"] if one["in"] == "path"]  # it reads no query
    door = errors.door(path)
    kind = "application/json" if door in ("openai", "oip") else "application/problem+json"
    schema = {"$ref": f"#/components/schemas/Error-{'ours' if door == 'classifies' else door}"}
    if path.endswith("ready"):
        responses["503"] = {"description": "Not yet", "content": {"application/json": {"schema": {"type": "object"}}}}
    for code in _codes(path, method, operation):
        if str(code) not in responses:
            responses[str(code)] = {"description": HTTPStatus(code).phrase, "content": {kind: {"schema": schema}}}


def _codes(path: str, method: str, operation: Mapping[str, Any]) -> list[int]:
    if path in OPEN:
        return [400]
    codes = {400, 401, 403, 503}  # 400: what is no HTTP; 503: the database can't be read
    if method in ("post", "put"):
        codes |= {408, 413, 415}
    if "{" in path or operation.get("requestBody"):
        codes.add(404)
    if any(part in path for part in ANSWERS_LATE):
        codes |= {404, 429, 500, 504}
    if path.startswith(("/admin/deployments", "/v2/repository")):
        codes |= {409}
    return sorted(codes)
