"""/admin/...: models, deployments, builds, keys and usage. Ours; errors are RFC 9457. Knows JSON; decides nothing."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from maasdam.api.errors import without_places
from maasdam.api.paths import MODELS
from maasdam.api.routing import JsonRoute
from maasdam.operations import deployments, keys
from maasdam.operations.requests import find_request
from maasdam.operations.service import Service
from maasdam.operations.usage import usage

MODEL = Path(description="NAME or NAME:VERSION")
SENTENCES = ("reason", "error", "batching_how")
"""What may name a place of this machine."""


class DeploymentBody(BaseModel):
    """PUT /admin/deployments/NAME."""

    model_config = ConfigDict(extra="forbid")

    version: int | None = Field(None, ge=1, description="a version to stay on; absent: follow the name")
    replicas: int = Field(1, ge=1, le=64)
    traffic: dict[int, float] | None = Field(None, description="percent of requests by version, the rest going to `version`")
    mode: Literal["always", "on-demand", "pin"] = Field(
        "always", description="loaded at the start, and making room when idle; at the first request; or never leaving"
    )
    idle_seconds: float | None = Field(None, gt=0, description="unload after so long without a request; the next wakes it")
    isolate: bool = Field(False, description="whether each copy runs in a process of its own")
    prefix_cache: Literal["key", "shared"] | None = Field(
        None, description="compute prompts that begin alike once: those of one key, or anybody's, who can tell by the time"
    )
    prompt_lookup: int | None = Field(None, description="guess so many tokens ahead from what stands before")
    logprobs: int | None = Field(
        None, ge=1, le=20, description="so many of the likeliest tokens are told in each place of a text"
    )


class KeyBody(BaseModel):
    """POST /admin/keys."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=100)
    scopes: list[Literal["infer", "deploy", "admin"]] = Field(min_length=1)


def routes(service: Service) -> APIRouter:
    """The router for /admin."""
    router = APIRouter(prefix="/admin", tags=["Administration"], route_class=JsonRoute)

    @router.get("/models")
    async def models() -> dict[str, Any]:
        """Every version in the catalog, and how those that are deployed do."""
        rows = [_public(row) for row in await deployments.catalog_rows(service)]
        return {"models": rows, "memory_budget_bytes": service.budget_bytes}

    @router.get(MODELS)
    async def model(model: Annotated[str, MODEL]) -> dict[str, Any]:
        """One version, with its report."""
        return _public(await deployments.catalog_row(service, model))

    @router.get("/builds")
    async def builds() -> dict[str, Any]:
        """Builds, running and done."""
        return {"builds": [_public(asdict(build)) for build in await asyncio.to_thread(service.builds)]}

    _deployments(router, service)
    _keys(router, service)

    @router.get("/usage")
    async def used(by: Literal["key", "model", "day"] = "model", since: str | None = None) -> dict[str, Any]:
        """Sums of the ledger."""
        return {"by": by, "usage": await asyncio.to_thread(usage, service, by, since)}

    @router.get("/requests/{request_id}")
    async def request(request_id: Annotated[str, Path(description="the X-Request-Id of an answer")]) -> dict[str, Any]:
        """What became of one request: its row in the ledger, and its lines in the log."""
        service.outbox.flush()
        return await asyncio.to_thread(find_request, service, request_id)

    return router


def _deployments(router: APIRouter, service: Service) -> None:
    @router.get("/deployments")
    async def desired() -> dict[str, Any]:
        """What should be served, and what is."""
        rows = await deployments.deployment_rows(service)
        public = [_public(row) | {"serving": [_public(one) for one in row["serving"]]} for row in rows]
        return {"deployments": public, "memory_budget_bytes": service.budget_bytes}

    @router.put("/deployments/{model:model}")
    async def deploy(model: str, body: DeploymentBody) -> dict[str, Any]:
        """Bring a model up, or change how it is served. Answers at once; GET /admin/deployments tells when it is up."""
        name = model if body.version is None else f"{model}:{body.version}"
        asked = {"prefix_cache", "prompt_lookup", "logprobs"}
        how = body.model_dump(exclude={"version", *asked})
        options = body.model_dump(include=asked, exclude_none=True)
        return await deployments.deploy(service, name, **how, options=options)

    @router.delete("/deployments/{model:model}", status_code=204)
    async def undeploy(model: str) -> Response:
        """Take a model out of the service; requests in flight finish."""
        await deployments.undeploy(service, model)
        return Response(status_code=204)


def _keys(router: APIRouter, service: Service) -> None:
    @router.get("/keys")
    async def listed() -> dict[str, Any]:
        """Every key; never a secret."""
        return {"keys": await asyncio.to_thread(keys.list_keys, service)}

    @router.post("/keys", status_code=201)
    async def create(body: KeyBody) -> dict[str, Any]:
        """Make a key. The secret is in this answer and nowhere else."""
        return await asyncio.to_thread(keys.create_key, service, body.name, body.scopes)

    @router.delete("/keys/{key}", status_code=204)
    async def revoke(key: str) -> Response:
        """Revoke a key: it is refused from now on."""
        await keys.revoke_everywhere(service, key)
        return Response(status_code=204)


def _public(row: dict[str, Any]) -> dict[str, Any]:
    """A row whose sentences tell nothing of this machine's files."""
    return row | {name: without_places(row[name]) for name in SENTENCES if row.get(name)}
