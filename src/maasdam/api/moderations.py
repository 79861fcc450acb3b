"""POST /v1/moderations: OpenAI's, by any classifier of texts. Knows its JSON; never how a text is classified.

A model has classes of its own. Those that stand for one of OpenAI's categories are told by its name (see `SAME`); the others
flag nothing, and are told apart. A model none of whose classes stand for a category, as of moods, is refused.
"""

from __future__ import annotations

from typing import Any, cast

import orjson
from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from maasdam.api.embeddings import inputs_of
from maasdam.api.entrance import request_of
from maasdam.api.fields import check_known
from maasdam.api.measured import measured
from maasdam.api.routing import JsonRoute
from maasdam.core import Chunk, Classification, Entry, Facts, ReadPayload
from maasdam.errors import InvalidField
from maasdam.operations.service import Service

PATH = "/v1/moderations"
MOST_INPUTS = 256
MOST_LABELS = 1000
FLAGGED = 0.5
"""What is likelier than that is flagged."""
CATEGORIES = (
    "harassment", "harassment/threatening", "hate", "hate/threatening", "illicit", "illicit/violent", "self-harm",
    "self-harm/intent", "self-harm/instructions", "sexual", "sexual/minors", "violence", "violence/graphic",
)  # fmt: skip
SAME = {
    "h": "hate", "h2": "hate/threatening", "hr": "harassment", "s": "sexual", "s3": "sexual/minors", "sh": "self-harm",
    "v": "violence", "v2": "violence/graphic", "insult": "harassment", "threat": "harassment/threatening",
    "identity_hate": "hate", "identity_attack": "hate", "hate_speech": "hate", "hateful": "hate", "obscene": "sexual",
    "sexual_explicit": "sexual", "nsfw": "sexual", "violent": "violence", "toxic": "harassment", "toxicity": "harassment",
    "severe_toxic": "harassment", "severe_toxicity": "harassment", "offensive": "harassment", "abusive": "harassment",
}  # fmt: skip
"""What classifiers call them, in lower case with underscores."""


class ModerationBody(BaseModel):
    """POST /v1/moderations. Unknown fields are kept, to be refused by name."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: str = Field(description="NAME, NAME:VERSION or NAME@ALIAS: of a classifier of texts")
    input: Any = Field(description='a text, up to 256 texts, or objects {"type": "text", "text": ...}')


def routes(service: Service) -> APIRouter:
    """The router for /v1/moderations."""
    router = APIRouter(tags=["OpenAI"], route_class=JsonRoute)

    @router.post(PATH)
    async def moderations(body: ModerationBody, http: HttpRequest) -> Response:
        """What a classifier finds in texts, under OpenAI's categories where its classes stand for them."""
        service.check_model(body.model)
        check_known(body.model_extra or (), (*ModerationBody.model_fields,))
        texts = inputs_of(_texts(body.input), "input", MOST_INPUTS)
        payloads = tuple(ReadPayload(text, top_k=MOST_LABELS) for text in texts)
        request = request_of(http.scope, body.model, payloads, PATH, service.settings.request_timeout_seconds)

        async def written(chunks: list[Chunk], entry: Entry) -> bytes:
            results = [_result(cast(Classification, chunk.value)) for chunk in chunks]
            usage = {"prompt_tokens": entry.prompt_tokens or 0, "maasdam": measured(entry)}
            return orjson.dumps({"id": f"modr-{request.id}", "model": body.model, "results": results, "usage": usage})

        return Response(await service.inference.whole(request, written, _check), media_type="application/json")

    return router


def _texts(given: Any) -> Any:
    """Parts of text as texts. Raises InvalidField for pictures."""
    if not isinstance(given, list):
        return given
    out = []
    for i, part in enumerate(given):
        if isinstance(part, dict):
            if part.get("type") != "text":
                raise InvalidField(
                    f"'input[{i}]' is of type {part.get('type')!r:.40}; a text is classified here", f"input[{i}].type"
                )
            check_known(part, ("type", "text"), where=f"input[{i}]")
            part = part.get("text")
        if not isinstance(part, str):
            raise InvalidField(f"'input[{i}]' must be a text, or an object with type and text", f"input[{i}]")
        out.append(part)
    return out


def _category(label: str) -> str | None:
    """OpenAI's category that a class stands for."""
    word = label.strip().lower().replace(" ", "_").replace("-", "_")
    return SAME.get(word) or next((name for name in CATEGORIES if name.replace("-", "_") == word), None)


def _check(facts: Facts) -> None:
    """Raise InvalidField for a model none of whose classes stand for a category."""
    if not any(map(_category, facts.labels.values())):
        has = ", ".join(list(facts.labels.values())[:8]) or "no names"
        raise InvalidField(
            f"this model's classes ({has}) stand for none of OpenAI's categories; use POST /v1/texts/classifications", "model"
        )


def _result(found: Classification) -> dict[str, Any]:
    """Of several classes that stand for one category the likeliest counts; one that no class stands for is 0, and said."""
    scores: dict[str, float] = {}
    for label in found.labels:
        name = _category(label.label)
        if name is not None:
            scores[name] = max(scores.get(name, 0.0), label.score)
    unknown = [name for name in CATEGORIES if name not in scores]
    own = {label.label: label.score for label in found.labels}
    return {
        "flagged": any(score > FLAGGED for score in scores.values()),
        "categories": {name: scores.get(name, 0.0) > FLAGGED for name in CATEGORIES},
        "category_scores": {name: scores.get(name, 0.0) for name in CATEGORIES},
        "category_applied_input_types": {name: ["text"] if name in scores else [] for name in CATEGORIES},
        "maasdam": {"labels": own, "not_classified": unknown},
    }
