"""What each gRPC call of the Open Inference Protocol answers, inference apart. Knows messages; never the server or keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from maasdam.api import oip_models, oip_proto
from maasdam.api.oip_call import name_of
from maasdam.api.oip_grpc_call import Method, Rpc
from maasdam.operations.deployments import served_version
from maasdam.operations.service import Service

_message = oip_proto.message
SHARED = "shared memory is not read here; send tensors in the message"
NOT_HERE = {
    f"/{oip_proto.SERVICE}/{name}": why
    for name, why in (
        *(
            (f"{kind}SharedMemory{what}", SHARED)
            for kind in ("System", "Cuda")
            for what in ("Status", "Register", "Unregister")
        ),
        ("TraceSetting", "traces are not made here; send a traceparent, which the log has"),
    )
}
"""Paths of Triton's calls that are not offered, and what to do instead."""


def methods(service: Service) -> dict[str, Method]:
    """All that are offered, by their path."""

    def told(kind: str, of: Callable[[Service, str], dict[str, Any]]) -> Any:
        async def answer(rpc: Rpc, asked: Any, context: Any) -> Any:
            rpc.model = asked.name
            return oip_proto.made(_message(kind), of(service, name_of(asked.name, asked.version)))

        return answer

    async def live(rpc: Rpc, asked: Any, context: Any) -> Any:
        return _message("ServerLiveResponse")(live=True)

    async def ready(rpc: Rpc, asked: Any, context: Any) -> Any:
        return _message("ServerReadyResponse")(ready=service.is_ready)

    async def server(rpc: Rpc, asked: Any, context: Any) -> Any:
        return oip_proto.made(_message("ServerMetadataResponse"), oip_models.server())

    async def index(rpc: Rpc, asked: Any, context: Any) -> Any:
        rows = await oip_models.index(service, asked.ready)
        return oip_proto.made(_message("RepositoryIndexResponse"), {"models": rows})

    async def load(rpc: Rpc, asked: Any, context: Any) -> Any:
        rpc.model = asked.model_name
        await oip_models.load(service, asked.model_name, oip_proto.values_of(asked.parameters))
        return _message("RepositoryModelLoadResponse")()

    async def unload(rpc: Rpc, asked: Any, context: Any) -> Any:
        rpc.model = asked.model_name
        await oip_models.unload(service, asked.model_name, oip_proto.values_of(asked.parameters))
        return _message("RepositoryModelUnloadResponse")()

    async def statistics(rpc: Rpc, asked: Any, context: Any) -> Any:
        rpc.model = asked.name
        told = await oip_models.statistics(service, name_of(asked.name, asked.version))
        return oip_proto.made(_message("ModelStatisticsResponse"), {"model_stats": told})

    async def logs(rpc: Rpc, asked: Any, context: Any) -> Any:
        told = await oip_models.set_log(service, oip_proto.values_of(asked.settings))
        fields = {bool: "bool_param", int: "uint32_param", str: "string_param"}
        settings = {name: {fields[type(value)]: value} for name, value in told.items()}
        return oip_proto.made(_message("LogSettingsResponse"), {"settings": settings})

    def model_ready(service: Service, name: str) -> dict[str, Any]:
        return {"ready": served_version(service, name).is_answering}

    def config(service: Service, name: str) -> dict[str, Any]:
        return {"config": oip_models.config(service, name)}

    def one(name: str, scope: str | None, answer: Any, takes: str = "", needs_key: bool = True) -> Method:
        return Method(name, scope, _message(takes or f"{name}Request"), answer, needs_key)

    offered = (
        one("ServerLive", None, live, needs_key=False),
        one("ServerReady", None, ready, needs_key=False),
        one("ServerMetadata", "infer", server),
        one("ModelReady", "infer", told("ModelReadyResponse", model_ready)),
        one("ModelMetadata", "infer", told("ModelMetadataResponse", oip_models.metadata)),
        one("ModelConfig", "infer", told("ModelConfigResponse", config)),
        one("ModelStatistics", "infer", statistics),
        one("LogSettings", "admin", logs),
        one("ModelInfer", "infer", None),
        one("ModelStreamInfer", "infer", None, "ModelInferRequest"),
        one("RepositoryIndex", "infer", index),
        one("RepositoryModelLoad", "deploy", load),
        one("RepositoryModelUnload", "deploy", unload),
    )
    return {f"/{oip_proto.SERVICE}/{method.name}": method for method in offered}
