"""A worker and its supervisor: what is lost between them is said again, and nobody waits for one that can't begin."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from maasdam.operations.fleet import Standing
from maasdam.settings import Settings
from maasdam.workers import supervisor, worker
from maasdam.workers.channel import Channel
from maasdam.workers.messages import Adopt, Message, Opened, Release, Say, Told
from maasdam.workers.supervisor import Supervisor, Worker
from maasdam.workers.worker import Assignment, Lead
from tests.waiting import until

LOADED = Standing(True, None, (("one", 1, "ready", None, 1),))


async def nothing(message: Message) -> Told:
    return Told()


async def led(take: Callable[[Message], Awaitable[Told]], server: Any = None) -> tuple[Lead, Channel]:
    """A worker's lead, whose supervisor is `take`."""
    ours, theirs = socket.socketpair()
    lead = Lead(SimpleNamespace(channel=ours, listeners=[ours, ours], sockets=[]))  # type: ignore[arg-type]  # what is read of it
    there = Channel(take)
    await there.open(theirs)
    await lead.connect(server)
    return lead, there


async def test_what_the_supervisor_may_not_have_heard_is_said_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "standing", lambda service: LOADED)
    monkeypatch.setattr(worker, "PASSING_SECONDS", 0.01)
    heard: list[Message] = []
    goes_on = asyncio.Event()

    async def take(message: Message) -> Told:
        heard.append(message)
        if len(heard) == 1:
            await goes_on.wait()  # it hangs once
        return Told()

    lead, _ = await led(take)
    lead.service = None  # type: ignore[assignment]  # its standing is made up
    lead._is_open = True
    lead.tick()
    await until(lambda: heard)
    assert not lead.knows_us
    await until(lambda: (lead.tick(), lead.knows_us)[1])
    said = len(heard)
    lead.tick()
    assert said >= 2 and set(heard) == {Say(LOADED)} and not lead._sayings
    goes_on.set()


class Server:
    """Takes its time until it listens."""

    should_exit = False

    def __init__(self) -> None:
        self.goes_on = asyncio.Event()
        self.listening = 0

    async def listen(self, listener: socket.socket) -> socket.socket:
        await self.goes_on.wait()
        self.listening += 1
        return listener

    def unlisten(self, server: socket.socket) -> None:
        self.listening -= 1
        server.close()


async def test_a_listener_that_is_released_before_anybody_listened_is_not_kept() -> None:
    server = Server()
    lead, there = await led(nothing, server)
    told = [asyncio.ensure_future(there.ask(message, 30)) for message in (Adopt(1), Release(1), Adopt(1))]
    await asyncio.sleep(0.01)
    server.goes_on.set()
    await asyncio.gather(*told)
    assert server.listening == 1 and list(lead._adopted) == [1]
    await there.ask(Release(1), 30)
    assert server.listening == 0


def supervising(on_ready: Callable[[Sequence[Standing]], None]) -> Supervisor:
    nobody: Any = SimpleNamespace(settings=Settings())
    given = Assignment(Settings(), None, False, "", Path(), (nobody, nobody), None, nobody)  # two seats; nobody is started
    return Supervisor(nobody, given, on_ready)


async def test_ready_is_told_by_nobody_where_no_worker_came_up_and_again_where_it_could_not_be_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(supervisor, "ALIVE_SECONDS", 0.01)
    heard: list[Sequence[Standing]] = []

    def on_ready(standings: Sequence[Standing]) -> None:
        heard.append(standings)
        if len(heard) == 1:
            raise KeyError("a version that was removed just now")

    service = supervising(on_ready)
    for seat in service._seats:
        seat.crashes.extend([1.0, 2.0, 3.0])
    watching = asyncio.ensure_future(service._watch(on_ready))
    await asyncio.sleep(0.2)
    assert not heard and not watching.done()
    for seat in service._seats:
        seat.crashes.clear()
        seat.worker = Worker(seat, "0", Channel(nothing), standing=LOADED, is_open=True)
    await watching
    assert heard == [[LOADED] * 2] * 2


async def test_the_connections_of_one_that_dies_of_its_beginning_are_taken_by_another() -> None:
    service = supervising(lambda standings: None)
    notes: list[tuple[int, Message]] = []

    def note(number: int, message: Message) -> None:
        notes.append((number, message))

    for seat in service._seats:
        seat.worker = Worker(seat, str(seat.number), Channel(nothing))
        seat.worker.channel.note = partial(note, seat.number)  # type: ignore[method-assign]  # where it goes is told
        service._workers.add(seat.worker)
    well, ill = (seat.worker for seat in service._seats)
    assert well is not None and ill is not None
    await service._take(well, Opened())
    assert (0, Adopt(1)) not in notes
    service._is_stopping = True  # no successor is started
    ill.channel.closed.set()
    await service._look_after(ill)
    assert (0, Adopt(1)) in notes
