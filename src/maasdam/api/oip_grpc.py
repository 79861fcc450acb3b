"""The gRPC service, beside the HTTP one in the same event loop: the Open Inference Protocol as Triton and KServe speak it.

Knows grpc.aio's server: its options, start and end, health and reflection. Refuses to know what a call means.

    connection -> GrpcDoor.service -> Rpc, StreamRpc (the protocol's calls)
                                   \\- Foreign (reflection), health's own
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import tempfile
import threading
from contextlib import suppress
from functools import partial
from typing import Any

import grpc
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from maasdam.api import oip_proto
from maasdam.api.access import Gate
from maasdam.api.body import IN_THE_LOOP, BodyLimits
from maasdam.api.grpc_health import NAME as HEALTH
from maasdam.api.grpc_health import Health
from maasdam.api.grpc_server import make_server
from maasdam.api.listening import accepting, address_of
from maasdam.api.oip_grpc_call import OPEN, OPEN_STREAM, Calls, Rpc
from maasdam.api.oip_grpc_methods import NOT_HERE, methods
from maasdam.api.oip_grpc_stream import StreamRpc
from maasdam.api.relay import Relay
from maasdam.api.tls import HANDSHAKE_SECONDS, TlsPair
from maasdam.errors import Unsupported
from maasdam.operations.service import Service

SERVICE = oip_proto.SERVICE
REFLECTION = reflection.SERVICE_NAME
STREAMS = 1024
"""Calls of one connection at once; a client waits with more."""
HEADER_BYTES = 16 * 1024
HEALTH_SECONDS = 0.25
_UNKNOWN = "this call is not offered here: reflection lists what is"
FLUSH_SECONDS = 0.25
"""What is answered has so long to leave once nothing is in flight any more."""


class GrpcDoor(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc ships no types
    """One gRPC server. Make it within the event loop it is to run in."""

    def __init__(
        self,
        service: Service,
        gate: Gate,
        limits: BodyLimits,
        listener: socket.socket,
        certificate: TlsPair | None = None,
        passes_on: bool = False,
    ) -> None:
        """gRPC takes no socket of somebody else's making: `listener` has the address, and keeps it until `start`; or what comes
        to it is passed on. Without a certificate there is no TLS, nor on a Unix socket.
        """
        self._passes_on = passes_on
        self._service = service
        self._certificate = None if listener.family == socket.AF_UNIX else certificate
        self._relay: asyncio.AbstractServer | None = None
        self._folder = contextlib.ExitStack()
        self.calls = Calls(service, gate, limits, asyncio.Event())
        self.calls.is_idle.set()
        self._listener = listener
        self._health = Health(("", SERVICE), lambda: service.is_ready and not self._is_stopping)
        self._is_stopping = False
        self._tasks: list[asyncio.Task[None]] = []
        options = [
            # so that a little too much is refused in our words; gRPC itself refuses more by its length, before it is here
            ("grpc.max_receive_message_length", limits.any.most + IN_THE_LOOP),
            ("grpc.max_send_message_length", -1),  # answers have a limit of their own
            ("grpc.max_concurrent_streams", STREAMS),
            ("grpc.server_handshake_timeout_ms", int(HANDSHAKE_SECONDS * 1000)),
            ("grpc.max_metadata_size", HEADER_BYTES),
            ("grpc.absolute_max_metadata_size", HEADER_BYTES),
            # two services on one port would share its callers; workers of one do, whose supervisor keeps the port for them
            ("grpc.so_reuseport", listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)),
        ]
        told = _Handlers()
        for file in (health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR):
            oip_proto.POOL.AddSerializedFile(file.serialized_pb)
        about = reflection.aio.ReflectionServicer((SERVICE, HEALTH, REFLECTION), oip_proto.POOL)
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(about, told)
        self._foreign: dict[str, Any] = told.found | self._health.handlers()
        self._methods = methods(service)
        self._server = make_server(self, (*self._methods, *self._foreign, *NOT_HERE), options)

    async def start(self) -> None:
        """Listen. Raises RuntimeError where another program took the port in that moment."""
        before = set(threading.enumerate())
        if self._passes_on:
            path = f"{self._folder.enter_context(tempfile.TemporaryDirectory(prefix='maasdam-'))}/grpc"
            address = f"unix:{path}"
        else:
            address = address_of(self._listener).removeprefix("http://")
            self._listener.close()
        if self._certificate is None:
            self._server.add_insecure_port(address)
        else:
            self._server.add_secure_port(address, self._certificate.credentials())
        await self._server.start()
        if address.startswith("unix:"):
            self._relay = await accepting(partial(Relay, path), self._listener)
        for thread in set(threading.enumerate()) - before:  # gRPC's own, which no engine computes on
            self._service.exclude_thread(thread.ident or 0)
        self._tasks.append(asyncio.create_task(self._tell_health()))

    def begin_stop(self, seconds: float) -> None:
        """Take no more calls; those in flight have so long to finish."""
        if self._relay is not None:
            self._relay.close()
        self._tasks.append(asyncio.create_task(self._stop(seconds)))

    async def stopped(self) -> None:
        """Wait until the last call is over."""
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.stop(None)
        self._folder.close()

    async def _stop(self, seconds: float) -> None:
        self._tasks[0].cancel()
        self._is_stopping = True
        self._health.look()
        stopping = asyncio.ensure_future(self._server.stop(seconds))
        with suppress(TimeoutError):
            await asyncio.wait_for(self.calls.is_idle.wait(), seconds)
        await self._server.stop(FLUSH_SECONDS)  # what is left asks for nothing: streams that wait, watchers of our health
        await stopping

    async def _tell_health(self) -> None:
        while True:
            self._health.look()
            await asyncio.sleep(HEALTH_SECONDS)

    def service(self, details: Any) -> Any:
        """gRPC's handler of one call, from its headers: its message is not here yet."""
        path, metadata = details.method, dict(reversed(details.invocation_metadata))  # of two the first, as over HTTP
        method = self._methods.get(path)
        if method is not None:
            kind = StreamRpc if method.name == "ModelStreamInfer" else Rpc
            return kind(self.calls, method.name, method, metadata)
        foreign, name = self._foreign.get(path), path.rpartition("/")[2]
        if foreign is None:
            rpc = Rpc(self.calls, name, None, metadata)
            why = f"{path} is not offered here: {NOT_HERE[path]}" if path in NOT_HERE else _UNKNOWN
            rpc.refused = Unsupported(why)
            return rpc
        is_open = path.startswith(f"/{HEALTH}/") or self._service.settings.public_docs
        open_to_all = OPEN_STREAM if foreign.response_streaming else OPEN
        return Foreign(self.calls, name, open_to_all if is_open else None, metadata, foreign)


