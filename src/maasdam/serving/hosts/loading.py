"""From a version to a replica in an engine host. Knows the keeper; never files, engines or processes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from maasdam.errors import Crashed, LimitExceeded
from maasdam.serving.hosts.hosted import HostReplica
from maasdam.serving.hosts.keeper import HostWork, Keeper
from maasdam.serving.phases import Phases, told_seconds
from maasdam.settings import Settings

if TYPE_CHECKING:
    from maasdam.artifacts.catalog import Version

log = logging.getLogger("maasdam.serving")
SLACK_SECONDS = 5.0
"""Beyond load_seconds, which the host itself keeps to: it hangs."""


class HostLoader:
    """Call it with a version. It knows which hosts its process holds, so that each replica has one of its own."""

    def __init__(self, keeper: Keeper, settings: Settings) -> None:
        self._keeper = keeper
        self._settings = settings
        self._held: dict[str, set[str]] = {}

    async def __call__(
        self, version: Version, options: Mapping[str, Any] = MappingProxyType({}), may_push: bool = True
    ) -> HostReplica:
        """A replica that has answered at least once, its engine opened with `options` beyond the artifact's settings; others
        leave for it, where memory is short, only if it `may_push`.

        Raises what loading raises there, Crashed, LimitExceeded, NoRoom.
        """
        phases = Phases()
        work = HostWork(version.model, version.version, version.digest, version.engine, dict(options))
        held = self._held.setdefault(work.name, set())
        address = await self._keeper.acquire(work, held, may_push)
        held.add(address.id)
        try:
            settings = self._settings
            sizes = {"queue_size": settings.queue_size, "max_answer_bytes": settings.max_answer_bytes}
            replica = HostReplica(work.name, address, self._keeper, on_left=lambda: held.discard(address.id), **sizes)
        except OSError:
            held.discard(address.id)
            end = await self._keeper.ended(address.id)
            await self._keeper.release(address.id)
            raise Crashed(f"while {work.name} was loaded, its process {end.reason}") from None
        try:
            async with asyncio.timeout(settings.load_seconds + SLACK_SECONDS):
                await replica.opened()
        except BaseException as error:
            await replica.leave()
            if isinstance(error, TimeoutError):
                sentence = f"model {work.name} did not load and answer once within {settings.load_seconds:,.0f} s"
                raise LimitExceeded(f"{sentence} (setting load_seconds)") from None
            raise
        if address.is_new:
            phases.seconds = {**replica.load_seconds, "room": address.room_seconds}
            replica.load_seconds = phases.told("fork")
        else:
            replica.load_seconds = {}
        log.info("model %s is up in process %d after %s", work.name, address.pid, told_seconds(phases.told("fork")))
        return replica
