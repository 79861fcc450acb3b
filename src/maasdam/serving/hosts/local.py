"""The keeper of engine hosts in one process. Knows processes, their holders and their limits; never requests or models.

acquire -> a host of that version that the asker has not -> else fork one -> address
release by the last holder -> End -> gone, or killed
every second: memory and time against the limits -> killed, with its reason
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import shutil
import socket
import tempfile
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from contextvars import Context
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from maasdam.artifacts.store import Store
from maasdam.children import Forked
from maasdam.children.usage import share_bytes
from maasdam.errors import MaasdamError, ServiceError, words
from maasdam.serving.hosts import control
from maasdam.serving.hosts.channel import HostChannel
from maasdam.serving.hosts.household import HostUse, Household, Stay
from maasdam.serving.hosts.keeper import HostAddress, HostEnd, HostReading, HostWork
from maasdam.serving.hosts.sizes import HostSizes
from maasdam.serving.share import apart
from maasdam.settings import Settings

log = logging.getLogger("maasdam.serving")
LOOK_SECONDS = 1.0
"""How often limits are looked at."""
END_SECONDS = 5.0
"""A host that was asked to end has ended by then, or is killed."""
SPEAKS_SECONDS = 10.0
"""A host that was started has said how it is by then, or another is tried: it does so before it loads anything, at once.

The second has twice as long, the third again."""
TRIES = 3
SILENT_SECONDS = 20.0
"""Beyond its limit of time: a host that does not even say how it is."""
LONGEST_PATH = 107
"""Of a Unix socket, bytes: see unix(7)."""
WAITING = 128
"""Services that wait to be let in."""
ANSWER_SECONDS = 1.0
"""A host that does not say so soon how it is, is at work."""
ENGINE_LIBRARIES = {
    "onnxruntime": ["onnxruntime"],
    "openvino": ["openvino"],
    "pytorch": ["torch"],
    "transformers": [
        "torch",
        "transformers",
        "transformers.modeling_utils",
        "transformers.models.auto.modeling_auto",
        "transformers.models.auto.tokenization_auto",
    ],
}
"""What takes long to import of engines that open fast. Others import for themselves what takes them far longer to open.

