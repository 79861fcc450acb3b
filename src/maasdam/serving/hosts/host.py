"""In an engine host: one replica, opened by the same code as in a service's own process, and those who ask it.

    keeper -fork server-> host process: Loader -> replica
    service ==packets==> Ask -> replica.submit or .stream -> Whole | Piece ... | Failed

It believes what services ask. It ends when its keeper says so, or when keeper and services are all gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maasdam.artifacts.store import Proof, Store
from maasdam.children.failures import is_out_of_memory
from maasdam.core import ANONYMOUS, Chunk, Request
from maasdam.engines.batching_kept import Findings
from maasdam.errors import LimitExceeded
from maasdam.serving.executions import Executions
from maasdam.serving.hosts import control, wire
from maasdam.serving.hosts.channel import HostChannel, peers_user
from maasdam.serving.hosts.keeper import HostWork
from maasdam.serving.hosts.watch import HostWatch
from maasdam.serving.loading import Loader
from maasdam.settings import Settings
from maasdam.tasks.torchless import without_torch
from maasdam.telemetry.energy import open_meter
from maasdam.telemetry.logs import configure
from maasdam.telemetry.meter import CpuMeter

if TYPE_CHECKING:
    from maasdam.serving.replica import Replica

log = logging.getLogger("maasdam.serving")

TELL_SECONDS = 0.1
"""What has run is told so long after it ran, at most."""
CLOSE_SECONDS = 2.0
"""An engine that has not closed by then goes with its process."""


def host(
    listener: socket.socket,
    to_keeper: socket.socket,
    work: HostWork,
    settings: Settings,
    limit: int | None,
    proof: Proof | None = None,
) -> None:
    """Run one host until it is over; `limit` is its memory's, bytes. `proof`: its keeper has hashed the model's files."""
    configure(settings.log_level)
    without_torch()  # as the service itself; what needs torch has it by now, or asks for it
    store = Store(settings.home / "artifacts")
    if proof is not None:
        store.believe(work.digest, proof)
    _Host(listener, to_keeper, work, settings, limit, store).run()


class _Host:
    """One process."""

    def __init__(
        self,
        listener: socket.socket,
        to_keeper: socket.socket,
        work: HostWork,
        settings: Settings,
        limit: int | None,
        store: Store,
    ) -> None:
        self._store = store
        self._listener = listener
        self._work = work
        self._settings = settings
        self._limit = limit
        self._to_keeper = to_keeper
        self._callers: list[_Caller] = []
        self._is_keeper_gone = self._is_ending = False
        self._replica: Replica | None = None
        self._greeting: wire.Ready | wire.Unable | None = None
        self._goodbye: wire.Goodbye | None = None
        self._used = time.monotonic()
        self._is_used = self._has_progressed = False
        self._stuck = 0.0
        self._told = Executions()
        self._tells = False
        self._held: int | None = None
        self._loaded_bytes = 0

    def run(self) -> None:
        """Until it is over."""
        with contextlib.suppress(ImportError):
            import uvloop

            return uvloop.run(self._run())
        return asyncio.run(self._run())

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        self._loop.add_signal_handler(signal.SIGTERM, self._look_whether_over)  # with a keeper, that is the keeper's to say
        self._keeper = HostChannel(self._to_keeper, control.ToHost, self._hear_keeper, self._lose_keeper)
        tidy_up = partial(_tidy_up, self._listener.getsockname())
        self._watch = HostWatch(self._to_keeper, self._status, self._handles, tidy_up)
        self._keeper.send(self._status(0.0))  # before anything that may hang: the keeper waits for no other's first word
        self._listener.setblocking(False)
        self._loop.add_reader(self._listener, self._accept)
        loading = asyncio.create_task(self._load())
        try:
            await self._over.wait()
        finally:
            self._loop.remove_reader(self._listener)
            if self._is_keeper_gone:
                tidy_up()
            loading.cancel()
            for caller in list(self._callers):
                caller.channel.close()
            if self._replica is not None:
                with contextlib.suppress(Exception):
                    await asyncio.wait_for(asyncio.to_thread(self._replica.close), CLOSE_SECONDS)
            os._exit(0)  # threads that hang are waited for by nobody

    def _handles(self) -> list[int]:
        return [caller.channel.fileno() for caller in self._callers]

    async def _load(self) -> None:
        settings = self._settings
        meter = CpuMeter(open_meter(settings.watts_per_core))
        meter.exclude_this_thread()
        try:
            load = Loader(self._store, settings, Findings(settings.home), meter=meter)
            self._replica = await load(self._work, self._work.options)
        except Exception as error:
            why = wire.wrong(error)
            if self._limit is not None and is_out_of_memory(error):
                sentence = f"the model needs more memory than a host's limit of {self._limit / 1e9:,.1f} GB"
                why = wire.Wrong(LimitExceeded.__name__, f"{sentence} (setting host_memory_bytes)")
            log.info("model %s did not load: %s", self._work.name, error)
            self._greet(wire.Unable(why))
            return
        self._used = time.monotonic()
        self._loaded_bytes = self._watch.measure()
        counts = self._replica.executions is not None
        self._greet(wire.Ready(self._replica.facts, counts, self._replica.load_seconds))
        self._keeper.send(self._status(0.0))

    def _greet(self, greeting: wire.Ready | wire.Unable) -> None:
        self._greeting = greeting
        for caller in self._callers:
            self._welcome(caller)

    def _welcome(self, caller: _Caller) -> None:
        if self._greeting is not None:
            caller.channel.send(self._greeting)
        if self._watch.memory_bytes is not None:
            caller.channel.send(wire.Holds(self._watch.memory_bytes))
        if self._goodbye is not None:
            caller.channel.send(self._goodbye)

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        if peers_user(sock) != os.getuid():
            sock.close()
            return
        caller = _Caller(self, sock)
        self._callers.append(caller)
        self._welcome(caller)

    def leave(self, caller: _Caller) -> None:
        """A service hung up."""
        self._callers.remove(caller)
        self._look_whether_over()

    def _hear_keeper(self, message: control.ToHost, memory: wire.Memory) -> None:
        if isinstance(message, control.End):
            self._is_ending = True
            self._look_whether_over()
            return
        if isinstance(message, control.Depart) and not self._in_flight and self._goodbye is None:
            self._goodbye = wire.Goodbye(message.reason)
            for caller in self._callers:
                caller.channel.send(self._goodbye)
        status = self._status(0.0)
        status.is_answer = True
        self._keeper.send(status)

    def _lose_keeper(self, why: str) -> None:
        self._is_keeper_gone = True
        self._look_whether_over()

    def _look_whether_over(self) -> None:
        if (self._is_ending and not self._in_flight) or (self._is_keeper_gone and not self._callers):
            self._over.set()

    @property
    def _in_flight(self) -> int:
        return sum(len(caller.asked) for caller in self._callers)

    def begin(self, caller: _Caller, ask: wire.Ask, memory: wire.Memory) -> Callable[[], object]:
        """Ask the replica. Raises what it raises, NotReady, Garbled."""
        self._used = time.monotonic()
        self._is_used = True
        replica = self._replica
        if replica is None:
            raise wire.Garbled("asked before it had loaded")
        deadline = None if ask.seconds is None else self._used + ask.seconds
        payloads = tuple(wire.payload_of(said, memory) for said in ask.payloads)
        request = Request(ask.id, self._work.name, payloads, replace(ANONYMOUS, key_id=ask.owner or None), deadline=deadline)
        if ask.in_pieces:
            return replica.stream(request, partial(caller.hear, ask.number))
        return replica.submit(request, partial(caller.done, ask.number))

    def progressed(self, is_over: bool) -> None:
        """Something came of a request."""
        self._has_progressed = True
        if is_over:
            self._used = time.monotonic()
            if self._is_ending:
                self._look_whether_over()
            if not self._tells:
                self._tells = True
                self._loop.call_later(TELL_SECONDS, self._tell)

    def _tell(self) -> None:
        """What has run goes to one of the services, or it would count twice where they are added up."""
        self._tells = False
        if not self._callers:
            return
        replica = self._replica
        now = None if replica is None else replica.executions
        if replica is not None and now is not None:
            since = now.since(self._told)
            self._told.join(since)
            figures = (since.items, since.rows, since.batches, since.seconds, since.waited, since.last)
            self._callers[0].channel.send(wire.HasRun(replica.waiting, *figures, since.by_rows))
        held = self._watch.memory_bytes
        if held is not None and held != self._held:
            self._held = held
            for caller in self._callers:
                caller.channel.send(wire.Holds(held))

    def _status(self, seconds: float) -> control.Status:
        """From the watch's thread too: looks only."""
        in_flight = self._in_flight
        if self._has_progressed:
            self._has_progressed, self._stuck = False, 0.0
        elif in_flight:
            self._stuck += seconds
        replica: Any = self._replica
        since = None if replica is None else replica.running_since
        running = 0.0 if since is None else time.perf_counter() - since
        idle = 0.0 if in_flight else time.monotonic() - self._used
        stuck = max(self._stuck if in_flight else 0.0, running, 0.0)
        is_ready = isinstance(self._greeting, wire.Ready)
        is_leaving = self._goodbye is not None
        return control.Status(in_flight, idle, stuck, is_ready, self._is_used, is_leaving, loaded_bytes=self._loaded_bytes)


