"""A channel: what is sent first is handled first, and nobody waits for who is gone."""

from __future__ import annotations

import asyncio
import socket

import pytest

from maasdam.errors import StorageFailure
from maasdam.operations.fleet import Busy, Count, Follow, Standing
from maasdam.serving.executions import Executions
from maasdam.workers.channel import Channel, Handle
from maasdam.workers.messages import Message, Obey, Ping, Say, Tell, Told


async def pair(here: Handle, there: Handle) -> tuple[Channel, Channel]:
    first, second = socket.socketpair()
    channels = Channel(here), Channel(there)
    for channel, end in zip(channels, (first, second), strict=True):
        await channel.open(end)
    return channels


async def nothing(message: Message) -> Told:
    return Told()


async def test_what_is_asked_is_answered_also_what_is_large() -> None:
    busy = [Busy(f"model-{i}", i, 1, 2, Executions(3, 4, 5, 0.5, by_rows={8: (2, 0.25)})) for i in range(20_000)]

    async def answer(message: Message) -> Told:
        assert message == Obey(Count())
        return Told(busy)

    here, _ = await pair(nothing, answer)
    assert (await here.ask(Obey(Count()), 30)).busy == busy


async def test_what_is_sent_first_is_handled_first_and_answers_may_overtake() -> None:
    seen: list[Message] = []
    go_on = asyncio.Event()

    async def answer(message: Message) -> Told:
        seen.append(message)
        if isinstance(message, Tell):
            await go_on.wait()
        return Told()

    here, _ = await pair(nothing, answer)
    slow = asyncio.ensure_future(here.ask(Tell(Follow(), 5), 30))
    await asyncio.sleep(0)
    here.note(Say(Standing(True)))
    await here.ask(Ping(), 30)
    assert [type(one) for one in seen] == [Tell, Say, Ping] and not slow.done()
    go_on.set()
    assert await slow == Told()


async def test_nobody_waits_for_who_hangs_or_is_gone() -> None:
    async def hang(message: Message) -> Told:
        await asyncio.Event().wait()
        raise AssertionError

    here, there = await pair(nothing, hang)
    with pytest.raises(TimeoutError):
        await here.ask(Ping(), 0.01)
    waiting = asyncio.ensure_future(here.ask(Ping(), 60))
    await asyncio.sleep(0)
    there.close()
    with pytest.raises(ConnectionError):
        await waiting
    assert here.closed.is_set()
    with pytest.raises(ConnectionError):
        await here.ask(Ping(), 60)
    here.note(Ping())


async def test_an_error_over_there_is_one_here_and_the_channel_goes_on() -> None:
    async def fail(message: Message) -> Told:
        if isinstance(message, Obey):
            raise StorageFailure("the database is away")
        return Told()

    here, _ = await pair(nothing, fail)
    with pytest.raises(StorageFailure, match="the database is away"):
        await here.ask(Obey(Follow()), 30)
    assert await here.ask(Ping(), 30) == Told()
