"""/admin/...: models, deployments, builds, keys and usage. Ours; errors are RFC 9457. Knows JSON; decides nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import asdict, is_dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from maasdam.api.errors import without_places
from maasdam.api.paths import MODELS
from maasdam.api.routing import JsonRoute
from maasdam.core import UNTRIED, Batching
from maasdam.errors import NotFound
from maasdam.operations.requests import find_request
from maasdam.operations.service import Service
from maasdam.operations.usage import moment

MODEL = Path(description="NAME or NAME:VERSION")


class DeploymentBody(BaseModel):
    """PUT /admin/deployments/NAME."""

    model_config = ConfigDict(extra="forbid")

    version: int | None = Field(None, ge=1, description="a version to stay on; absent: follow the name")
    replicas: int = Field(1, ge=1, le=64)
    traffic: dict[int, float] | None = Field(None, description="percent of requests by version, the rest going to `version`")


class KeyBody(BaseModel):
    """POST /admin/keys."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=100)
    scopes: list[Literal["infer", "deploy", "admin"]] = Field(min_length=1)


def routes(service: Service) -> APIRouter:
    """The router for /admin."""
    router = APIRouter(prefix="/admin", tags=["Administration"], route_class=JsonRoute)
    catalog = service.catalog

    @router.get("/models")
    async def models() -> dict[str, Any]:
        """Every version in the catalog, and how those that are deployed do."""
        versions = await asyncio.to_thread(catalog.versions)
        known = await asyncio.to_thread(_known, service, [version.digest for version in versions])
        states = {copy.name: copy for copy in service.router.copies()}
        rows = []
        for version in versions:
            row = {key: value for key, value in _plain(version).items() if key not in ("report", "passes")}
            copy = states.get(f"{version.model}:{version.version}")
            row |= {
                "state": copy.state if copy else None,
                "reason": without_places(copy.reason) if copy and copy.reason else None,
                **_found(copy.facts.batching if copy and copy.facts.batching else known[version.digest]),
            }
            rows.append(row)
        return {"models": rows}

    @router.get(MODELS)
    async def model(model: Annotated[str, MODEL]) -> dict[str, Any]:
        """One version, with its report."""
        version = await asyncio.to_thread(catalog.resolve, model)
        known = await asyncio.to_thread(_known, service, [version.digest])
        return _plain(version) | _found(known[version.digest])

    @router.get("/builds")
    async def builds() -> dict[str, Any]:
        """Builds, running and done."""
        rows = [_plain(build) for build in await asyncio.to_thread(service.builds)]
        return {"builds": [row | {"error": _said(row["error"])} for row in rows]}

    _deployments(router, service)
    _keys(router, service)

    @router.get("/usage")
    async def usage(by: Literal["key", "model", "day"] = "model", since: str | None = None) -> dict[str, Any]:
        """Sums of the ledger."""
        rows = await asyncio.to_thread(service.ledger.usage, by, None if since is None else moment(since))
        return {"by": by, "usage": [_plain(row) for row in rows]}

    @router.get("/requests/{request_id}")
    async def request(request_id: Annotated[str, Path(description="the X-Request-Id of an answer")]) -> dict[str, Any]:
        """What became of one request: its row in the ledger, and its lines in the log."""
        service.requests.flush()
        return await asyncio.to_thread(find_request, request_id, service.ledger, service.settings)

    return router


def _deployments(router: APIRouter, service: Service) -> None:
    @router.get("/deployments")
    async def deployments() -> dict[str, Any]:
        """What should be served, and what is."""
        rows = []
        for deployment in await asyncio.to_thread(service.catalog.deployments):
            want = service.router.models().get(deployment.model)
            copies = [c for c in service.router.copies() if c.version.model == deployment.model]
            running = [
                {
                    "version": c.version.version,
                    "state": c.state,
                    "reason": _said(c.reason),
                    "replicas": len(c.replicas),
                    **(_found(c.facts.batching) if c.facts.batching else {}),
                }
                for c in copies
            ]
            rows.append(_plain(deployment) | {"serving": running, "reason": _said(want.reason) if want else None})
        return {"deployments": rows}

    @router.put("/deployments/{model:model}")
    async def deploy(model: str, body: DeploymentBody) -> dict[str, Any]:
        """Bring a model up, or change how it is served. Answers at once; GET /admin/deployments tells when it is up."""
        name = model if body.version is None else f"{model}:{body.version}"
        await asyncio.to_thread(service.catalog.resolve, name)  # NotFound is told before what is wrong with the shares
        deployment = await asyncio.to_thread(service.catalog.deploy, name, replicas=body.replicas, traffic=body.traffic)
        await service.router.follow()
        return _plain(deployment)

    @router.delete("/deployments/{model:model}", status_code=204)
    async def undeploy(model: str) -> Response:
        """Take a model out of the service; requests in flight finish."""
        await asyncio.to_thread(service.catalog.undeploy, model)
        await service.router.follow()
        return Response(status_code=204)


def _keys(router: APIRouter, service: Service) -> None:
    @router.get("/keys")
    async def keys() -> dict[str, Any]:
        """Every key; never a secret."""
        return {"keys": [_public(key) for key in await asyncio.to_thread(service.keys.list)]}

    @router.post("/keys", status_code=201)
    async def create(body: KeyBody) -> dict[str, Any]:
        """Make a key. The secret is in this answer and nowhere else."""
        record, secret = await asyncio.to_thread(service.keys.create, body.name, body.scopes)
        return _public(record) | {"secret": secret}

    @router.delete("/keys/{key}", status_code=204)
    async def revoke(key: str) -> Response:
        """Revoke a key; it is refused within a second."""
        await asyncio.to_thread(service.keys.revoke, key)
        return Response(status_code=204)


def _found(batching: Batching) -> dict[str, str]:
    facts = batching.facts()
    return facts | {"batching_how": without_places(facts["batching_how"])}


def _known(service: Service, digests: Iterable[str]) -> dict[str, Batching]:
    """What was found of artifacts, by digest."""
    found = {}
    for digest in set(digests):
        try:
            found[digest] = service.batching(digest)
        except (NotFound, KeyError):  # its files are gone
            found[digest] = UNTRIED
    return found


def _public(key: Any) -> dict[str, Any]:
    return {name: value for name, value in _plain(key).items() if name not in ("hash", "secret")}


def _said(reason: str | None) -> str | None:
    return None if reason is None else without_places(reason)


def _plain(value: Any) -> dict[str, Any]:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return dict(value)
