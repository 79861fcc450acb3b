"""The Open Inference Protocol v2 over REST: metadata, health and the model-repository extension.

Knows the protocol's JSON. Refuses to know engines. Inference itself is in `oip_infer`.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from maasdam import __version__
from maasdam.api.entrance import JSON
from maasdam.api.errors import without_places
from maasdam.api.fields import check_known
from maasdam.api.oip_call import name_of
from maasdam.api.oip_tensors import FROM_NUMPY
from maasdam.api.paths import MODELS
from maasdam.api.routing import JsonRoute
from maasdam.core import TensorSpec, split_name
from maasdam.errors import InvalidInput, Unsupported, WrongContentType
from maasdam.operations import deployments
from maasdam.operations.deployments import ServedVersion, served_version, served_versions, unserved_names
from maasdam.operations.service import Service
from maasdam.tasks import carried_by

STATES = {"ready": "READY", "loading": "LOADING", "failed": "UNAVAILABLE", "stopping": "UNLOADING"}
"""Our states in the model-repository extension's words."""
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


def routes(service: Service) -> APIRouter:
    """The router for /v2, but for infer."""
    router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"], route_class=JsonRoute)

    @router.get("")
    async def server() -> dict[str, Any]:
        """The server's name, version and extensions."""
        return {"name": "maasdam", "version": __version__, "extensions": ["binary_tensor_data", "model_repository"]}

    @router.get("/health/live")
    async def live() -> dict[str, bool]:
        """The process answers."""
        return {"live": True}

    @router.get("/health/ready")
    async def ready() -> JSONResponse:
        """Whether everything deployed is up (200), or still loading, or nothing can be kept now (503, saying why)."""
        why = {} if service.trouble is None else {"reason": service.trouble}
        return JSONResponse({"ready": service.is_ready} | why, 200 if service.is_ready else 503)

    @router.get(MODELS)
    @router.get(MODELS + "/versions/{version}")
    async def metadata(model: str, version: str | None = None) -> dict[str, Any]:
        """A model's versions, inputs and outputs."""
        one = served_version(service, name_of(model, version))
        return _metadata(one, [other.version.version for other in served_versions(service, one.version.model)])

    @router.get(MODELS + "/ready")
    @router.get(MODELS + "/versions/{version}/ready")
    async def model_ready(model: str, version: str | None = None) -> JSONResponse:
        """Whether a model answers (200) or not yet (503)."""
        one = served_version(service, name_of(model, version))
        is_ready = one.state == "ready"
        return JSONResponse({"name": one.version.model, "ready": is_ready}, 200 if is_ready else 503)

    @router.post(MODELS + "/infer", openapi_extra=INFER_SCHEMA)
    @router.post(MODELS + "/versions/{version}/infer", openapi_extra=INFER_SCHEMA)
    async def infer(model: str, version: str | None = None) -> None:
        """Run the model: raw tensors; BYTES `text_input` to `text_output`; BYTES `audio` to `transcript`."""
        raise AssertionError("answered below the framework")  # here for the documentation only

    _repository(router, service)
    return router


def _repository(router: APIRouter, service: Service) -> None:
    @router.post("/repository/index")
    async def index(http: Request) -> list[dict[str, str]]:
        """Every model that is deployed, with its state."""
        asked = await _asked(http, ("ready",))
        if not isinstance(asked.get("ready", False), bool):
            raise InvalidInput(f"'ready' is {asked['ready']!r:.40}; send true for those that are ready, or leave it out")
        only_ready = asked.get("ready") is True
        rows = [
            (one.version.model, str(one.version.version), STATES[one.state], one.reason or "")
            for one in served_versions(service)
        ]
        rows += [(model, "", "UNAVAILABLE", why) for model, why in unserved_names(service).items()]
        return [
            {"name": name, "version": version, "state": state, "reason": without_places(why)}
            for name, version, state, why in rows
            if state == "READY" or not only_ready
        ]

    @router.post("/repository" + MODELS + "/load")
    async def load(model: str, http: Request) -> dict[str, Any]:
        """Deploy NAME or NAME:VERSION and wait until it answers."""
        await _refuse_overrides(http)
        await deployments.load(service, model)
        return {}

    @router.post("/repository" + MODELS + "/unload")
    async def unload(model: str, http: Request) -> dict[str, Any]:
        """Take a model out of the service; requests in flight finish. No model depends on another here."""
        check_known(_parameters(await _asked(http, ("parameters",))), ("unload_dependents",), "parameter")
        await deployments.undeploy(service, split_name(model)[0])
        return {}


async def _asked(http: Request, known: tuple[str, ...]) -> dict[str, Any]:
    """The body's JSON, of these fields; clients of this protocol send it without a content type, or none at all."""
    if await http.body() and JSON not in http.scope:
        raise WrongContentType("this content type is not read here; send application/json, or no body")
    asked = http.scope.get(JSON, {})
    if not isinstance(asked, dict):
        raise InvalidInput("the body is not a JSON object; send {} or nothing")
    check_known(asked, known)
    return asked


def _parameters(asked: dict[str, Any]) -> dict[str, Any]:
    parameters = asked.get("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        raise InvalidInput("'parameters' is not a JSON object; send {} or leave it out")
    return parameters or {}


async def _refuse_overrides(http: Request) -> None:
    """Refuse a load that brings its own files or configuration: models come from the catalog."""
    if _parameters(await _asked(http, ("parameters",))):
        raise Unsupported("load takes no parameters here; register a version with maasdam build, then load it")


def _metadata(one: ServedVersion, numbers: list[int]) -> dict[str, Any]:
    version = one.version
    out: dict[str, Any] = {
        "name": version.model,
        "versions": [str(number) for number in sorted(numbers)],
        "platform": f"{version.format}_{version.engine}",
    }
    carried = carried_by(version.task)
    if one.signature is not None:
        out["inputs"] = [_tensor(spec) for spec in one.signature.inputs]
        out["outputs"] = [_tensor(spec) for spec in one.signature.outputs]
    elif carried is not None:
        out["inputs"] = [{"name": carried.input, "datatype": "BYTES", "shape": [-1]}]
        out["outputs"] = [{"name": name, "datatype": datatype, "shape": [-1]} for name, datatype in carried.outputs]
    else:  # still loading
        out["inputs"], out["outputs"] = [], []
    parameters = {"task": version.task or "", "engine": version.engine, "digest": version.digest, "state": one.state}
    if one.signature is not None and carried is not None:
        parameters["also_takes"] = f"BYTES {carried.input} -> {', '.join(name for name, _ in carried.outputs)}"
    return out | {"parameters": parameters}


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    shape = [-1 if size is None else size for size in spec.shape]
    return {"name": spec.name, "datatype": FROM_NUMPY.get(spec.dtype, spec.dtype.upper()), "shape": shape}
