"""One worker: a whole service in a process of its own, led by the supervisor. Knows both; never what is served.

supervisor dead -> as SIGTERM: what is in flight finishes, and no more comes
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection, parent_process
from pathlib import Path
from typing import TYPE_CHECKING

from maasdam.operations.fleet import FOLLOW_SECONDS, Busy, Order, Standing, obey, standing
from maasdam.settings import Settings
from maasdam.workers.channel import Channel
from maasdam.workers.keeper import FarKeeper
from maasdam.workers.messages import (
    Adopt,
    Closing,
    Drain,
    Message,
    Obey,
    Open,
    Opened,
    Others,
    Release,
    Say,
    Tell,
    Told,
)

if TYPE_CHECKING:
    from maasdam.api.http import Led
    from maasdam.operations.service import Service

log = logging.getLogger("maasdam.workers")

PASSING_SECONDS = 2.0
"""How long the supervisor may take to pass something on."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a worker is given when it begins. It travels with its sockets."""

    settings: Settings
    config: Path | None
    """The maasdam.toml that was named."""
    has_keys: bool
    secret: str
    """The operator's."""
    counted: Path
    """The folder of what workers count."""
    listeners: tuple[socket.socket, ...]
    """One for each seat."""
    grpc: socket.socket | None
    """Has the port of gRPC, and does not listen: gRPC makes a listener of its own beside it. See also `passes_on`."""
    stderr: connection.Connection
    """Where the service's own goes."""
    passes_on: bool = False
    """Whether it does listen, for all workers; see `Doors`."""
    shared: tuple[socket.socket, ...] = ()
    """Those that all workers listen on."""
    seat: int = 0
    name: str = ""
    """Of the files that it counts in."""
    channel: socket.socket | None = None

    @property
    def sockets(self) -> list[socket.socket]:
        """Through which callers come."""
        return [*self.listeners, *self.shared, *([] if self.grpc is None else [self.grpc])]


def work(given: Assignment) -> None:
    """Serve until told to stop; the process ends here."""
    os.dup2(given.stderr.fileno(), 2)
    threading.Thread(target=_end_with_supervisor, name="supervisor", daemon=True).start()

    from maasdam.api.http import serve
    from maasdam.api.listening import Doors
    from maasdam.operations.leaving import leave
    from maasdam.operations.requests import log_file
    from maasdam.operations.service import open_service
    from maasdam.operations.workspace import Workspace
    from maasdam.telemetry.logs import logging_to
    from maasdam.telemetry.metrics import Metrics, count_in

    settings = given.settings
    count_in(given.counted, given.name)
    kept = log_file(settings)
    between = (kept.path if kept else settings.home / "logs" / "maasdam.log").with_suffix(".stderr")
    with logging_to(settings.log_level, kept, between, worker=given.seat + 1):
        try:
            with Workspace.open(settings, given.config) as workspace:
                lead = Lead(given)
                service = lead.service = open_service(
                    workspace,
                    operators_secret=given.secret,
                    metrics=Metrics(given.counted),
                    imports=False,
                    keeper=FarKeeper(lead.channel),
                    is_one_of_many=True,
                )
                service.fleet = lead
                own = [given.listeners[given.seat].dup(), *(one.dup() for one in given.shared)]
                doors = Doors(own, None if given.grpc is None else given.grpc.dup(), given.passes_on)
                serve(service, given.has_keys, doors, lambda: None, lead)
        except Exception:
            log.exception("this worker could not begin, or broke")
            leave(1)
    leave()


def _end_with_supervisor() -> None:
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


class Lead:
    """What leads a worker: the supervisor, as its server and its operations see it."""

    service: Service
    """Whose lead it is; set once there is one."""

    def __init__(self, given: Assignment) -> None:
        self.others: Sequence[Standing] = ()
        self.channel = Channel(self._take)
        self._given = given
        self._server: Led
        self._may_open = asyncio.Event()
        self._adopted: dict[int, asyncio.Future[asyncio.AbstractServer]] = {}
        self._is_open = False
        self._said: Standing | None = None
        self._known: Standing | None = None
        """What was said last that all others have."""
        self._sayings = 0
        """That are on their way."""
        self._saying: asyncio.Future[None] | None = None

    @property
    def knows_us(self) -> bool:
        """See `Fleet`."""
        return self._is_open and self._known is not None and self._known.is_loaded

    async def tell(self, order: Order, seconds: float = FOLLOW_SECONDS) -> list[Busy]:
        """See `Fleet`."""
        try:
            return (await self.channel.ask(Tell(order, seconds), seconds + PASSING_SECONDS)).busy
        except (TimeoutError, ConnectionError) as error:
            log.warning("the other workers could not be told of %s: %s", type(order).__name__, error)
            return []

    async def say(self, standing: Standing) -> None:
        """See `Fleet`."""
        self._said = standing
        self._sayings += 1
        try:
            with suppress(TimeoutError, ConnectionError):
                await self.channel.ask(Say(standing), PASSING_SECONDS)
                self._known = standing
        finally:
            self._sayings -= 1

    async def connect(self, server: Led) -> None:
        """Hear and say from now on."""
        self._server = server
        assert self._given.channel is not None
        await self.channel.open(self._given.channel)

    async def begin(self) -> None:
        """Return when callers may come: once all is loaded, so that nobody meets a worker that has nothing; or told to."""
        server = self._server
        self.tick()
        while not (self._may_open.is_set() or self.service.router.is_ready or server.should_exit):
            with suppress(TimeoutError):
                await asyncio.wait_for(self._may_open.wait(), 0.02)
        self.tick()

    async def opened(self) -> None:
        """The server listens."""
        with suppress(TimeoutError, ConnectionError):
            await self.channel.ask(Opened(), PASSING_SECONDS)
        self._is_open = True

    def tick(self) -> None:
        """Some time has passed."""
        now = standing(self.service)
        if now != self._said or (now != self._known and not self._sayings):  # or nobody may have heard it
            self._saying = asyncio.ensure_future(self.say(now))

    def leaving(self) -> None:
        """The server listens no more."""
        for listener in self._given.sockets:
            listener.close()
        self.channel.note(Closing())

    async def _take(self, message: Message) -> Told:
        if isinstance(message, Obey):
            return Told(await obey(self.service, message.order))
        if isinstance(message, Others):
            self.others = message.standings
        elif isinstance(message, Open):
            self._may_open.set()
        elif isinstance(message, Drain):
            if not self._server.should_exit:
                self._server.handle_exit(signal.SIGTERM, None)
        elif isinstance(message, Adopt) and message.seat not in self._adopted and not self._server.should_exit:
            await self._adopt(message.seat)
        elif isinstance(message, Release) and message.seat in self._adopted:
            self._server.unlisten(await self._adopted.pop(message.seat))
        return Told()

    async def _adopt(self, seat: int) -> None:
        listening = asyncio.ensure_future(self._server.listen(self._given.listeners[seat].dup()))
        self._adopted[seat] = listening  # from now on: it may be released before it listens
        try:
            await listening
        except OSError:
            self._adopted.pop(seat, None)
            raise