class Foreign(Rpc):
    """A call that a library answers, or health, once its key is known to be good if it needs one."""

    __slots__ = ("_library", "request_deserializer", "response_serializer")

    response_streaming = True

    def __init__(self, *given: Any) -> None:
        *own, self._library = given
        super().__init__(*own)
        self.request_deserializer = self._library.request_deserializer
        self.response_serializer = self._library.response_serializer

    async def stream_stream(self, messages: Any, context: Any) -> None:
        """gRPC asks for the answers."""
        library, asked, is_here = self._library, None, False
        self.enter()
        try:
            try:
                await self.admit()
                if not library.request_streaming:
                    asked = await self.message(context)
                is_here = True
                if not library.response_streaming:
                    await context.write(await library.unary_unary(asked, context))
            except asyncio.CancelledError:
                await self.cancelled(context, is_here)
                raise
            except Exception as error:
                await self.refuse(error, context)
            finally:
                self.end()
            if library.request_streaming:
                async for reply in library.stream_stream(messages, context):
                    await context.write(reply)
            elif library.response_streaming:
                await library.unary_stream(asked, context)
        finally:
            self.leave()


class _Handlers:
    """Takes handlers as a server does, so that keys can be asked for before them."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """The same ones come by their names."""

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        """Of one service, by its calls' names."""
        self.found |= {f"/{service}/{name}": handler for name, handler in handlers.items()}