transformers imports nothing of itself before it is asked for it: opening a model took 5.9 s the first time, 0.05 the second.
"""


@dataclass(eq=False, slots=True)
class _Kept:
    """One host."""

    id: str
    work: HostWork
    path: Path
    expected_bytes: int
    """What it will take, as far as is known."""
    loaded_at: float = 0.0
    asked: deque[asyncio.Future[control.Status]] = field(default_factory=deque)
    """Who waits for an answer of it, in their order."""
    holders: list[str] = field(default_factory=list)
    """Those that acquired it and have not released it, as often as they did."""
    started: asyncio.Task[Forked] | None = None
    process: Forked | None = None
    channel: HostChannel[control.FromHost] | None = None
    status: control.Status = field(default_factory=control.Status)
    has_spoken: bool = False
    listener: socket.socket | None = None
    """Until it has spoken: who connects waits there, for the next one if this one has to be given up."""
    tries: int = 0
    """How many processes were started for it."""
    told_at: float = 0.0
    """When it last said how it is."""
    why: str | None = None
    """It was killed for this."""
    is_leaving: bool = False
    """It gets no new holders."""
    ended: asyncio.Future[HostEnd] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def unlisten(self) -> None:
        """Its process alone lets in who connects."""
        if self.listener is not None:
            self.listener.close()
            self.listener = None


@dataclass(frozen=True, slots=True)
class _Lodger:
    """One host as the household sees it."""

    keeper: LocalKeeper
    kept: _Kept

    @property
    def id(self) -> str:
        """See `Lodger`."""
        return self.kept.id

    @property
    def model(self) -> str:
        """See `Lodger`."""
        return self.kept.work.model

    @property
    def name(self) -> str:
        """See `Lodger`."""
        return self.kept.work.name

    @property
    def kind(self) -> str:
        """See `Lodger`."""
        return self.kept.work.kind

    @property
    def expected_bytes(self) -> int:
        """See `Lodger`."""
        return self.kept.expected_bytes

    @property
    def is_loading(self) -> bool:
        """See `Lodger`."""
        return not self.kept.status.is_ready

    @property
    def loaded_at(self) -> float:
        """See `Lodger`."""
        return self.kept.loaded_at

    @property
    def loaded_bytes(self) -> int:
        """See `Lodger`."""
        return self.kept.status.loaded_bytes

    def measure(self) -> int:
        """See `Lodger`."""
        return 0 if self.kept.process is None else share_bytes(self.kept.process.pid)

    async def use(self) -> HostUse:
        """See `Lodger`."""
        status = await self.keeper.asked(self.kept, control.Look())
        if status is None or self.kept.is_leaving:
            return HostUse(1, None)
        return HostUse(status.in_flight, time.monotonic() - status.idle_seconds if status.is_used else None)

    async def leave(self, reason: str) -> bool:
        """See `Lodger`."""
        return await self.keeper.depart(self.kept.id, reason)


class LocalKeeper:
    """See `Keeper`. All methods are for one event loop."""

    def __init__(
        self,
        settings: Settings,
        memory_bytes: int | None,
        *,
        budget_bytes: int | None = None,
        store: Store | None = None,
        stays: Callable[[], Mapping[str, Stay]] = dict,
        engines: Callable[[], Collection[str]] = tuple,
    ) -> None:
        """`memory_bytes` are one host's at most, `budget_bytes` of all together. `store` is the one of the settings' home;
        `stays` reads what deployed models want of the memory, `engines` which ones they need; both block.
        """
        self._store = store or Store(settings.home / "artifacts")
        sizes = HostSizes(settings.home, self._store.get, threads=settings.threads)
        self.household = Household(
            budget_bytes, sizes, stays, lambda: [_Lodger(self, kept) for kept in self._hosts.values() if not kept.ended.done()]
        )
        self._engines = engines
        self._libraries: list[str] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._turns: dict[str, asyncio.Lock] = {}
        self._settings = settings
        self._memory_bytes = memory_bytes
        self._folder: Path | None = None
        self._hosts: dict[str, _Kept] = {}
        self._over: dict[str, _Kept] = {}
        """Those that ended while somebody held them, who will ask why."""
        self._gone: set[str] = set()
        """Holders that may have asked for a host that they would not be there to release."""
        self._timer: asyncio.TimerHandle | None = None

    async def acquire(self, work: HostWork, held: Collection[str], may_push: bool = True, holder: str = "") -> HostAddress:
        """See `Keeper`. `holder`: who asks, where there are several; `forget` releases what it holds."""
        kept = self._fit(work, held)
        is_new, waited = False, 0.0
        if kept is None:
            began = time.monotonic()
            async with self._turns.setdefault(work.name, asyncio.Lock()):  # two who ask for the same must not both make room
                self._check_holder(holder)
                kept = self._fit(work, held)
                if kept is None:
                    async with self.household.admitted(work.name, work.kind, may_push) as size:
                        kept = self._begin(work, size)
                        is_new, waited = True, time.monotonic() - began
        kept.holders.append(holder)
        assert kept.started is not None
        try:
            self._check_holder(holder)
            process = await asyncio.shield(kept.started)
        except BaseException:
            await self.release(kept.id, holder)
            raise
        return HostAddress(kept.id, str(kept.path), process.pid, is_new, waited)

    def _check_holder(self, holder: str) -> None:
        """Raise ServiceError for one that went while it waited: nobody would release what it is given."""
        if holder in self._gone:
            raise ServiceError("the worker that asked for this process has ended")

    def _fit(self, work: HostWork, held: Collection[str]) -> _Kept | None:
        fit = (one for one in self._hosts.values() if one.work == work and one.id not in held and not one.is_leaving)
        return next(fit, None)

    async def release(self, host_id: str, holder: str = "") -> None:
        """See `Keeper`. Returns once the host has ended, where nobody holds it any more."""
        kept = self._hosts.get(host_id) or self._over.get(host_id)
        if kept is None:
            return
        if holder in kept.holders:
            kept.holders.remove(holder)
        if not kept.holders and self._over.pop(kept.id, None) is None:
            await self._end(kept)

    async def forget(self, holder: str) -> None:
        """A holder is gone: release all that it held, and give it nothing more."""
        self._gone.add(holder)
        for kept in [*self._hosts.values(), *self._over.values()]:
            while holder in kept.holders:
                await self.release(kept.id, holder)

    async def ended(self, host_id: str) -> HostEnd:
        """See `Keeper`."""
        kept = self._hosts.get(host_id) or self._over.get(host_id)
        if kept is None:
            return HostEnd("ended", False)
        kept.is_leaving = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_SECONDS):
                return await asyncio.shield(kept.ended)
        self._kill(kept, "was ended: it hung up on those who asked it, or could not be understood")
        return await asyncio.shield(kept.ended)

    async def depart(self, host_id: str, reason: str) -> bool:
        """Have a host ask its holders to let go, and wait until it is over; what is asked until they do is answered.

        False: it has a request, or does not say that it has none; it stays.
        """
        kept = self._hosts.get(host_id)
        if kept is None:
            return True
        if kept.is_leaving:
            return False
        kept.is_leaving = True  # nobody else is given it meanwhile
        status = await self.asked(kept, control.Depart(reason))
        if status is None or not status.is_leaving:
            kept.is_leaving = (
                kept.status.is_leaving or not kept.holders or kept.why is not None
            )  # it may have been ended meanwhile
            return False
        try:
            async with asyncio.timeout(END_SECONDS):
                await asyncio.shield(kept.ended)
        except TimeoutError:  # a request came in that moment, and takes its time
            return False
        return True

    async def asked(self, kept: _Kept, question: control.Look | control.Depart) -> control.Status | None:
        """How a host is; None where it is not up, or does not say."""
        if kept.channel is None or not kept.channel.is_open or not kept.status.is_ready:
            return None
        answer: asyncio.Future[control.Status] = asyncio.get_running_loop().create_future()
        kept.asked.append(answer)
        kept.channel.send(question)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ANSWER_SECONDS):
                return await answer
        return None

    async def readings(self) -> list[HostReading]:
        """See `Keeper`."""
        running = [(kept, kept.process.pid) for kept in self._hosts.values() if kept.process is not None]
        sizes = await asyncio.to_thread(lambda: [share_bytes(pid) for _, pid in running])
        return [HostReading(kept.id, kept.work, pid, size) for (kept, pid), size in zip(running, sizes, strict=True)]

    async def close(self) -> None:
        """End every host."""
        await asyncio.gather(*(self._end(kept) for kept in list(self._hosts.values())))
        if self._timer is not None:
            self._timer.cancel()
        if self._watching is not None:
            self._watching.cancel()
        if self._folder is not None:
            await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)
            self._folder = None

    def _begin(self, work: HostWork, expected_bytes: int) -> _Kept:
        if self._folder is None:
            self._folder = _private_folder()
        host_id = secrets.token_hex(4)
        kept = self._hosts[host_id] = _Kept(host_id, work, self._folder / host_id, expected_bytes)
        kept.started = asyncio.create_task(self._start(kept))
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look)
        if self._watching is None:
            self._watching = asyncio.get_running_loop().create_task(self.household.watch(), context=Context())
        return kept

    async def _start(self, kept: _Kept) -> Forked:
        ours: socket.socket | None = None
        kept.tries += 1
        try:
            if kept.listener is None:
                kept.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                kept.listener.bind(str(kept.path))
                kept.listener.listen(WAITING)
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                process = await apart("forking", self._fork, kept.listener, theirs, kept.work)
        except BaseException as error:  # whatever it was, nothing of it may stay
            if ours is not None:
                ours.close()
            self._forget(kept, HostEnd(f"could not be started: {words(error)}", True))
            if isinstance(error, Exception) and not isinstance(error, MaasdamError):
                raise ServiceError(f"a process for {kept.work.name} could not be started: {error}") from error
            raise
        kept.process, kept.told_at = process, time.monotonic()
        kept.channel = HostChannel(ours, control.FromHost, partial(self._hear, kept), lambda why: None)
        asyncio.get_running_loop().add_reader(process.sentinel, self._bury, kept)
        if kept.why is not None:  # it was given up meanwhile
            process.strike()
        return process

    def _fork(self, listener: socket.socket, to_keeper: socket.socket, work: HostWork) -> Forked:
        from maasdam.serving.hosts.host import host

        if self._libraries is None:  # it imports once, also for those to come
            try:
                engines = {work.engine, *self._engines()}
            except MaasdamError:  # the catalog is away for a while: others import for themselves
                engines = {work.engine}
            own = ["maasdam.serving.hosts.host", "maasdam.engines.batching"]
            self._libraries = [*own, *(library for one in sorted(engines) for library in ENGINE_LIBRARIES.get(one, ()))]
        try:
            proof = self._store.proof(work.digest)
        except MaasdamError:  # loading finds out, and says it
            proof = None
        given = (listener, to_keeper, work, self._settings, self._memory_bytes, proof)
        name = f"maasdam-host {work.name}"
        return Forked(host, given, name=name, memory_bytes=self._memory_bytes, outlives=True, libraries=self._libraries)

    def _hear(self, kept: _Kept, status: control.FromHost, memory: Any) -> None:
        now = time.monotonic()
        if status.is_ready and not kept.status.is_ready:
            kept.loaded_at = now
        kept.status, kept.told_at, kept.has_spoken = status, now, True
        kept.unlisten()
        kept.is_leaving |= status.is_leaving  # it may have said nothing in time when it was asked to
        if status.is_answer and kept.asked:
            answer = kept.asked.popleft()
            if not answer.done():
                answer.set_result(status)

    def _look(self) -> None:
        """At every host's memory and time."""
        self._timer = None
        for kept in list(self._hosts.values()):
            why = self._over_limit(kept)
            if why is not None and kept.why is None:
                self._kill(kept, why)
        if self._hosts:
            self._timer = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look)

    def _over_limit(self, kept: _Kept) -> str | None:
        if kept.process is None:
            return None
        most, seconds = self._memory_bytes, self._settings.host_stall_seconds
        if most is not None and kept.process.resident_bytes > most:
            return f"was ended: it took more memory than its limit of {most / 1e9:,.1f} GB (setting host_memory_bytes)"
        begins = SPEAKS_SECONDS * 2 ** (kept.tries - 1)
        if not kept.has_spoken and time.monotonic() - kept.told_at > begins:
            return f"was ended: it did not begin within {begins:.0f} s"
        silent = time.monotonic() - kept.told_at - SILENT_SECONDS
        longest = seconds if kept.status.is_ready else self._settings.load_seconds
        if seconds and (kept.status.stuck_seconds > seconds or silent > longest):
            return f"was ended: nothing came of its work for {seconds:,.0f} s (setting host_stall_seconds)"
        return None

    def _kill(self, kept: _Kept, why: str) -> None:
        kept.why = kept.why or why
        if kept.process is not None and not kept.ended.done():
            kept.process.strike()

    async def _end(self, kept: _Kept) -> None:
        """Nobody holds it any more."""
        kept.is_leaving = True
        if kept.started is not None:
            with contextlib.suppress(Exception):
                await asyncio.shield(kept.started)
        if kept.channel is None or kept.ended.done():
            return
        kept.channel.send(control.End())
        try:
            async with asyncio.timeout(END_SECONDS):
                await asyncio.shield(kept.ended)
        except TimeoutError:
            self._kill(kept, "was ended: it did not end by itself")
            await asyncio.shield(kept.ended)

    def _bury(self, kept: _Kept) -> None:
        """Its process has ended."""
        process = kept.process
        assert process is not None
        asyncio.get_running_loop().remove_reader(process.sentinel)
        how = process.end()
        if kept.channel is not None:
            if kept.channel.is_open:  # the fork server is gone, which tells how others ended: it may run on
                process.strike()
            kept.channel.close()
        if not kept.has_spoken and kept.why is not None and kept.tries < TRIES and not kept.is_leaving:
            log.warning("process %d for model %s %s; another is tried", process.pid, kept.work.name, kept.why)
            kept.process = kept.why = None
            kept.started = asyncio.get_running_loop().create_task(self._start(kept))
            kept.started.add_done_callback(lambda task: task.cancelled() or task.exception())  # who waits hears of it otherwise
            return
        was_asked = not kept.holders and kept.why is None
        self._forget(kept, HostEnd(kept.why or how, not was_asked))

    def _forget(self, kept: _Kept, end: HostEnd) -> None:
        self._hosts.pop(kept.id, None)
        kept.unlisten()
        if kept.holders:
            self._over[kept.id] = kept
        kept.path.unlink(missing_ok=True)
        if not kept.ended.done():
            kept.ended.set_result(end)


def _private_folder() -> Path:
    """A folder that is this user's alone, whose path leaves room for a socket's name."""
    folder = tempfile.mkdtemp(prefix="maasdam-hosts-")
    if len(os.fsencode(folder)) > LONGEST_PATH - 20:
        Path(folder).rmdir()
        folder = tempfile.mkdtemp(prefix="maasdam-hosts-", dir="/tmp")
    return Path(folder)
