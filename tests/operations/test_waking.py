"""A request for what is asleep waits for it under its own deadline, and a replica that leaves costs nobody an answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any

import pytest
from tests.fakes import FakeOutbox
from tests.operations.test_infer import Says, asked, itself, the_first
from tests.waiting import until

from maasdam.core import Chunk, Entry, Facts, Request
from maasdam.errors import Asleep, DeadlineExceeded, InvalidInput, Left, NotReady
from maasdam.operations.infer import Inference
from maasdam.serving.replica import Cancel, Done, Hear
from maasdam.serving.router import Lease

BARD = SimpleNamespace(model="bard", version=3, task="text-generation")


class Leaving(Says):
    """Says goodbye to whoever asks."""

    def submit(self, request: Request, done: Done) -> Cancel:
        asyncio.get_running_loop().call_soon(done, Left("it left"))
        return lambda: ()

    def stream(self, request: Request, hear: Hear) -> Callable[[], object]:
        asyncio.get_running_loop().call_soon(hear, Left("it left"))
        return lambda: None


class Sleeping:
    """Routes to a model that is loaded once `gate` opens: to each of `replicas` in turn, the last one for ever."""

    def __init__(self, *replicas: Says, is_asleep: bool = True) -> None:
        self.replicas = list(replicas)
        self.is_asleep = is_asleep
        self.gate = asyncio.Event()
        self.error: Exception | None = None
        self.woken_times = 0

    def lease(self, name: str) -> Lease:
        if self.is_asleep:
            raise Asleep("asleep", name, SimpleNamespace(version=BARD))
        replica = self.replicas[0]
        if isinstance(replica, Leaving):
            self.replicas.pop(0)
            self.is_asleep = True
        return Lease(BARD, replica)

    async def woken(self, asleep: Asleep) -> Lease:
        self.woken_times += 1
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        self.is_asleep = False
        return self.lease(asleep.name)


def over(*replicas: Says, is_asleep: bool = True) -> tuple[Inference, Sleeping, FakeOutbox]:
    routes, outbox = Sleeping(*replicas, is_asleep=is_asleep), FakeOutbox()
    return Inference(routes, outbox), routes, outbox


async def streamed(infer: Inference, request: Request) -> Sequence[Chunk]:
    async with aclosing(infer.stream(request, itself)) as chunks:
        return [chunk async for chunk in chunks]


async def answered(infer: Inference, request: Request, is_stream: bool) -> None:
    if is_stream:
        await streamed(infer, request)
    else:
        await infer.whole(request, the_first)


BOTH = pytest.mark.parametrize("is_stream", [False, True])


@BOTH
async def test_it_waits_until_the_model_is_loaded(is_stream: bool) -> None:
    infer, routes, outbox = over(Says("a", "b"))
    task = asyncio.create_task(answered(infer, asked(), is_stream))
    await until(lambda: routes.woken_times)
    assert not outbox.rows
    routes.gate.set()
    await task
    assert [(row.status, row.version) for row in outbox.rows] == [(200, 3)]
    assert routes.replicas[0].in_flight == 0


@BOTH
async def test_the_deadline_holds_while_it_waits(is_stream: bool) -> None:
    infer, _, outbox = over(Says("a"))
    with pytest.raises(DeadlineExceeded):
        await answered(infer, asked(time.monotonic() + 0.02), is_stream)
    assert [(row.status, row.model, row.version) for row in outbox.rows] == [(504, "bard", 3)]


@BOTH
async def test_why_a_load_failed_is_told_and_noted(is_stream: bool) -> None:
    infer, routes, outbox = over(Says("a"))
    routes.error = NotReady("model 'bard:3' failed to load: the file is cut")
    routes.gate.set()
    with pytest.raises(NotReady, match="the file is cut"):
        await answered(infer, asked(), is_stream)
    assert [(row.status, row.version) for row in outbox.rows] == [(503, 3)]


@BOTH
async def test_who_goes_away_waits_no_longer(is_stream: bool) -> None:
    infer, routes, outbox = over(Says("a"))
    task = asyncio.create_task(answered(infer, asked(), is_stream))
    await until(lambda: routes.woken_times)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [row.status for row in outbox.rows] == [499]


async def test_a_wrong_door_wakes_nobody() -> None:
    infer, routes, outbox = over(Says("a"))
    request = Request("r1", "bard", asked().payloads, asked().caller, "/v1/images/classifications", None)
    with pytest.raises(InvalidInput):
        await infer.whole(request, the_first)
    assert not routes.woken_times and len(outbox.rows) == 1


@BOTH
async def test_a_replica_that_leaves_is_asked_again_of_another(is_stream: bool) -> None:
    infer, routes, outbox = over(Leaving(), Leaving(), Says("a"), is_asleep=False)
    routes.gate.set()
    leaving = list(routes.replicas)
    await answered(infer, asked(), is_stream)
    assert [row.status for row in outbox.rows] == [200] and routes.woken_times == 2
    assert [replica.in_flight for replica in leaving] == [0, 0, 0]


class Called:
    """What `begin` tells."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def write(self, chunks: list[Chunk], entry: Entry, written: Any) -> None:
        written(chunks[0].value.text)

    def check(self, facts: Facts) -> None:
        pass


async def test_at_once_what_is_asleep_goes_the_long_way_and_leaves_no_row() -> None:
    infer, routes, outbox = over(Says("a"))
    called = Called()
    with pytest.raises(Asleep):
        infer.begin(asked(), called.check, called.write, called.told.append)
    assert not outbox.rows and not routes.woken_times


async def test_at_once_a_replica_that_leaves_is_asked_again_of_another() -> None:
    infer, routes, outbox = over(Leaving(), Says("a"), is_asleep=False)
    called = Called()
    infer.begin(asked(time.monotonic() + 60), called.check, called.write, called.told.append)
    await until(lambda: routes.woken_times)
    assert not called.told
    routes.gate.set()
    await until(lambda: called.told)
    assert called.told == ["a"] and [row.status for row in outbox.rows] == [200]
    assert routes.replicas[0].in_flight == 0


@pytest.mark.parametrize("goes_away", [True, False])
async def test_at_once_nobody_waits_for_ever_for_another(goes_away: bool) -> None:
    infer, routes, outbox = over(Leaving(), Says("a"), is_asleep=False)
    called = Called()
    deadline = time.monotonic() + (60 if goes_away else 0.02)
    cancel = infer.begin(asked(deadline), called.check, called.write, called.told.append)
    await until(lambda: routes.woken_times)
    if goes_away:
        cancel()
    await until(lambda: outbox.rows)
    assert [row.status for row in outbox.rows] == [499 if goes_away else 504]
    assert len(called.told) == (0 if goes_away else 1)


class Gone(Says):
    """Has left, which its router hears in the next turn."""

    def __init__(self, routes: Sleeping) -> None:
        super().__init__()
        self.routes, self.times = routes, 0

    def submit(self, request: Request, done: Done) -> Cancel:
        self.times += 1
        assert self.times < 9, "it is asked again and again, and its router is never heard"
        asyncio.get_running_loop().call_soon(self.routes.replicas.__setitem__, slice(None), [Says("a")])
        raise Left("it left")


async def test_one_that_has_left_is_asked_again_only_once_its_router_could_hear_of_it() -> None:
    infer, routes, outbox = over(is_asleep=False)
    routes.replicas = [Gone(routes)]
    await infer.whole(asked(), the_first)
    assert [row.status for row in outbox.rows] == [200]
