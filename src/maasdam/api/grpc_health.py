"""grpc.health.v1 over gRPC. Knows its two calls; never what health is.

The library's own waits for each watcher while it tells them: one that reads nothing kept the others, and the drain, waiting.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

from maasdam.errors import NotFound

NAME = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
_Asked, _Told = health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse


class Health:
    """Of one server, all of whose services are alike."""

    def __init__(self, services: tuple[str, ...], is_serving: Callable[[], bool]) -> None:
        self._services = services
        self._is_serving = is_serving
        self._told = False
        self._changed = asyncio.Event()

    def look(self) -> None:
        """Let those hear of it who watch, where it is otherwise now."""
        now = self._is_serving()
        if now != self._told:
            self._told = now
            self._changed.set()
            self._changed = asyncio.Event()

    def handlers(self) -> dict[str, Any]:
        """By their paths, as gRPC takes them."""
        how = {"request_deserializer": _Asked.FromString, "response_serializer": _Told.SerializeToString}
        return {
            f"/{NAME}/Check": grpc.unary_unary_rpc_method_handler(self._check, **how),
            f"/{NAME}/Watch": grpc.unary_stream_rpc_method_handler(self._watch, **how),
        }

    async def _check(self, asked: Any, context: Any) -> Any:
        if asked.service not in self._services:
            raise NotFound("no such service; reflection lists what is")
        return self._now(asked.service)

    async def _watch(self, asked: Any, context: Any) -> None:
        told = None
        while True:
            changed, now = self._changed, self._now(asked.service)
            if now != told:
                await context.write(now)
                told = now
            else:
                await changed.wait()

    def _now(self, service: str) -> Any:
        if service not in self._services:
            return _Told(status=_Told.SERVICE_UNKNOWN)
        return _Told(status=_Told.SERVING if self._is_serving() else _Told.NOT_SERVING)
