"""FastAPI's route given what the door has read, and which methods a path has. Knows the framework, no route's meaning."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from fastapi import Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute, Route

from maasdam.api.entrance import JSON


class _Read(Request):
    """A request whose JSON the entrance has parsed, within its limits: it is parsed once."""

    async def json(self) -> Any:
        """What the body says."""
        return self.scope[JSON]


class JsonRoute(APIRoute):
    """Give this to a router as `route_class` where its routes declare JSON bodies."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The framework's own, given the request as it was read."""
        answer = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await answer(_Read(request.scope, request.receive))

        return handle


def methods_of(routes: Iterable[BaseRoute]) -> dict[str, list[str]]:
    """Every path's methods; HEAD where there is GET, and OPTIONS."""
    by_path: dict[str, set[str]] = {}
    for route in routes:
        if isinstance(route, Route | APIRoute):
            by_path.setdefault(route.path, {"OPTIONS"}).update(route.methods or ())
    return {path: sorted(methods | ({"HEAD"} if "GET" in methods else set())) for path, methods in by_path.items()}