def _tidy_up(path: str) -> None:
    """What the keeper would have removed; the folder by the last one."""
    with contextlib.suppress(OSError):
        Path(path).unlink()
        Path(path).parent.rmdir()


class _Caller:
    """One service that asks."""

    def __init__(self, of: _Host, sock: socket.socket) -> None:
        self._host = of
        self.channel: HostChannel[wire.ToHost] = HostChannel(
            sock, wire.ToHost, self._heard, self._lost, trusts=True, waits=True
        )
        self.asked: dict[int, Callable[[], object] | None] = {}

    def done(self, number: int, outcome: list[Chunk] | BaseException) -> None:
        """A whole answer, or none."""
        if isinstance(outcome, BaseException):
            self._fail(number, outcome)
            return
        parts: list[wire.AnswerPart] = []
        body: list[wire.Buffer] = []
        at = 0
        try:
            for chunk in outcome:
                part, body, at = wire.part_given(chunk, body, at)
                parts.append(part)
            self._say(number, wire.WholeAnswer(number, parts), body, at, is_last=True)
        except Exception as error:
            self._fail(number, error)

    def hear(self, number: int, chunk: Chunk | BaseException) -> None:
        """A piece of an answer, or its end."""
        if isinstance(chunk, BaseException):
            self._fail(number, chunk)
            return
        try:
            part, body, size = wire.part_given(chunk)
            self._say(number, wire.AnswerPiece(number, part), body, size, is_last=chunk.is_last)
        except Exception as error:
            self._fail(number, error)

    def _fail(self, number: int, error: BaseException) -> None:
        self._say(number, wire.Failed(number, wire.wrong(error)), (), 0, is_last=True)

    def _say(self, number: int, message: Any, body: Any, size: int, is_last: bool) -> None:
        if is_last:
            self.asked.pop(number, None)
        self.channel.send(message, body, size, at_once=not self.asked)
        self._host.progressed(is_last)

    def _heard(self, message: wire.ToHost, memory: wire.Memory) -> None:
        if isinstance(message, wire.Stop):
            cancel = self.asked.pop(message.number, None)
            if cancel is not None:
                cancel()
        elif isinstance(message, wire.Ask):
            self.asked[message.number] = None
            try:
                cancel = self._host.begin(self, message, memory)
            except Exception as error:
                self._fail(message.number, error)
                return
            if message.number in self.asked:
                self.asked[message.number] = cancel

    def _lost(self, why: str) -> None:
        for cancel in self.asked.values():
            if cancel is not None:
                cancel()
        self.asked.clear()
        self._host.leave(self)
