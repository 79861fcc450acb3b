"""Keeps the workers of a service. Knows processes, sockets and clocks; opens no engine, and imports none.

signal     -> drain all -> journals into the ledger -> the end
a worker died -> another takes its connections at once -> a successor is started, later each time it dies again
              -> all is loaded -> it has its connections back
Tell       -> Obey to every other worker -> what they answered
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import shutil
import signal
import socket
import tempfile
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING

from maasdam.accounts.importer import Importer
from maasdam.children import Forked
from maasdam.errors import ServiceError
from maasdam.operations.fleet import Busy, Order, SetLevel, Standing
from maasdam.operations.leaving import Leaving as Countdown
from maasdam.operations.systemd import Notifier
from maasdam.operations.workspace import Workspace
from maasdam.workers.channel import Channel
from maasdam.workers.messages import (
    AboutHosts,
    Acquire,
    Adopt,
    AwaitEnd,
    Closing,
    Drain,
    Message,
    Obey,
    Open,
    Opened,
    Others,
    Ping,
    ReadHosts,
    Release,
    Say,
    Tell,
    Told,
)
from maasdam.workers.worker import Assignment, work

if TYPE_CHECKING:
    from maasdam.serving.hosts.local import LocalKeeper

log = logging.getLogger("maasdam.workers")

CRASH_WINDOW_SECONDS = 60.0
MANY_CRASHES = 3
"""So many within the window are said aloud."""
LONGEST_BACKOFF_SECONDS = 30.0
ALIVE_SECONDS = 1.0
PING_SECONDS = 5.0
HANGS_SECONDS = 30.0
"""A worker whose event loop has answered nothing for so long is ended, and replaced."""
STARTS_SECONDS = 120.0
"""A new worker has said something by then."""
HURRY_SECONDS = 1.0
"""At the end of the grace, or on a second signal, workers have so long before they are killed."""


@dataclass(eq=False)
class Worker:
    """One worker's process, from its start to its end."""

    seat: Seat
    name: str
    """Of the files that it counts in."""
    channel: Channel
    process: Forked | None = None
    standing: Standing | None = None
    """None: it has not said anything yet."""
    is_open: bool = False
    """Whether it takes connections."""
    is_leaving: bool = False
    adopted: set[int] = field(default_factory=set)
    holder: str = field(default_factory=lambda: token_hex(4))
    """As the keeper of hosts knows it."""

    @property
    def pid(self) -> int | None:
        """None: it is not started."""
        return None if self.process is None else self.process.pid

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send it a signal, unless it has ended: its socket says so, also where the fork server has ended, which else would."""
        if self.process is not None and not self.channel.closed.is_set():
            with suppress(ProcessLookupError):
                os.kill(self.process.pid, number)

    def buried(self) -> str:
        """How it ended; its socket is closed, so it has, or does so now. Blocks."""
        if self.process is None:
            return "did not begin"
        how = self.process.end()
        self.process.kill()
        return how


@dataclass(eq=False)
class Seat:
    """Where a worker is, or is to be."""

    number: int
    worker: Worker | None = None
    crashes: deque[float] = field(default_factory=lambda: deque(maxlen=16))
    is_new: bool = True
    """Whether the service has just begun, and waits for it too."""

    @property
    def standing(self) -> Standing | None:
        """What callers meet here: nothing is loaded yet where the service has just begun; None: they meet somebody else."""
        if self.worker is not None and self.worker.is_open:
            return self.worker.standing
        return Standing() if self.is_new else None


class Supervisor:
    """Start with `run`, in the main thread."""

    def __init__(
        self,
        workspace: Workspace,
        given: Assignment,
        on_ready: Callable[[Sequence[Standing]], None],
        libraries: Sequence[str] = (),
        notifier: Notifier | None = None,
    ) -> None:
        """`given` is what all workers are; there are as many as it has listeners. `on_ready` hears what they have loaded.

        `libraries` are imported once for all of them; `notifier` tells systemd.
        """
        self._notifier = notifier or Notifier()
        self._libraries = libraries
        grace = workspace.settings.shutdown_grace_seconds
        own = replace(given.settings, shutdown_grace_seconds=max(grace * 0.9, grace - 0.5))  # they are over when it is
        self._given = replace(given, settings=own)
        self._workspace = workspace
        self._hosts: LocalKeeper | None = None
        """None: none was asked for yet."""
        self._on_ready = on_ready
        self._clock = time.monotonic
        self._seats = [Seat(number) for number in range(len(given.listeners))]
        self._workers: set[Worker] = set()
        """Every process there is, those that leave too."""
        self._is_stopping = False
        self._stop = asyncio.Event()
        self._is_over = asyncio.Event()
        self._level: SetLevel | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._countdown = Countdown(grace, self._end_all)

    async def run(self) -> None:
        """Until a signal, and until all is over then."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._signalled)
        self._countdown.watch_signals()
        importer = Importer(self._workspace.ledger)
        importer.start()
        for seat in self._seats:
            self._spawn(self._fill(seat))
        self._spawn(self._watch(self._on_ready))
        while not self._stop.is_set():
            self._notifier.alive()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), ALIVE_SECONDS)
        self._notifier.stopping()
        for one in self._given.sockets:
            one.close()
        for worker in self._workers:
            worker.channel.note(Drain())
        if self._workers:
            await self._is_over.wait()
        if self._hosts is not None:
            await self._hosts.close()
        await asyncio.to_thread(importer.stop)

    def _signalled(self) -> None:
        if self._is_stopping:
            self._countdown.at_once()
        self._is_stopping = True
        self._countdown.begin()
        self._stop.set()

    # ---- processes ------------------------------------------------------------------------------------------------------

    async def _fill(self, seat: Seat, after_seconds: float = 0.0) -> None:
        """Have a worker in this seat."""
        await asyncio.sleep(after_seconds)
        if self._is_stopping or seat.worker is not None:
            return
        try:
            ours, theirs = socket.socketpair()
        except OSError:
            log.exception("worker %d could not be started", seat.number + 1)
            self._spawn(self._fill(seat, ALIVE_SECONDS))
            return
        worker = seat.worker = Worker(seat, self._free_name(), Channel(lambda message: self._take(worker, message)))
        self._workers.add(worker)
        await worker.channel.open(ours)
        self._spawn(self._look_after(worker))
        self._share_out()
        if self._level is not None:
            worker.channel.note(Obey(self._level))
        with theirs:  # once it is started it has one of its own
            try:
                worker.process = await asyncio.to_thread(self._start, worker, theirs)
            except Exception:
                log.exception("worker %d could not be started", seat.number + 1)
                worker.channel.close()
                return
        log.info("worker %d is process %d", seat.number + 1, worker.pid)
        if self._is_stopping:
            worker.channel.note(Drain())

    def _start(self, worker: Worker, channel: socket.socket) -> Forked:
        given = replace(self._given, seat=worker.seat.number, name=worker.name, channel=channel)
        name = f"maasdam-worker-{worker.seat.number + 1}"
        return Forked(work, (given,), name=name, outlives=True, libraries=self._libraries)

    def _free_name(self) -> str:
        """Of files that nobody counts in now."""
        taken = {worker.name for worker in self._workers}
        return next(name for name in map(str, count()) if name not in taken)

    async def _look_after(self, worker: Worker) -> None:
        """Until it is over with it, and a successor is on its way."""
        closed = worker.channel.closed
        while not closed.is_set():
            try:
                await asyncio.wait_for(closed.wait(), PING_SECONDS)
            except TimeoutError:
                await self._check(worker)
        worker.is_open = worker.seat.is_new = False  # nobody waits for one that died of its beginning
        self._share_out()
        self._pass_on()
        died = await asyncio.to_thread(worker.buried)
        self._workers.discard(worker)
        if self._is_stopping and not self._workers:
            self._is_over.set()
        seat, after_seconds = worker.seat, 0.0
        if not (worker.is_leaving or self._is_stopping):
            after_seconds = self._mourn(seat, f"worker {seat.number + 1} (process {worker.pid}) {died}")
        if seat.worker is worker:
            seat.worker = None
            self._spawn(self._fill(seat, after_seconds))
        if self._hosts is not None:
            await self._hosts.forget(worker.holder)

    async def _check(self, worker: Worker) -> None:
        seconds = STARTS_SECONDS if worker.standing is None else HANGS_SECONDS
        try:
            await worker.channel.ask(Ping(), seconds)
        except TimeoutError:
            log.error("worker %d has answered nothing for %.0f s: it is ended", worker.seat.number + 1, seconds)
            worker.kill()
            await worker.channel.closed.wait()
        except ConnectionError:
            pass

    def _mourn(self, seat: Seat, what: str) -> float:
        """Say that a worker died; after how many seconds its successor is to be started."""
        now = self._clock()
        seat.crashes.append(now)
        times = sum(now - at < CRASH_WINDOW_SECONDS for at in seat.crashes)
        after_seconds = 0.0 if times <= MANY_CRASHES else min(2.0 ** (times - MANY_CRASHES - 1), LONGEST_BACKOFF_SECONDS)
        if times < MANY_CRASHES:
            log.warning("%s; another is started", what)
        else:
            rest = sum(worker.is_open for worker in self._workers)
            then = f"it is tried again in {after_seconds:.0f} s, and the service goes on with {rest} of {len(self._seats)}"
            log.error("%s, the %d. time within a minute: %s", what, times, then)
        return after_seconds

    def _end_all(self) -> None:
        """Have no worker left, soon; from any thread."""
        for number, seconds in ((signal.SIGTERM, HURRY_SECONDS), (signal.SIGKILL, 0.0)):
            for worker in list(self._workers):
                worker.kill(number)
            until = time.monotonic() + seconds
            while self._workers and time.monotonic() < until:
                time.sleep(0.01)

    # ---- connections ----------------------------------------------------------------------------------------------------

    def _share_out(self) -> None:
        """Have somebody take the connections of every seat."""
        there = [worker for worker in self._workers if worker.is_open]
        for seat in self._seats:
            worker = seat.worker
            is_taken = worker is not None and worker.is_open
            if worker is not None and not is_taken and (not there or seat.is_new):
                worker.channel.note(Open())
            adopting = [one for one in there if seat.number in one.adopted]
            if is_taken:
                for one in adopting:
                    one.adopted.discard(seat.number)
                    one.channel.note(Release(seat.number))
            elif there and not adopting and not seat.is_new:
                one = min(there, key=lambda one: len(one.adopted))
                one.adopted.add(seat.number)
                one.channel.note(Adopt(seat.number))

    def _pass_on(self) -> None:
        """Let every worker know what the others have."""
        for worker in self._workers:
            others = [seat for seat in self._seats if seat is not worker.seat]
            standings = (seat.standing for seat in others)
            worker.channel.note(Others(tuple(standing for standing in standings if standing is not None)))

    # ---- what workers say -----------------------------------------------------------------------------------------------

    async def _take(self, worker: Worker, message: Message) -> Told:
        seat = worker.seat
        if isinstance(message, Tell):
            return Told(await self._tell(worker, message))
        if isinstance(message, AboutHosts):
            return await self._keep(worker, message)
        if isinstance(message, Say):
            worker.standing = message.standing
        elif isinstance(message, Opened):
            worker.is_open, seat.is_new = not worker.is_leaving, False
            self._share_out()
        elif isinstance(message, Closing):
            worker.is_open, worker.is_leaving = False, True
            if seat.worker is worker and not self._is_stopping:
                seat.worker = None
                self._spawn(self._fill(seat))
            self._share_out()
        self._pass_on()
        return Told()

    async def _keep(self, worker: Worker, message: AboutHosts) -> Told:
        if isinstance(message, ReadHosts):
            return Told(readings=[] if self._hosts is None else await self._hosts.readings())
        if self._hosts is None:
            from maasdam.operations.keeping import open_keeper  # it costs who does without it 10 MB

            self._hosts = open_keeper(self._workspace)
        if isinstance(message, Acquire):
            return Told(address=await self._hosts.acquire(message.work, message.held, message.may_push, worker.holder))
        if isinstance(message, AwaitEnd):
            return Told(end=await self._hosts.ended(message.host_id))
        await self._hosts.release(message.host_id, worker.holder)
        return Told()

    async def _tell(self, teller: Worker, message: Tell) -> list[Busy]:
        if isinstance(message.order, SetLevel):
            self._level = message.order
        others = [worker for worker in self._workers if worker is not teller]
        told = await asyncio.gather(*(self._obeyed(worker, message.order, message.seconds) for worker in others))
        return [one for busy in told for one in busy]

    async def _obeyed(self, worker: Worker, order: Order, seconds: float) -> list[Busy]:
        try:
            return (await worker.channel.ask(Obey(order), seconds)).busy
        except (TimeoutError, ServiceError) as error:
            what = str(error) or f"it did not answer within {seconds:.0f} s"
            log.warning("worker %d has not done %s yet: %s", worker.seat.number + 1, type(order).__name__, what)
        except ConnectionError:  # its successor begins with what is so now
            pass
        return []

    async def _watch(self, on_ready: Callable[[Sequence[Standing]], None]) -> None:
        """Say once that all is loaded, in every worker that does not die of it."""
        while True:
            await asyncio.sleep(0.05)
            seats = [seat for seat in self._seats if len(seat.crashes) < MANY_CRASHES]
            standings = [seat.standing for seat in seats]
            if not standings or not all(standing is not None and standing.is_loaded for standing in standings):
                continue
            try:
                on_ready([standing for standing in standings if standing is not None])
                return
            except Exception:
                log.exception("can't tell what is loaded; trying again")
                await asyncio.sleep(ALIVE_SECONDS)

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("the supervisor could not do its work", exc_info=error)


@contextmanager
def counting_folder(home: Path) -> Iterator[Path]:
    """A new folder for what workers count, gone at the end; so are those of services that were killed."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in home.iterdir():
        with suppress(OSError):  # somebody counts there
            held = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(held)
    folder = Path(tempfile.mkdtemp(dir=home))
    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)
