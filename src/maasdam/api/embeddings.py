"""POST /v1/embeddings: OpenAI's, of models that extract features, with pictures. Knows its JSON; never what vectors mean."""

from __future__ import annotations

import asyncio
import base64
from typing import Any, cast

import orjson
from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from maasdam.api.entrance import request_of
from maasdam.api.fields import check_known
from maasdam.api.measured import measured
from maasdam.api.media import file_in, is_address
from maasdam.api.routing import JsonRoute
from maasdam.core import Chunk, Entry, ImagePayload, Payload, ReadPayload, Vector, check_within
from maasdam.errors import InvalidField
from maasdam.operations.service import Service
from maasdam.settings import Settings
from maasdam.tasks.features import PATH

MOST_INPUTS = 2048
"""As OpenAI has it."""
MOST_ADDRESSES = 16
"""Of pictures, of one request."""
MOST_DIMENSIONS = 1 << 20
LARGEST_TOKEN = (1 << 31) - 1
"""No vocabulary has as many."""
IN_THE_LOOP = 1 << 15
"""So many numbers are written as JSON in the event loop; more in a thread."""
_FORMATS = ("float", "base64")


class EmbeddingBody(BaseModel):
    """POST /v1/embeddings. Unknown fields are kept, to be refused by name."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: str = Field(description="NAME, NAME:VERSION or NAME@ALIAS")
    input: Any = Field(
        description='a string, a list of up to 2048 strings, token ids, lists of token ids, or {"image": ...} and {"text": ...}'
    )
    encoding_format: Any = Field(None, description="float (default), or base64: float32, little-endian")
    dimensions: Any = Field(None, description="fewer numbers, of models that were trained for it (matryoshka)")
    user: str | None = Field(None, description="changes nothing")
    truncate_prompt_tokens: Any = Field(None, description="-1: what is beyond the model's length is cut off, not refused")
    prompt_name: str | None = Field(None, description="which of the model's own prompts stands before each text")


def routes(service: Service) -> APIRouter:
    """The router for /v1/embeddings."""
    router = APIRouter(tags=["OpenAI"], route_class=JsonRoute)

    @router.post(PATH)
    async def embeddings(body: EmbeddingBody, http: HttpRequest) -> Response:
        """Vectors of texts, pooled and normalised as the model's own folder says, and of pictures."""
        service.check_model(body.model)
        check_known(body.model_extra or (), (*EmbeddingBody.model_fields,))
        if body.encoding_format not in (None, *_FORMATS):
            raise InvalidField(f"'encoding_format' is {body.encoding_format!r:.40}; send float or base64", "encoding_format")
        if body.dimensions is not None:
            check_within("dimensions", body.dimensions, int, 1, MOST_DIMENSIONS)
        payloads = await _payloads(body, service.settings)
        request = request_of(http.scope, body.model, payloads, PATH, service.settings.request_timeout_seconds)

        async def written(chunks: list[Chunk], entry: Entry) -> bytes:
            numbers = sum(len(cast(Vector, chunk.value).values) for chunk in chunks)
            if numbers <= IN_THE_LOOP:
                return _written(body, chunks, entry)
            return await asyncio.to_thread(_written, body, chunks, entry)

        return Response(await service.inference.whole(request, written), media_type="application/json")

    return router


async def _payloads(body: EmbeddingBody, settings: Settings) -> tuple[Payload, ...]:
    """Texts, and pictures as Jina has them: {"image": base64, a data URL or an address}. Raises InvalidField."""
    cuts = cuts_of(body.truncate_prompt_tokens)

    def read(text: str | tuple[int, ...]) -> ReadPayload:
        return ReadPayload(text, None, body.prompt_name, 0, cuts, body.dimensions)

    many = body.input if isinstance(body.input, list) else [body.input]
    if not any(isinstance(one, dict) for one in many):
        return tuple(read(text) for text in inputs_of(body.input, "input", MOST_INPUTS))
    if len(many) > MOST_INPUTS:
        raise InvalidField(f"'input' holds {len(many)} inputs; send 1 to {MOST_INPUTS}", "input")
    made: list[Payload] = []
    addresses = 0
    for i, one in enumerate(many):
        where = f"input[{i}]" if many is body.input else "input"
        given = one if isinstance(one, dict) else {"text": one}
        check_known(given, ("text", "image"), where=where)
        if len(given) != 1:
            raise InvalidField(f"'{where}' must have a text or an image", where)
        if "text" in given:
            made += [read(text) for text in inputs_of(given["text"], f"{where}.text", 1)]
            continue
        for name in ("dimensions", "prompt_name"):
            if getattr(body, name) is not None:
                raise InvalidField(f"'{name}' means nothing beside an image; leave it out", name, "unsupported_parameter")
        addresses += is_address(given["image"])
        if addresses > MOST_ADDRESSES:
            raise InvalidField(f"'{where}.image' is one of more than {MOST_ADDRESSES} addresses; send bytes", f"{where}.image")
        made.append(ImagePayload(await file_in(given["image"], f"{where}.image", settings)))
    return tuple(made)


def _written(body: EmbeddingBody, chunks: list[Chunk], entry: Entry) -> bytes:
    vectors = [cast(Vector, chunk.value) for chunk in chunks]
    tokens = entry.prompt_tokens or 0
    cut = {"truncated": [i for i, vector in enumerate(vectors) if vector.cut]}
    answer = {
        "object": "list",
        "data": [
            {"object": "embedding", "index": i, "embedding": _shown(vector, body.encoding_format)}
            for i, vector in enumerate(vectors)
        ],
        "model": body.model,
        "usage": {
            "prompt_tokens": tokens,
            "total_tokens": tokens,
            "maasdam": measured(entry) | (cut if cut["truncated"] else {}),
        },
    }
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)


def _shown(vector: Vector, encoding: str | None) -> Any:
    return base64.b64encode(vector.values.astype("<f4").tobytes()).decode() if encoding == "base64" else vector.values


def cuts_of(given: Any) -> bool:
    """Whether texts may be cut. Raises InvalidField."""
    if given not in (None, -1) or isinstance(given, bool):
        name = "truncate_prompt_tokens"
        raise InvalidField(
            f"'{name}' is {given!r:.40}; send -1 (what is beyond the model's length is cut off), or leave it out", name
        )
    return given is not None


def inputs_of(given: Any, name: str, most: int) -> list[str | tuple[int, ...]]:
    """A text, texts, token ids or lists of them as OpenAI has it. Raises InvalidField."""
    many = given if isinstance(given, list) and not (given and all(map(_is_token, given))) else [given]
    if not 1 <= len(many) <= most:
        raise InvalidField(f"'{name}' holds {len(many)} texts; send 1 to {most}", name)
    out: list[str | tuple[int, ...]] = []
    for i, one in enumerate(many):
        where = name if many is not given else f"{name}[{i}]"
        if isinstance(one, str):
            if not one:
                raise InvalidField(f"'{where}' is empty; send at least one character", where)
            out.append(one)
        elif isinstance(one, list) and one and all(map(_is_token, one)):
            unknown = next((token for token in one if not 0 <= token <= LARGEST_TOKEN), None)
            if unknown is not None:
                raise InvalidField(f"'{where}' holds {unknown!r:.30}, a token of no model's vocabulary", where)
            out.append(tuple(one))
        else:
            raise InvalidField(f"'{where}' must be a text, or a list of token ids that is not empty", where)
    return out


def _is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
