"""The supervisor's keeper of engine hosts, as a worker reaches it. Knows the channel; never a process."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from contextlib import suppress

from maasdam.errors import MaasdamError, ServiceError
from maasdam.serving.hosts.keeper import HostAddress, HostEnd, HostReading, HostWork
from maasdam.workers.channel import Channel
from maasdam.workers.messages import Acquire, AwaitEnd, LetGo, ReadHosts, Told

RELEASE_SECONDS = 30.0
READ_SECONDS = 5.0


class FarKeeper:
    """See `Keeper`."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._unwanted: set[asyncio.Task[None]] = set()

    async def acquire(self, work: HostWork, held: Collection[str], may_push: bool = True) -> HostAddress:
        """See `Keeper`."""
        asking = asyncio.ensure_future(self._channel.ask(Acquire(work, frozenset(held), may_push), None))
        try:
            address = (await asyncio.shield(asking)).address
        except asyncio.CancelledError:  # the answer comes all the same, and nobody waits for it
            letting_go = asyncio.ensure_future(self._let_go(asking))
            self._unwanted.add(letting_go)
            letting_go.add_done_callback(self._unwanted.discard)
            raise
        except ConnectionError:
            raise ServiceError("the supervisor has ended, and so does this worker") from None
        assert address is not None
        return address

    async def release(self, host_id: str) -> None:
        """See `Keeper`."""
        with suppress(TimeoutError, ConnectionError):  # who is gone is released by whoever buries it
            await self._channel.ask(LetGo(host_id), RELEASE_SECONDS)

    async def ended(self, host_id: str) -> HostEnd:
        """See `Keeper`."""
        try:
            end = (await self._channel.ask(AwaitEnd(host_id), None)).end
        except ConnectionError:
            return HostEnd("ended with the service", False)
        assert end is not None
        return end

    async def readings(self) -> list[HostReading]:
        """See `Keeper`; none where the supervisor does not say so in time."""
        try:
            return (await self._channel.ask(ReadHosts(), READ_SECONDS)).readings
        except (TimeoutError, ConnectionError):
            return []

    async def _let_go(self, asking: asyncio.Task[Told]) -> None:
        with suppress(MaasdamError, ConnectionError):
            address = (await asking).address
            if address is not None:
                await self.release(address.id)
