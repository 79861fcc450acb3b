"""Which hosts stay in memory: room for those that come, goodbye to those that nobody asks for.

Knows sizes, times and what deployments want; refuses to know processes and sockets, which are the keeper's.

    one comes  -> `admitted`: is there room? else who leaves (`Room`) -> their goodbye, and their processes are over
    each tick  -> what do they hold? -> who has been idle for too long, or too large together -> their goodbye
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from maasdam.errors import MaasdamError, NoRoom
from maasdam.serving.hosts.room import Resident, Room

log = logging.getLogger("maasdam.serving")

ROOM_SECONDS = 10.0
"""So long is waited for one that is at work to be idle."""
LOOK_SECONDS = 0.02
"""How often is looked, meanwhile."""
TICK_SECONDS = 1.0
FRESH_SECONDS = 5.0
"""One that was just loaded is not sent away so long, unless it has answered: who had it loaded is on the way to it."""
GROWN = 1.01
"""What was kept of a size is kept anew where it is so much larger."""


@dataclass(frozen=True, slots=True)
class Stay:
    """What a deployment wants of the memory."""

    is_pinned: bool = False
    idle_seconds: float | None = None


NO_STAY = Stay()


@dataclass(frozen=True, slots=True)
class HostUse:
    """How a host is used."""

    in_flight: int
    """Requests that it has."""
    last_used: float | None
    """When its last one ended, monotonic seconds; None: there was none."""


class Lodger(Protocol):
    """One host, as far as it matters whether it stays."""

    @property
    def id(self) -> str:
        """Its own."""
        ...

    @property
    def model(self) -> str:
        """NAME."""
        ...

    @property
    def name(self) -> str:
        """NAME:VERSION."""
        ...

    @property
    def kind(self) -> str:
        """See `HostWork.kind`."""
        ...

    @property
    def expected_bytes(self) -> int:
        """What it was let in for."""
        ...

    @property
    def is_loading(self) -> bool:
        """Whether it is on its way up."""
        ...

    @property
    def loaded_at(self) -> float:
        """Monotonic seconds."""
        ...

    @property
    def loaded_bytes(self) -> int:
        """What it held then; 0 where it does not say."""
        ...

    async def use(self) -> HostUse:
        """How it is used, as it says itself now; one that does not answer is at work."""
        ...

    def measure(self) -> int:
        """Bytes that its process holds now. It may block for milliseconds."""
        ...

    async def leave(self, reason: str) -> bool:
        """Have it take no more requests, and wait until its process is over. False: it is at work, and stays."""
        ...


class KnownSizes(Protocol):
    """What is known of sizes; it blocks."""

    def expected(self, kind: str) -> tuple[int, int]:
        """Bytes that a host of this kind held once it had loaded, 0 where that is not known; and at most, or a guess."""
        ...

    def keep(self, kind: str, loaded: int, most: int) -> None:
        """What one was measured to hold."""
        ...


class Household:
    """The hosts of one service. All methods run in one event loop."""

    def __init__(
        self,
        budget_bytes: int | None,
        sizes: KnownSizes,
        stays: Callable[[], Mapping[str, Stay]],
        lodgers: Callable[[], Collection[Lodger]],
        *,
        clock: Callable[[], float] = time.monotonic,
        look_seconds: float = LOOK_SECONDS,
        tick_seconds: float = TICK_SECONDS,
    ) -> None:
        """`budget_bytes` None is no limit. `stays` reads what deployed models want, and blocks; `lodgers` are those here."""
        self.room = None if budget_bytes is None else Room(budget_bytes)
        self._sizes = sizes
        self._read = stays
        self._stays: Mapping[str, Stay] = {}
        self._lodgers = lodgers
        self._clock = clock
        self._look_seconds = look_seconds
        self._tick_seconds = tick_seconds
        self._coming: list[Resident] = []
        self._measured: dict[str, int] = {}
        self._largest: dict[str, int] = {}
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def admitted(self, name: str, kind: str, may_push: bool) -> AsyncIterator[int]:
        """Room for one more host, of so many bytes, while inside the `with`: it is begun there, and counts by itself then.

        Others leave for it only with `may_push`. Raises NoRoom, saying who holds the room, and NotFound.
        """
        if self.room is None:
            yield 0
            return
        least, most = await asyncio.to_thread(self._sizes.expected, kind)
        await self._read_stays()
        coming = await self._made_room(self.room, name, least, most, may_push)
        try:
            yield coming.bytes
        finally:
            self._coming.remove(coming)

    async def _made_room(self, room: Room, name: str, least: int, most: int, may_push: bool) -> Resident:
        until = self._clock() + ROOM_SECONDS
        while True:
            async with self._in_turn(name, until):
                residents = await self._residents()
                # neither a guess nor what one request made of it refuses it for good: it is measured once it has loaded
                stay = sum(one.bytes for one in residents if one.is_pinned)
                needs = max(least, min(most, room.budget_bytes - stay))
                leaving = room.leaving(residents, needs)
                if leaving and not may_push:
                    raise NoRoom(room.told(residents, needs))
                if leaving is not None and await self._send_away(leaving, f"{name} needs its memory"):
                    coming = Resident("", name, needs, self._clock(), is_busy=True)
                    self._coming.append(coming)
                    return coming
                if leaving is None and (not may_push or self._clock() > until):
                    raise NoRoom(room.told(residents, needs))
            await asyncio.sleep(self._look_seconds)

    @asynccontextmanager
    async def _in_turn(self, name: str, until: float) -> AsyncIterator[None]:
        """Nobody else makes room meanwhile. Raises NoRoom where that is not to be had in time."""
        try:
            async with asyncio.timeout(until - self._clock()):
                await self._turn.acquire()
        except TimeoutError:
            raise NoRoom(f"room was made for others for too long; {name} is still to come") from None
        try:
            yield
        finally:
            self._turn.release()

    async def watch(self) -> None:
        """For ever, once a tick: send away who has been idle for too long, and who is too much."""
        while True:
            try:
                await self._read_stays()
                await self.tick()
            except Exception:
                log.exception("can't look after what is in memory; trying again")
            await asyncio.sleep(self._tick_seconds)

    async def tick(self) -> None:
        """Look once."""
        async with self._turn:
            residents = await self._residents(anew=True)
            here, now = {one.id: one for one in residents}, self._clock()
            for lodger in list(self._lodgers()):
                one, idle = here.get(lodger.id), self._stay(lodger.model).idle_seconds
                if one is not None and idle is not None and one.may_leave and now - one.last_used >= idle:
                    await self._send_away([here.pop(lodger.id)], f"nobody asked for it for {idle:g} s")
            if self.room is None:
                return
            try:
                leaving = self.room.leaving(list(here.values()))
            except NoRoom:  # what is pinned is too much alone: all others leave
                leaving = [one for one in here.values() if one.may_leave]
            await self._send_away(leaving or (), "together they hold more than memory_budget")

    async def _read_stays(self) -> None:
        try:
            self._stays = await asyncio.to_thread(self._read)
        except MaasdamError:  # the catalog is away for a while: what was read before holds
            log.debug("can't read what deployments want of the memory")

    def _stay(self, model: str) -> Stay:
        return self._stays.get(model, NO_STAY)

    async def _residents(self, anew: bool = False) -> list[Resident]:
        """Who holds how much: as of the last tick, but for those that were loaded since."""
        lodgers, residents = list(self._lodgers()), list(self._coming)  # in one moment: who comes is in one of the two
        loading = {lodger.id for lodger in lodgers if lodger.is_loading}
        here = {lodger.id: self._measured.get(lodger.id, 0) for lodger in lodgers}
        unknown = [one for one in lodgers if anew or not (here[one.id] or one.id in loading)]
        if unknown:
            here |= await asyncio.to_thread(lambda: [(one.id, one.measure()) for one in unknown])
            self._measured = {host: size for host, size in here.items() if host not in loading}
        uses = await asyncio.gather(*(lodger.use() for lodger in lodgers))
        for lodger, use in zip(lodgers, uses, strict=True):
            size, is_loading = here[lodger.id], lodger.id in loading
            if not is_loading:
                await self._note(lodger, size)
            residents.append(
                Resident(
                    lodger.id,
                    lodger.name,
                    max(size, lodger.expected_bytes) if is_loading else size,
                    lodger.loaded_at if use.last_used is None else use.last_used,
                    is_loading or self._is_busy(lodger, use),
                    self._stay(lodger.model).is_pinned,
                )
            )
        return residents

    def _is_busy(self, lodger: Lodger, use: HostUse) -> bool:
        is_fresh = use.last_used is None and self._clock() - lodger.loaded_at < FRESH_SECONDS
        return use.in_flight > 0 or is_fresh

    async def _note(self, lodger: Lodger, size: int) -> None:
        """Keep what it holds, where that is news."""
        if size > self._largest.get(lodger.kind, 0) * GROWN:
            self._largest[lodger.kind] = size
            try:
                await asyncio.to_thread(self._sizes.keep, lodger.kind, lodger.loaded_bytes, size)
            except MaasdamError:  # its files are gone
                log.debug("the size of %s is not kept", lodger.kind)

    async def _send_away(self, leaving: Sequence[Resident], reason: str) -> bool:
        """Whether they are all gone."""
        here = {lodger.id: lodger for lodger in self._lodgers()}
        for one in leaving:
            log.info("model %s leaves: %s", one.name, reason)
        return all(await asyncio.gather(*(here[one.id].leave(reason) for one in leaving if one.id in here)))
