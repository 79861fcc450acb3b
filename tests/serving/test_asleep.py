"""What is asleep is loaded when it is asked for, once for all who ask, and no caller hears of it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.serving.test_router import FakeCatalog, Loads, Spy, leased, routing
from tests.waiting import until

from maasdam.core import Facts
from maasdam.errors import Asleep, ModelNotFound, NoRoom, NotReady, Overloaded
from maasdam.serving.replica import Gone
from maasdam.serving.router import Lease, Router

IDLE = Gone("nobody asked for it", is_crash=False)


async def asked(router: Router, name: str) -> Lease:
    """What a request meets."""
    try:
        return router.lease(name)
    except Asleep as asleep:
        return await router.woken(asleep)


def asking(router: Router, name: str, times: int) -> list[asyncio.Task[Lease]]:
    return [asyncio.create_task(asked(router, name)) for _ in range(times)]


def leaves(spy: Spy) -> None:
    spy.when_gone(IDLE)


class Full(Loads):
    """Loads that find no room unless others may leave for them, or at all."""

    def __init__(self) -> None:
        super().__init__()
        self.pushed: list[bool] = []
        self.is_full_for_good = False

    async def __call__(self, version: Any, desired: Any, may_push: bool) -> Spy:
        self.pushed.append(may_push)
        if not may_push or self.is_full_for_good:
            raise NoRoom("held by: other:1 5 MB (pinned)")
        return await super().__call__(version, desired, may_push)


async def test_many_who_ask_share_one_load() -> None:
    catalog, load = FakeCatalog({}, {"a": 1}), Loads()
    catalog.deploy("a", mode="on-demand")
    load.held["a:1"] = asyncio.Event()
    async with routing(catalog, load, known=lambda version: Facts(context_length=7)) as router:
        assert router.is_ready and router.find("a").state == "asleep" and not load.tried
        assert router.find("a").facts.context_length == 7
        tasks = asking(router, "a", 20)
        await until(lambda: len(router.find("a").waiters) == 20)
        assert router.is_ready and router.find("a").state == "waking"
        load.held["a:1"].set()
        leases = await asyncio.gather(*tasks)
        assert load.tried == ["a:1"] and load.spies["a:1"][0].held == 20
        for lease in leases:
            lease.release()
        assert leased(router, "a") == 1


async def test_more_than_may_wait_are_told_when_to_come_back() -> None:
    catalog, load = FakeCatalog({}, {"a": 1}), Loads()
    catalog.deploy("a", mode="on-demand")
    load.held["a:1"] = asyncio.Event()
    async with routing(catalog, load, most_waiting=2) as router:
        tasks = asking(router, "a", 3)
        done, waiting = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        (error,) = [task.exception() for task in done]
        assert isinstance(error, Overloaded) and error.retry_after_seconds == 1.0 and "2 requests already wait" in str(error)
        tasks[0].cancel()  # went away: its place is free
        await until(lambda: len(router.find("a").waiters) == 1)
        tasks += asking(router, "a", 1)
        await until(lambda: len(router.find("a").waiters) == 2)
        load.held["a:1"].set()
        for lease in await asyncio.gather(tasks[1], tasks[3]):
            lease.release()
        assert load.tried == ["a:1"] and len(waiting) == 2


async def test_the_load_goes_on_though_everyone_went_away() -> None:
    catalog, load = FakeCatalog({}, {"a": 1}), Loads()
    catalog.deploy("a", mode="on-demand")
    load.held["a:1"] = asyncio.Event()
    async with routing(catalog, load) as router:
        (task,) = asking(router, "a", 1)
        await until(lambda: load.tried)
        task.cancel()
        load.held["a:1"].set()
        await until(lambda: router.find("a").state == "ready")
        assert leased(router, "a") == 1


async def test_everyone_who_waits_is_told_why_a_load_failed() -> None:
    catalog, load = FakeCatalog({}, {"a": 1}), Loads()
    catalog.deploy("a", mode="on-demand")
    load.held["a:1"] = asyncio.Event()
    load.broken.add("a:1")
    async with routing(catalog, load) as router:
        tasks = asking(router, "a", 3)
        await until(lambda: len(router.find("a").waiters) == 3)
        load.held["a:1"].set()
        errors = await asyncio.gather(*tasks, return_exceptions=True)
        assert {str(error) for error in errors} == {"model 'a:1' failed to load: a:1 is corrupt"}
        assert {type(error) for error in errors} == {NotReady} and len({id(error) for error in errors}) == 3
        with pytest.raises(NotReady, match="failed to load"):
            router.lease("a")
        load.broken.clear()
        catalog.deploy("a", mode="on-demand")
        await router.follow()
        assert router.find("a").state == "asleep"
        (await asked(router, "a")).release()


async def test_no_room_is_told_and_the_next_request_tries_again() -> None:
    catalog, load = FakeCatalog({}, {"a": 1}), Full()
    catalog.deploy("a")
    async with routing(catalog, load) as router:
        await until(lambda: router.find("a").state == "asleep")
        assert load.pushed == [False] and router.is_ready
        load.is_full_for_good = True
        with pytest.raises(NoRoom, match=r"model 'a:1' can't be loaded now: held by: other:1 5 MB \(pinned\)"):
            await asked(router, "a")
        assert router.find("a").state == "asleep" and router.find("a").reason == "held by: other:1 5 MB (pinned)"
        load.is_full_for_good = False
        (await asked(router, "a")).release()
        assert load.pushed == [False, True, True]


async def test_what_is_pinned_makes_room_for_itself_at_the_start() -> None:
    catalog, load = FakeCatalog({}, {"a": 1}), Full()
    catalog.deploy("a", mode="pin")
    async with routing(catalog, load) as router:
        await until(lambda: router.find("a").state == "ready")


async def test_what_is_pinned_gets_its_room_once_there_is_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maasdam.serving.router.NAP_SECONDS", 0.01)
    catalog, load = FakeCatalog({}, {"a": 1}), Full()
    load.is_full_for_good = True
    catalog.deploy("a", mode="pin", replicas=2)
    async with routing(catalog, load) as router:
        await until(lambda: len(load.pushed) > 2)
        assert router.is_ready
        load.is_full_for_good = False
        await until(lambda: len(router.find("a").replicas) == 2)


async def test_what_is_pinned_is_tried_again_once_a_while_however_many_have_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    timers: list[asyncio.TimerHandle] = []
    loop = asyncio.get_running_loop()
    later = loop.call_later
    catalog, load = FakeCatalog({}, {"a": 1}), Full()
    load.is_full_for_good = True
    catalog.deploy("a", mode="pin")
    async with routing(catalog, load) as router:

        def call_later(delay: float, call: Any, *given: Any) -> asyncio.TimerHandle:
            timers.extend([later(delay, call, *given)] if call == router._insist else [])
            return timers[-1] if call == router._insist else later(delay, call, *given)

        monkeypatch.setattr(loop, "call_later", call_later)
        await until(lambda: router.find("a").state == "asleep")
        for _ in range(9):
            with pytest.raises(NoRoom):
                await asked(router, "a")
        assert len(timers) >= 9 and sum(not timer.cancelled() for timer in timers) == 1


async def test_what_left_wakes_again_with_all_its_replicas() -> None:
    catalog, load = FakeCatalog({}, {"a": 1}), Loads()
    catalog.deploy("a", replicas=2)
    async with routing(catalog, load) as router:
        await until(lambda: len(load.spies.get("a:1", ())) == 2 and router.is_ready)
        one, two = load.spies["a:1"]
        leaves(one)
        assert router.find("a").state == "ready" and leased(router, "a") == 1
        catalog.number += 1
        await router.follow()  # a change elsewhere wakes nobody
        leaves(two)
        assert router.find("a").state == "asleep" and router.is_ready
        await router.follow()
        await until(lambda: one.is_closed and two.is_closed)
        assert len(load.tried) == 2
        (await asked(router, "a")).release()
        await until(lambda: len(router.find("a").replicas) == 2)
        leaves(load.spies["a:1"][2])  # there is work for more than one: another comes back
        router.find("a").nap_until = 0.0
        first, second = router.lease("a"), router.lease("a")
        await until(lambda: len(router.find("a").replicas) == 2)
        first.release(), second.release()


async def test_requests_that_race_a_goodbye_are_all_answered() -> None:
    catalog, load = FakeCatalog({}, {"a": 1}), Loads()
    catalog.deploy("a", mode="on-demand")
    async with routing(catalog, load) as router:
        for _ in range(50):
            leases = await asyncio.gather(*asking(router, "a", 3))
            for lease in leases:
                lease.release()
            late = asking(router, "a", 3)
            leaves(load.spies["a:1"][-1])
            for lease in await asyncio.gather(*late):
                lease.release()
            leaves(load.spies["a:1"][-1])
        assert len(load.tried) == 100
        await until(lambda: all(spy.is_closed for spy in load.spies["a:1"]))


async def test_a_request_that_waits_gets_what_was_deployed_meanwhile() -> None:
    catalog, load = FakeCatalog({}, {"a": 1}), Loads()
    catalog.deploy("a", mode="on-demand")
    load.held["a:1"] = asyncio.Event()
    async with routing(catalog, load) as router:
        (task,) = asking(router, "a", 1)
        await until(lambda: load.tried)
        catalog.newest["a"] = 2
        catalog.deploy("a", mode="on-demand")
        await router.follow()
        lease = await task
        assert lease.version.version == 2
        lease.release()
        load.held["a:1"].set()
        await until(lambda: load.spies.get("a:1") and load.spies["a:1"][0].is_closed)


async def test_a_request_that_waits_for_what_is_undeployed_is_told() -> None:
    catalog, load = FakeCatalog({}, {"a": 1}), Loads()
    catalog.deploy("a", mode="on-demand")
    load.held["a:1"] = asyncio.Event()
    async with routing(catalog, load) as router:
        (task,) = asking(router, "a", 1)
        await until(lambda: load.tried)
        del catalog.deployed["a"]
        await router.follow()
        with pytest.raises(ModelNotFound, match="no model 'a' is deployed"):
            await task
        load.held["a:1"].set()
        await until(lambda: load.spies.get("a:1") and load.spies["a:1"][0].is_closed)


async def test_a_successor_of_what_is_in_use_is_loaded_and_of_what_sleeps_is_not() -> None:
    catalog, load = FakeCatalog({}, {"a": 1}), Loads()
    catalog.deploy("a", mode="on-demand")
    async with routing(catalog, load) as router:
        catalog.newest["a"] = 2
        await router.follow()
        assert [(group.version.version, group.state) for group in router.groups()] == [(2, "asleep")] and not load.tried
        (await asked(router, "a")).release()
        catalog.newest["a"] = 3
        load.held["a:3"] = asyncio.Event()
        await router.follow()
        assert leased(router, "a") == 2, "the old one answers until the new one is up"
        load.held["a:3"].set()
        await until(lambda: leased(router, "a") == 3)


async def test_shares_and_aliases_count_what_is_asleep() -> None:
    catalog, load = FakeCatalog({}, {"a": 2}), Loads()
    catalog.deploy("a", version=1, traffic={"2": 25}, mode="on-demand")
    points = iter([i / 8 for i in range(8)])
    async with routing(catalog, load, draw=lambda: next(points)) as router:
        leases = await asyncio.gather(*asking(router, "a", 8))
        assert sorted(lease.version.version for lease in leases) == [1] * 7 + [2]
        for lease in leases:
            lease.release()
        leaves(load.spies["a:2"][0])
        (await asked(router, "a:2")).release()
        leaves(load.spies["a:1"][0])
        (await asked(router, "a@prod")).release()
        assert load.tried == ["a:1", "a:2", "a:2", "a:1"]


@pytest.mark.parametrize("mode", ["always", "pin"])
async def test_what_is_deployed_anew_gets_up(mode: str) -> None:
    catalog, load = FakeCatalog({}, {"a": 1}), Loads()
    catalog.deploy("a", mode="on-demand")
    async with routing(catalog, load) as router:
        catalog.deploy("a", mode=mode)
        await router.follow()
        await until(lambda: router.find("a").state == "ready")
        catalog.deploy("a", mode="on-demand")
        await router.follow()
        assert router.find("a").state == "ready", "it stays until it is idle"


async def test_settled_wakes_it_and_tells_how_it_went() -> None:
    catalog, load = FakeCatalog({}, {"a": 1, "b": 1}), Loads()
    catalog.deploy("a", mode="on-demand")
    catalog.deploy("b", mode="on-demand")
    load.broken.add("b:1")
    async with routing(catalog, load) as router:
        assert (await router.settled("a", 5)).state == "ready"
        assert (await router.settled("b", 5)).state == "failed"


async def test_who_waits_hears_that_the_service_stops() -> None:
    catalog, load = FakeCatalog({}, {"a": 1}), Loads()
    catalog.deploy("a", mode="on-demand")
    load.held["a:1"] = asyncio.Event()
    async with routing(catalog, load) as router:
        (task,) = asking(router, "a", 1)
        await until(lambda: load.tried)
    with pytest.raises(NotReady, match="the service is stopping"):
        await task
    with pytest.raises(NotReady):
        await asked(router, "a")


async def test_one_that_leaves_while_another_comes_up_is_waited_for() -> None:
    catalog, load = FakeCatalog({}, {"a": 1}), Loads()
    catalog.deploy("a")
    async with routing(catalog, load) as router:
        await until(lambda: router.find("a").state == "ready")
        load.held["a:1"] = asyncio.Event()
        catalog.deploy("a", replicas=2)
        await router.follow()
        await until(lambda: len(load.tried) == 2)
        leaves(load.spies["a:1"][0])
        (task,) = asking(router, "a", 1)
        load.held["a:1"].set()
        lease = await task
        assert lease.replica is load.spies["a:1"][1] and len(load.tried) == 2
        lease.release()


async def test_what_is_deployed_anew_gets_up_though_it_stays_in_a_host() -> None:
    catalog, load = FakeCatalog({}, {"a": 1}), Loads()
    catalog.deploy("a", mode="on-demand", idle_seconds=9.0)
    async with routing(catalog, load) as router:
        assert router.find("a").state == "asleep"
        catalog.deploy("a", idle_seconds=9.0)
        await router.follow()
        await until(lambda: router.find("a").state == "ready")
