"""grpc.aio's server, which can't be ended from outside. Knows grpcio's inner workings (of the pinned version); never a call.

As it comes it decodes the path of every call that is not registered in its own loop: one byte that is no UTF-8, from anybody
who reaches the port, ended the whole server. Here all calls that are offered are registered, and others come under one name.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

import grpc
from grpc._cython import cygrpc

UNKNOWN = "/unknown"
"""The path of every call that nobody registered."""


class _Core(cygrpc.AioServer):  # type: ignore[misc]  # grpc ships no types
    def _make_request_call_future(self, method: bytes | None) -> Any:
        """The next call of a method. None, which grpc.aio asks for too, is the next of any other, which it would decode."""
        loop = asyncio.get_running_loop()
        if method is None:
            return loop.create_future()
        if method == UNKNOWN.encode():
            return loop.create_task(self._request_call())
        return super()._make_request_call_future(method)


def make_server(handler: grpc.GenericRpcHandler, paths: Iterable[str], options: Sequence[tuple[str, Any]]) -> Any:
    """A server whose calls go to `handler`: those of `paths` by their names, others as UNKNOWN. Make it in its event loop."""
    made = grpc.aio.server()
    made._server = _Core(asyncio.get_running_loop(), None, (handler,), None, tuple(options), None)
    made._server.add_registered_method_handlers(dict.fromkeys((*paths, UNKNOWN)))
    return made
