"""ModelStreamInfer: many requests over one call, answered side by side. Knows order and pieces; never the server.

The answers come in the order of the requests, but a text's pieces as they are written. A request that fails is told in the
stream, which goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

from structlog.contextvars import bind_contextvars

from maasdam.api import oip_proto
from maasdam.api.oip_call import OipCall
from maasdam.api.oip_grpc_call import Rpc
from maasdam.core import Chunk, Entry, Facts
from maasdam.errors import NotReady
from maasdam.operations.deployments import served_version

MOST_AT_ONCE = 256
"""Requests of one stream that are answered side by side; the next is read when one is done."""

Send = Callable[[bytes], Awaitable[None]]


class StreamRpc(Rpc):
    """gRPC's handler of one such call."""

    __slots__ = ()

    response_streaming = True

    async def stream_stream(self, messages: AsyncIterator[bytes], context: Any) -> None:
        """gRPC asks for the answers."""
        self.enter()
        try:
            try:
                await self.admit()
            except asyncio.CancelledError:
                await self.gone(is_here=False)
                self.end()
                raise
            except Exception as error:
                try:
                    await self.refuse(error, context)
                finally:
                    self.end()
            context.set_trailing_metadata(self.trailers())
            await self._all(messages, context)
        finally:
            self.leave()

    async def _all(self, messages: AsyncIterator[bytes], context: Any) -> None:
        tasks: set[asyncio.Task[None]] = set()
        sending = asyncio.Lock()

        async def send(data: bytes) -> None:
            async with sending:
                await context.write(data)

        before: asyncio.Task[None] | None = None
        try:
            async for data in messages:
                before = asyncio.create_task(_answered(self.again(), data, send, before, context.time_remaining()))
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


async def _answered(rpc: Rpc, data: bytes, send: Send, before: asyncio.Task[None] | None, left: float | None) -> None:
    """One request of a stream."""
    calls, service, method = rpc.calls, rpc.calls.service, rpc.method
    assert method is not None
    bind_contextvars(request_id=rpc.id)
    calls.take(len(data))
    call_id = ""
    try:
        calls.check_size(rpc.name, data)
        if service.is_draining:
            raise NotReady("the service is stopping; send it to another, or again later")
        asked = oip_proto.parsed(method.takes, data)
        call_id = asked.id
        call = await rpc.call(asked, (oip_proto.EMPTY_FINAL,), may_stream=True)
        if call.is_text:
            await _pieces(rpc, call, send, left)
        else:
            response, _ = await rpc.whole(call, left)
            await _over(before)
            await send(oip_proto.streamed(response, is_last=True))
    except asyncio.CancelledError:
        await rpc.gone(is_here=True)
        raise
    except Exception as error:
        refused = await rpc.noted(error)
        await _over(before)
        await send(oip_proto.failed(refused.message, call_id))
    finally:
        calls.give_back(len(data))
        rpc.end()


async def _pieces(rpc: Rpc, call: OipCall, send: Send, left: float | None) -> None:
    """A text, each piece as it is written."""

    def write(chunk: Chunk, entry: Entry) -> bytes:
        return oip_proto.streamed(oip_proto.encode(call.reply([chunk], entry)), chunk.is_last)

    service = rpc.calls.service
    if call.outputs:
        one = served_version(service, call.model)
        call.check(Facts(one.signature, task=one.version.task))
    request = call.request(rpc.id, rpc.caller, rpc.endpoint, rpc.seconds(left))
    async with aclosing(service.inference.stream(request, write)) as pieces:
        async for piece in pieces:
            await send(piece)


async def _over(task: asyncio.Task[None] | None) -> None:
    """Wait for a task, however it ends."""
    if task is not None:
        await asyncio.wait([task])
