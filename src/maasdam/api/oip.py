"""The Open Inference Protocol v2 over REST: metadata, health and the model-repository extension.

Knows the protocol's JSON. Refuses to know engines. Inference itself is in `oip_infer`.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from maasdam.api import oip_models
from maasdam.api.entrance import JSON
from maasdam.api.fields import check_known
from maasdam.api.oip_call import name_of
from maasdam.api.paths import MODELS
from maasdam.api.routing import JsonRoute
from maasdam.errors import InvalidInput, Unsupported, WrongContentType
from maasdam.operations.deployments import deployed_names, served_version
from maasdam.operations.service import Service

SHARED_MEMORY = "shared memory is not read here; send tensors as JSON or binary data"
TRACES = "traces are not made here; send a traceparent, which the log has"
NOT_HERE = {
    "/systemsharedmemory{rest:path}": SHARED_MEMORY,
    "/cudasharedmemory{rest:path}": SHARED_MEMORY,
    "/trace/setting": TRACES,
    MODELS + "/trace/setting": TRACES,
}
"""What Triton's clients ask for that is not offered, and what to do instead."""
INFER_SCHEMA: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["inputs"],
                    "properties": {
                        "id": {"type": "string"},
                        "inputs": {
                            "type": "array",
                            "items": {
                                "type": "object",
                                "required": ["name", "shape", "datatype"],
                                "properties": {
                                    "name": {"type": "string"},
                                    "shape": {"type": "array", "items": {"type": "integer"}},
                                    "datatype": {"type": "string"},
                                    "data": {"type": "array", "items": {}},
                                    "parameters": {"type": "object"},
                                },
                            },
                        },
                        "outputs": {"type": "array", "items": {"type": "object"}},
                        "parameters": {"type": "object"},
                    },
                }
            },
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}

_LOGGED = {"log_info": "boolean", "log_warning": "boolean", "log_error": "boolean", "log_verbose_level": "integer"}
LOG_SCHEMA: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"type": "object", "properties": {name: {"type": kind} for name, kind in _LOGGED.items()}}
            }
        },
    }
}


def routes(service: Service) -> APIRouter:
    """The router for /v2, but for infer."""
    router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"], route_class=JsonRoute)

    @router.get("")
    async def server() -> dict[str, Any]:
        """The server's name, version and extensions."""
        return oip_models.server()

    @router.get("/health/live")
    async def live() -> dict[str, bool]:
        """The process answers."""
        return {"live": True}

    @router.get("/health/ready")
    async def ready() -> JSONResponse:
        """Whether everything deployed is up (200), or still loading, or nothing can be kept now (503, saying why)."""
        why = {} if service.trouble is None else {"reason": service.trouble}
        return JSONResponse({"ready": service.is_ready} | why, 200 if service.is_ready else 503)

    @router.get("/models/stats")
    @router.get(MODELS + "/stats")
    @router.get(MODELS + "/versions/{version}/stats")
    async def statistics(model: str = "", version: str | None = None) -> dict[str, Any]:
        """Requests, batches and seconds of a model's versions, or of every one."""
        return {"model_stats": await oip_models.statistics(service, name_of(model, version))}

    @router.get(MODELS)
    @router.get(MODELS + "/versions/{version}")
    async def metadata(model: str, version: str | None = None) -> dict[str, Any]:
        """A model's versions, inputs and outputs."""
        return oip_models.metadata(service, name_of(model, version))

    @router.get("/models")
    async def models() -> dict[str, Any]:
        """The names of every deployed model."""
        return {"models": deployed_names(service)}

    @router.get(MODELS + "/config")
    @router.get(MODELS + "/versions/{version}/config")
    async def config(model: str, version: str | None = None) -> dict[str, Any]:
        """A model's inputs and outputs as Triton's model configuration has them."""
        return oip_models.config(service, name_of(model, version))

    @router.get("/logging")
    async def log_settings() -> dict[str, Any]:
        """What is logged, as Triton's log settings have it."""
        return oip_models.log_settings()

    @router.post("/logging", openapi_extra=LOG_SCHEMA)
    async def set_log(http: Request) -> dict[str, Any]:
        """Log more or less from now on: `log_info`, `log_warning`, `log_error`, `log_verbose_level`."""
        return await oip_models.set_log(service, await _asked(http))

    @router.get(MODELS + "/ready")
    @router.get(MODELS + "/versions/{version}/ready")
    async def model_ready(model: str, version: str | None = None) -> JSONResponse:
        """Whether a model answers (200), one that is asleep too, or not yet (503)."""
        one = served_version(service, name_of(model, version))
        return JSONResponse({"name": one.version.model, "ready": one.is_answering}, 200 if one.is_answering else 503)

    @router.post(MODELS + "/infer", openapi_extra=INFER_SCHEMA)
    @router.post(MODELS + "/versions/{version}/infer", openapi_extra=INFER_SCHEMA)
    async def infer(model: str, version: str | None = None) -> None:
        """Run the model: raw tensors; BYTES `text_input` to `text_output`; BYTES `audio` to `transcript`."""
        raise AssertionError("answered below the framework")  # here for the documentation only

    _repository(router, service)
    for path, why in NOT_HERE.items():
        _refuse(router, path, why)
    return router


def _repository(router: APIRouter, service: Service) -> None:
    @router.post("/repository/index")
    async def index(http: Request) -> list[dict[str, str]]:
        """Every version in the catalog, with its state."""
        asked = await _asked(http, ("ready",))
        if not isinstance(asked.get("ready", False), bool):
            raise InvalidInput(f"'ready' is {asked['ready']!r:.40}; send true for those that are ready, or leave it out")
        return await oip_models.index(service, asked.get("ready") is True)

    @router.post("/repository" + MODELS + "/load")
    async def load(model: str, http: Request) -> dict[str, Any]:
        """Deploy NAME or NAME:VERSION and wait until it answers."""
        await oip_models.load(service, model, _parameters(await _asked(http, ("parameters",))))
        return {}

    @router.post("/repository" + MODELS + "/unload")
    async def unload(model: str, http: Request) -> dict[str, Any]:
        """Take a model out of the service; requests in flight finish."""
        await oip_models.unload(service, model, _parameters(await _asked(http, ("parameters",))))
        return {}


def _refuse(router: APIRouter, path: str, why: str) -> None:
    @router.api_route(path, methods=["GET", "POST"], include_in_schema=False)
    async def refused() -> None:
        raise Unsupported(why)


async def _asked(http: Request, known: tuple[str, ...] | None = None) -> dict[str, Any]:
    """The body's JSON, of these fields; clients of this protocol send it without a content type, or none at all."""
    if await http.body() and JSON not in http.scope:
        raise WrongContentType("this content type is not read here; send application/json, or no body")
    asked = http.scope.get(JSON, {})
    if not isinstance(asked, dict):
        raise InvalidInput("the body is not a JSON object; send {} or nothing")
    if known is not None:
        check_known(asked, known)
    return asked


def _parameters(asked: dict[str, Any]) -> dict[str, Any]:
    parameters = asked.get("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        raise InvalidInput("'parameters' is not a JSON object; send {} or leave it out")
    return parameters or {}
