"""The gRPC service, beside the HTTP one in the same event loop: the Open Inference Protocol as Triton and KServe speak it.

Knows grpc.aio, keys, ids and deadlines. Refuses to know the protocol's meaning (`oip_call`, `oip_models`), its messages'
fields (`oip_proto`) and engines.

    connection -> who calls? -> message -> oip_proto -> OipCall -> operations.infer -> OipReply -> oip_proto -> message
                       \\- refused before the message is read
    whatever happened -> one line in the log, one count, and a row in the ledger, as for HTTP
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2
from structlog.contextvars import bind_contextvars

from maasdam.api import errors, oip_models, oip_proto
from maasdam.api.access import Gate, secret_of
from maasdam.api.body import BodyLimits
from maasdam.api.correlation import id_headers, trace_of, well_formed
from maasdam.api.entrance import CLIENT_CLOSED, LONGEST_NAME, new_request_id
from maasdam.api.measured import measured_headers
from maasdam.api.oip_call import OipCall, name_of
from maasdam.core import ANONYMOUS, Caller, Chunk, Entry, Facts
from maasdam.errors import InvalidInput, MaasdamError, NotReady, Overloaded, TooLarge, Unsupported
from maasdam.operations.deployments import served_version
from maasdam.operations.requests import note_refusal
from maasdam.operations.service import Service
from maasdam.telemetry.requests import Ended

T = TypeVar("T")

SERVICE = f"{oip_proto.PACKAGE}.GRPCInferenceService"
HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
REFLECTION = reflection.SERVICE_NAME
SMALL_BYTES = 128 * 1024
"""What is up to this size is read and written in the event loop: a hop to a thread would cost more."""
LARGE = SMALL_BYTES + 1
"""What belongs in a thread whatever its size."""
MOST_AT_ONCE = 256
"""Requests of one stream that are answered side by side; the next is read when one is done."""
HELD = 8
"""As many messages of the largest size may be in memory at once."""
HEALTH_SECONDS = 0.25
FLUSH_SECONDS = 0.25
"""What is answered has so long to leave once nothing is in flight any more."""
LONGEST_MESSAGE = 600
"""Of a status, characters: it travels in a header, where a character may take twelve bytes."""
NOT_HERE = {
    "SystemSharedMemory": "shared memory is not read here; send tensors in the message",
    "CudaSharedMemory": "shared memory is not read here; send tensors in the message",
    "TraceSetting": "traces are not made here; send a traceparent, which the log has",
}
"""How calls of the protocol begin that are not offered, and what to do instead."""


@dataclass(slots=True)
class _Rpc:
    """One request on its way."""

    id: str
    name: str
    metadata: dict[str, bytes]
    began: float
    caller: Caller = ANONYMOUS
    model: str | None = None
    status: int = 200
    reason: str | None = None
    cost: tuple[tuple[str, str], ...] = ()
    """What it took, as trailing metadata."""

    @property
    def endpoint(self) -> str:
        """As log and ledger have it."""
        return f"grpc:{self.name}"

    def trailers(self, *more: tuple[str, str]) -> tuple[tuple[str, str], ...]:
        """Its ids, and more, as trailing metadata."""
        ids = id_headers(self.id, self.metadata.get("x-request-id"))
        return (*((name.decode(), value.decode()) for name, value in ids), *self.cost, *more)


@dataclass(frozen=True, slots=True)
class _Method:
    """One call: the scope of its key, the class of its request, and what answers it."""

    scope: str | None
    takes: Any
    answer: Callable[[_Rpc, Any, Any], Awaitable[Any]]
    needs_key: bool = True


class GrpcDoor(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc ships no types
    """One gRPC server. Make it within the event loop it is to run in."""

    def __init__(self, service: Service, gate: Gate, limits: BodyLimits, listener: socket.socket) -> None:
        """`listener` has the address, and keeps it until `start`: gRPC takes no socket of somebody else's making."""
        self._service = service
        self._gate = gate
        self._limits = limits
        self._held = 0
        self._listener = listener
        self._in_flight = 0
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self._health = health.aio.HealthServicer()
        self._tasks: list[asyncio.Task[None]] = []
        options = [
            (
                "grpc.max_receive_message_length",
                limits.any.most + SMALL_BYTES,
            ),  # so that a little too much is refused in our words
            ("grpc.max_send_message_length", -1),  # answers have a limit of their own
            ("grpc.so_reuseport", 0),  # two services on one port would share its callers
        ]
        self._server = grpc.aio.server(interceptors=[self], options=options)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        for file in (health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR):
            oip_proto.POOL.AddSerializedFile(file.serialized_pb)
        reflection.enable_server_reflection((SERVICE, HEALTH, REFLECTION), self._server, oip_proto.POOL)
        self._methods = self._table()

    def _table(self) -> dict[str, _Method]:
        service, message = self._service, oip_proto.message

        def told(kind: str, of: Callable[[Service, str], dict[str, Any]]) -> Any:
            async def answer(rpc: _Rpc, asked: Any, context: Any) -> Any:
                rpc.model = asked.name
                return oip_proto.made(message(kind), of(service, name_of(asked.name, asked.version)))

            return answer

        async def live(rpc: _Rpc, asked: Any, context: Any) -> Any:
            return message("ServerLiveResponse")(live=True)

        async def ready(rpc: _Rpc, asked: Any, context: Any) -> Any:
            return message("ServerReadyResponse")(ready=service.is_ready)

        async def server(rpc: _Rpc, asked: Any, context: Any) -> Any:
            return oip_proto.made(message("ServerMetadataResponse"), oip_models.server())

        async def index(rpc: _Rpc, asked: Any, context: Any) -> Any:
            rows = await oip_models.index(service, asked.ready)
            return oip_proto.made(message("RepositoryIndexResponse"), {"models": rows})

        async def load(rpc: _Rpc, asked: Any, context: Any) -> Any:
            rpc.model = asked.model_name
            await oip_models.load(service, asked.model_name, oip_proto.values_of(asked.parameters))
            return message("RepositoryModelLoadResponse")()

        async def unload(rpc: _Rpc, asked: Any, context: Any) -> Any:
            rpc.model = asked.model_name
            await oip_models.unload(service, asked.model_name, oip_proto.values_of(asked.parameters))
            return message("RepositoryModelUnloadResponse")()

        async def statistics(rpc: _Rpc, asked: Any, context: Any) -> Any:
            rpc.model = asked.name
            told = await oip_models.statistics(service, name_of(asked.name, asked.version))
            return oip_proto.made(message("ModelStatisticsResponse"), {"model_stats": told})

        async def logs(rpc: _Rpc, asked: Any, context: Any) -> Any:
            told = await oip_models.set_log(service, oip_proto.values_of(asked.settings))
            fields = {bool: "bool_param", int: "uint32_param", str: "string_param"}
            settings = {name: {fields[type(value)]: value} for name, value in told.items()}
            return oip_proto.made(message("LogSettingsResponse"), {"settings": settings})

        def model_ready(service: Service, name: str) -> dict[str, Any]:
            return {"ready": served_version(service, name).is_answering}

        def config(service: Service, name: str) -> dict[str, Any]:
            return {"config": oip_models.config(service, name)}

        return {
            "ServerLive": _Method(None, message("ServerLiveRequest"), live, needs_key=False),
            "ServerReady": _Method(None, message("ServerReadyRequest"), ready, needs_key=False),
            "ServerMetadata": _Method("infer", message("ServerMetadataRequest"), server),
            "ModelReady": _Method("infer", message("ModelReadyRequest"), told("ModelReadyResponse", model_ready)),
            "ModelMetadata": _Method(
                "infer", message("ModelMetadataRequest"), told("ModelMetadataResponse", oip_models.metadata)
            ),
            "ModelConfig": _Method("infer", message("ModelConfigRequest"), told("ModelConfigResponse", config)),
            "ModelStatistics": _Method("infer", message("ModelStatisticsRequest"), statistics),
            "LogSettings": _Method("admin", message("LogSettingsRequest"), logs),
            "ModelInfer": _Method("infer", message("ModelInferRequest"), self._infer),
            "ModelStreamInfer": _Method("infer", message("ModelInferRequest"), self._infer),
            "RepositoryIndex": _Method("infer", message("RepositoryIndexRequest"), index),
            "RepositoryModelLoad": _Method("deploy", message("RepositoryModelLoadRequest"), load),
            "RepositoryModelUnload": _Method("deploy", message("RepositoryModelUnloadRequest"), unload),
        }

    async def start(self) -> None:
        """Listen. Raises RuntimeError where another program took the port in that moment."""
        before = set(threading.enumerate())
        host, port = self._listener.getsockname()[:2]
        self._listener.close()
        self._server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        await self._server.start()
        for thread in set(threading.enumerate()) - before:  # gRPC's own, which no engine computes on
            self._service.exclude_thread(thread.ident or 0)
        self._tasks.append(asyncio.create_task(self._tell_health()))

    def begin_stop(self, seconds: float) -> None:
        """Take no more calls; those in flight have so long to finish."""
        self._tasks.append(asyncio.create_task(self._stop(seconds)))

    async def stopped(self) -> None:
        """Wait until the last call is over."""
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.stop(None)

    async def _stop(self, seconds: float) -> None:
        self._tasks[0].cancel()
        await self._health.enter_graceful_shutdown()
        stopping = asyncio.ensure_future(self._server.stop(seconds))
        with suppress(TimeoutError):
            await asyncio.wait_for(self._is_idle.wait(), seconds)
        await self._server.stop(FLUSH_SECONDS)  # what is left asks for nothing: streams that wait, watchers of our health
        await stopping

    async def _tell_health(self) -> None:
        before = None
        while True:
            states = health_pb2.HealthCheckResponse
            now = states.SERVING if self._service.is_ready else states.NOT_SERVING
            if now != before:
                for name in ("", SERVICE):
                    await self._health.set(name, now)
            before = now
            await asyncio.sleep(HEALTH_SECONDS)

    # ---- every call passes here -----------------------------------------------------------------------------------------

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], details: Any) -> Any:
        """gRPC's handler of one call, from its headers: its message is not here yet."""
        _, path, name = details.method.split("/", 2) if details.method.count("/") == 2 else ("", "", details.method)
        metadata = {key: value if isinstance(value, bytes) else value.encode() for key, value in details.invocation_metadata}
        rpc = _Rpc(new_request_id(), name[:LONGEST_NAME], metadata, time.perf_counter())
        bind_contextvars(request_id=rpc.id)  # the context is this call's own: grpc.aio starts a task for each
        method = self._methods.get(name) if path == SERVICE else None
        is_open = path == HEALTH or (path == REFLECTION and self._service.settings.public_docs)
        try:
            if not (is_open or (method is not None and not method.needs_key)):
                rpc.caller = await self._gate.admit(_secret(metadata))
                self._gate.permit(rpc.caller, method.scope if method is not None else None)
            if method is not None:
                return self._handler(rpc, method)
            foreign = await continuation(details)
            if foreign is None:
                raise _not_here(details.method, name if path == SERVICE else "")
        except Exception as error:
            refused = error
        else:
            self._ended(rpc)
            return foreign

        async def refuse(requests: Any, context: Any) -> None:
            await self._refuse(rpc, refused, context)

        return grpc.stream_stream_rpc_method_handler(refuse)  # whatever it was to be: nothing is read

    def _handler(self, rpc: _Rpc, method: _Method) -> Any:
        if rpc.name == "ModelStreamInfer":

            async def stream(requests: AsyncIterator[bytes], context: Any) -> None:
                await self._stream(rpc, requests, context)

            return grpc.stream_stream_rpc_method_handler(stream)

        async def answer(data: bytes, context: Any) -> bytes:
            self._begin(len(data))
            try:
                self._check_size(rpc, data)
                reply = await method.answer(rpc, await self._off_loop(oip_proto.parsed, len(data), method.takes, data), context)
                context.set_trailing_metadata(rpc.trailers())
                return bytes(reply.SerializeToString())
            except asyncio.CancelledError:
                rpc.status = CLIENT_CLOSED
                raise
            except Exception as error:
                await self._refuse(rpc, error, context)
                raise AssertionError("refused") from error
            finally:
                self._end(rpc, len(data))

        return grpc.unary_unary_rpc_method_handler(answer)

    # ---- inference ------------------------------------------------------------------------------------------------------

    async def _infer(self, rpc: _Rpc, asked: Any, context: Any) -> Any:
        call = await self._call(rpc, asked)
        response, entry = await self._whole(rpc, call, context.time_remaining())
        rpc.cost = tuple((name.decode(), value.decode()) for name, value in measured_headers(entry))
        return response

    async def _whole(self, rpc: _Rpc, call: OipCall, seconds: float | None) -> tuple[Any, Entry]:
        async def write(chunks: list[Chunk], entry: Entry) -> tuple[Any, Entry]:
            reply = await self._off_loop(call.reply, LARGE if call.wants_classes else 0, chunks, entry)
            return await self._off_loop(oip_proto.encode, reply.nbytes, reply), entry

        request = call.request(rpc.id, rpc.caller, rpc.endpoint, self._seconds(seconds))
        return await self._service.inference.whole(request, write, call.check)

    async def _call(self, rpc: _Rpc, asked: Any, of_wire: tuple[str, ...] = (), may_stream: bool = False) -> OipCall:
        rpc.model = asked.model_name[:LONGEST_NAME]
        try:
            return await self._off_loop(oip_proto.decode, asked.ByteSize(), asked, of_wire, may_stream)
        except InvalidInput:
            self._service.check_model(name_of(asked.model_name, asked.model_version))
            raise

    def _seconds(self, left: float | None) -> float:
        """A request's time: ours, or what the caller's deadline leaves of it."""
        most = self._service.settings.request_timeout_seconds
        return most if left is None else min(most, left)

    async def _stream(self, rpc: _Rpc, requests: AsyncIterator[bytes], context: Any) -> None:
        """Answer the requests of one stream side by side: in the order of the requests, but pieces of texts as they come."""
        context.set_trailing_metadata(rpc.trailers())
        tasks: set[asyncio.Task[None]] = set()
        sending = asyncio.Lock()

        async def send(data: bytes) -> None:
            async with sending:
                await context.write(data)

        before: asyncio.Task[None] | None = None
        try:
            async for data in requests:
                one = replace(rpc, id=new_request_id(), began=time.perf_counter())
                before = asyncio.create_task(self._streamed(one, data, send, before, context.time_remaining()))
                tasks.add(before)
                before.add_done_callback(tasks.discard)
                if len(tasks) >= MOST_AT_ONCE:
                    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if tasks:
                await asyncio.wait(tasks)
        finally:
            left = list(tasks)
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    async def _streamed(
        self,
        rpc: _Rpc,
        data: bytes,
        send: Callable[[bytes], Awaitable[None]],
        before: asyncio.Task[None] | None,
        seconds: float | None,
    ) -> None:
        """One request of a stream. A failure is told in the stream, which goes on."""
        bind_contextvars(request_id=rpc.id)
        self._begin(len(data))
        call_id = ""
        try:
            self._check_size(rpc, data)
            if self._service.is_draining:
                raise NotReady("the service is stopping; send it to another, or again later")
            asked = oip_proto.parsed(self._methods["ModelStreamInfer"].takes, data)
            call_id = asked.id
            call = await self._call(rpc, asked, (oip_proto.EMPTY_FINAL,), may_stream=True)
            if call.is_text:
                await self._pieces(rpc, call, send, seconds)
            else:
                response, _ = await self._whole(rpc, call, seconds)
                await _over(before)
                await send(oip_proto.streamed(response, is_last=True))
        except asyncio.CancelledError:
            rpc.status = CLIENT_CLOSED
            raise
        except Exception as error:
            refused = await self._noted(rpc, error)
            await _over(before)
            await send(oip_proto.failed(refused.message, call_id))
        finally:
            self._end(rpc, len(data))

    async def _pieces(self, rpc: _Rpc, call: OipCall, send: Callable[[bytes], Awaitable[None]], seconds: float | None) -> None:
        """A text, each piece as it is written."""

        def write(chunk: Chunk, entry: Entry) -> bytes:
            return oip_proto.streamed(oip_proto.encode(call.reply([chunk], entry)), chunk.is_last)

        if call.outputs:
            one = served_version(self._service, call.model)
            call.check(Facts(one.signature, task=one.version.task))
        request = call.request(rpc.id, rpc.caller, rpc.endpoint, self._seconds(seconds))
        async with aclosing(self._service.inference.stream(request, write)) as pieces:
            async for piece in pieces:
                await send(piece)

    async def _off_loop(self, work: Callable[..., T], size: int, *given: Any) -> T:
        """The result of `work`, which is done in a thread where there is much of it."""
        if size <= SMALL_BYTES:
            return work(*given)
        return await asyncio.get_running_loop().run_in_executor(self._service.pool, work, *given)

    # ---- what is held, noted and refused --------------------------------------------------------------------------------

    def _begin(self, size: int) -> None:
        self._in_flight += 1
        self._held += size
        self._is_idle.clear()

    def _end(self, rpc: _Rpc, size: int) -> None:
        self._in_flight -= 1
        self._held -= size
        if not self._in_flight:
            self._is_idle.set()
        self._ended(rpc)

    def _check_size(self, rpc: _Rpc, data: bytes) -> None:
        """Raise TooLarge or Overloaded before a message is parsed that would take too much memory."""
        size = len(data)
        if size > self._limits.any.most:
            raise self._limits.any.error(size)
        if size > SMALL_BYTES and rpc.name not in ("ModelInfer", "ModelStreamInfer"):
            raise TooLarge(f"the message has {size} bytes; {rpc.name} takes at most {SMALL_BYTES}")
        if size > SMALL_BYTES:
            oip_proto.check_outline(data, self._limits.json_tensors.most)
        if self._held > self._limits.any.most * HELD:
            raise Overloaded(f"the service holds {self._held} bytes of requests already; send this again in a second")

    def _ended(self, rpc: _Rpc) -> None:
        trace = trace_of(rpc.metadata.get("traceparent"))
        seconds = time.perf_counter() - rpc.began
        key = rpc.caller.key_id
        theirs = well_formed(rpc.metadata.get("x-request-id"))
        self._service.outbox.ended(
            Ended(rpc.id, trace, "gRPC", rpc.endpoint, rpc.status, seconds, key, rpc.model or None, rpc.reason, theirs)
        )

    async def _noted(self, rpc: _Rpc, error: Exception) -> errors.Refusal:
        """What may be shown of an error; the row of one that a valid key caused is written."""
        refused = errors.refusal(error, rpc.id)
        rpc.status, rpc.reason = refused.status, refused.code
        if rpc.caller.key_id is not None:
            await note_refusal(
                self._service,
                rpc.id,
                rpc.caller,
                model=rpc.model or "",
                endpoint=rpc.endpoint,
                status=refused.status,
                code=refused.code,
                seconds=time.perf_counter() - rpc.began,
            )
        return refused

    async def _refuse(self, rpc: _Rpc, error: Exception, context: Any) -> None:
        """End a call with an error's code and message. Does not return."""
        refused = await self._noted(rpc, error)
        after = refused.retry_after_seconds
        more = (("maasdam-error", refused.code), *(() if after is None else (("retry-after", f"{max(1, round(after))}"),)))
        code = grpc.StatusCode[error.grpc_status if isinstance(error, MaasdamError) else MaasdamError.grpc_status]
        await context.abort(code, refused.message[:LONGEST_MESSAGE], rpc.trailers(*more))


async def _over(task: asyncio.Task[None] | None) -> None:
    """Wait for a task, however it ends."""
    if task is not None:
        await asyncio.wait([task])


def _secret(metadata: dict[str, bytes]) -> str | None:
    return secret_of(*(metadata.get(name) for name in ("authorization", "api-key", "x-api-key")))


def _not_here(path: str, name: str) -> Unsupported:
    """The error for a call that is not offered."""
    why = next((why for begin, why in NOT_HERE.items() if name.startswith(begin)), "reflection lists what is")
    return Unsupported(f"{path[:100]} is not offered here: {why}")
