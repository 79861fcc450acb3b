"""The router's promises: it follows the desired state and one bad model takes nothing down."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from tests.waiting import until

from maasdam.core import Facts
from maasdam.errors import Crashed, InvalidModel, NotFound, NotReady
from maasdam.serving.replica import Gone
from maasdam.serving.router import Router


class Spy:
    """A replica that counts, also how often it is looked at whether a request holds it."""

    facts = Facts()
    waiting = 0
    load_seconds: dict[str, float] = {}  # noqa: RUF012  nobody writes to it

    def __init__(self) -> None:
        self.held = self.looks = 0
        self.is_closed = False

    @property
    def in_flight(self) -> int:
        self.looks += 1
        return self.held

    @in_flight.setter
    def in_flight(self, held: int) -> None:
        self.held = held

    def close(self) -> None:
        self.is_closed = True


@dataclass
class FakeCatalog:
    deployed: dict[str, Any]
    newest: dict[str, int]
    number: int = 0

    def revision(self) -> int:
        return self.number

    def deployments(self) -> list[Any]:
        return list(self.deployed.values())

    def resolve(self, name: str) -> Any:
        model, _, version = name.partition(":")
        if model not in self.newest or (version and int(version) > self.newest[model]):
            raise NotFound(f"no version '{name}'")
        number = int(version or self.newest[model])
        aliases = ("prod",) if number == 1 else ()
        return SimpleNamespace(
            model=model, version=number, digest=f"sha256:{number}", aliases=aliases, task=None, engine="fake"
        )

    def deploy(
        self,
        model: str,
        version: int | None = None,
        replicas: int = 1,
        traffic: Any = None,
        mode: str = "always",
        isolate: bool = False,
        idle_seconds: float | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        self.number += 1
        at = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.number)
        self.deployed[model] = SimpleNamespace(
            model=model,
            version=version,
            replicas=replicas,
            traffic=traffic,
            shadow=None,
            updated_at=at,
            isolate=isolate,
            mode=mode,
            idle_seconds=idle_seconds,
            options=options,
        )


class Loads:
    """Loads spies; names in `broken` fail, names in `held` wait."""

    def __init__(self) -> None:
        self.tried: list[str] = []
        self.spies: dict[str, list[Spy]] = {}
        self.broken: set[str] = set()
        self.held: dict[str, asyncio.Event] = {}

    async def __call__(self, version: Any, desired: Any, may_push: bool) -> Spy:
        name = f"{version.model}:{version.version}"
        self.tried.append(name)
        if name in self.held:
            await self.held[name].wait()
        if name in self.broken:
            raise InvalidModel(f"{name} is corrupt")
        spy = Spy()
        self.spies.setdefault(name, []).append(spy)
        return spy


@asynccontextmanager
async def routing(catalog: FakeCatalog, load: Loads, **options: Any) -> AsyncIterator[Router]:
    router = Router(catalog, load, **{"poll_seconds": 0.01} | options)
    await router.start()
    try:
        yield router
    finally:
        await router.stop()


def leased(router: Router, name: str) -> int:
    """The version that one request to `name` meets."""
    lease = router.lease(name)
    lease.release()
    return lease.version.version


async def test_what_is_deployed_comes_up_and_a_later_deployment_too() -> None:
    catalog, load = FakeCatalog({}, {"a": 2, "b": 1}), Loads()
    catalog.deploy("a")
    async with routing(catalog, load) as router:
        await until(lambda: router.is_ready)
        assert leased(router, "a") == 2
        with pytest.raises(NotFound, match="deployed models: a"):
            router.lease("b")
        catalog.deploy("b")
        await until(lambda: "b" in router.models() and router.is_ready)
        assert leased(router, "b:1") == 1
    assert all(spy.is_closed for spies in load.spies.values() for spy in spies)


async def test_a_model_that_fails_to_load_is_reported_and_takes_nothing_down() -> None:
    catalog, load = FakeCatalog({}, {"good": 1, "bad": 1}), Loads()
    load.broken.add("bad:1")
    catalog.deploy("bad")
    catalog.deploy("good")
    async with routing(catalog, load) as router:
        await until(lambda: router.is_ready)
        assert leased(router, "good") == 1
        with pytest.raises(NotReady, match="failed to load"):
            router.lease("bad")
        copy = router.find("bad")
        assert copy.state == "failed" and copy.reason is not None and "bad:1 is corrupt" in copy.reason
        load.broken.clear()
        catalog.deploy("bad")
        await until(lambda: router.find("bad").state == "ready")


async def test_what_failed_is_tried_again_when_it_is_deployed_again_and_not_before() -> None:
    catalog, load = FakeCatalog({}, {"bad": 1, "some": 1, "good": 1}), Loads()
    load.broken.add("bad:1")
    catalog.deploy("bad")
    catalog.deploy("some", replicas=1)
    async with routing(catalog, load) as router:
        await until(lambda: router.is_ready)
        load.broken.add("some:1")
        catalog.deploy("some", replicas=2)  # the second replica fails
        await until(lambda: load.tried.count("some:1") == 2)
        for _ in range(3):  # something else changes
            catalog.deploy("good")
            await router.follow()
        await until(lambda: router.is_ready)
        assert load.tried.count("bad:1") == 1 and load.tried.count("some:1") == 2
        assert router.find("bad").state == "failed" and router.find("some").state == "ready"
        for name in ("bad", "some"):
            catalog.deploy(name, replicas=2)
            assert (await router.settled(name, 5)).state == ("failed" if name == "bad" else "ready")
        await until(lambda: (load.tried.count("bad:1"), load.tried.count("some:1")) == (2, 3))
        load.broken.clear()
        catalog.deploy("bad")
        assert (await router.settled("bad", 5)).state == "ready"
        assert load.tried.count("bad:1") == 3


async def test_the_old_version_answers_until_the_new_one_is_ready() -> None:
    catalog, load = FakeCatalog({}, {"a": 1}), Loads()
    catalog.deploy("a")
    async with routing(catalog, load) as router:
        await until(lambda: router.is_ready)
        load.held["a:2"] = asyncio.Event()
        catalog.newest["a"] = 2
        catalog.number += 1
        await until(lambda: len(list(router.groups())) == 2)
        assert leased(router, "a") == 1
        old = load.spies["a:1"][0]
        old.in_flight = 1
        load.held["a:2"].set()
        await until(lambda: leased(router, "a") == 2)
        looks = old.looks
        await until(lambda: old.looks > looks + 1)
        assert not old.is_closed, "a request is still in flight"
        old.in_flight = 0
        await until(lambda: old.is_closed)


async def test_the_old_version_stays_when_the_new_one_fails() -> None:
    catalog, load = FakeCatalog({}, {"a": 1}), Loads()
    catalog.deploy("a")
    async with routing(catalog, load) as router:
        await until(lambda: router.is_ready)
        load.broken.add("a:2")
        catalog.newest["a"] = 2
        catalog.number += 1
        await until(lambda: any(c.state == "failed" for c in router.groups()))
        assert leased(router, "a") == 1
        with pytest.raises(NotReady):
            router.lease("a:2")


async def test_undeployed_means_gone() -> None:
    catalog, load = FakeCatalog({}, {"a": 1}), Loads()
    catalog.deploy("a")
    async with routing(catalog, load) as router:
        await until(lambda: router.is_ready)
        del catalog.deployed["a"]
        catalog.number += 1
        await until(lambda: load.spies["a:1"][0].is_closed)
        with pytest.raises(NotFound):
            router.lease("a")


async def test_aliases_and_versions_are_found_by_name() -> None:
    catalog, load = FakeCatalog({}, {"a": 2}), Loads()
    catalog.deploy("a", version=1)
    async with routing(catalog, load) as router:
        await until(lambda: router.is_ready)
        assert leased(router, "a@prod") == leased(router, "a:1") == leased(router, "a") == 1
        with pytest.raises(NotFound, match="versions being served: 1"):
            router.lease("a:2")
        with pytest.raises(NotFound, match="alias 'staging'"):
            router.lease("a@staging")


async def test_traffic_is_shared_by_percent() -> None:
    catalog, load = FakeCatalog({}, {"a": 2}), Loads()
    catalog.deploy("a", version=1, traffic={"2": 25})
    points = iter([i / 100 for i in range(100)])
    async with routing(catalog, load, draw=lambda: next(points)) as router:
        await until(lambda: router.is_ready)
        got = [leased(router, "a") for _ in range(100)]
        assert 23 <= got.count(2) <= 27 and got.count(1) + got.count(2) == 100


async def test_all_of_the_traffic_may_go_to_another_version_than_the_deployed_one() -> None:
    catalog, load = FakeCatalog({}, {"a": 2}), Loads()
    catalog.deploy("a", version=1, traffic={"2": 100})
    async with routing(catalog, load) as router:
        await until(lambda: router.is_ready)
        assert {leased(router, "a") for _ in range(20)} == {2}
        assert leased(router, "a:1") == 1


async def test_a_check_and_its_answer_meet_one_version_and_metadata_draws_nothing() -> None:
    catalog, load = FakeCatalog({}, {"a": 2}), Loads()
    catalog.deploy("a", version=1, traffic={"2": 50})
    draws: list[float] = []

    def draw() -> float:
        draws.append(len(draws) % 10 / 10)
        return draws[-1]

    async with routing(catalog, load, draw=draw) as router:
        await until(lambda: router.is_ready)
        assert {router.find("a").version.version for _ in range(100)} == {1} and not draws
        leases = [router.lease("a") for _ in range(100)]
        assert len(draws) == 100, "one draw a request"
        assert {lease.version.version for lease in leases} == {1, 2}
        assert all(lease.replica in load.spies[f"a:{lease.version.version}"] for lease in leases)
        catalog.deploy("a", version=1)
        await router.follow()
        (second,) = load.spies["a:2"]
        looks = second.looks
        await until(lambda: second.looks > looks + 1)
        assert not second.is_closed, "requests hold it"
        for lease in leases:
            lease.release()
        await until(lambda: second.is_closed)


async def test_replicas_are_added_and_taken_away() -> None:
    catalog, load = FakeCatalog({}, {"a": 1}), Loads()
    catalog.deploy("a", replicas=2)
    async with routing(catalog, load) as router:
        await until(lambda: len(load.spies.get("a:1", [])) == 2)
        first, second = load.spies["a:1"]
        first.in_flight = 1
        lease = router.lease("a")
        assert lease.replica is second and second.in_flight == 1
        lease.release()
        lease.release()
        assert second.in_flight == 0, "once"
        first.in_flight = 0
        catalog.deploy("a", replicas=1)
        await until(lambda: first.is_closed or second.is_closed)
        assert leased(router, "a") == 1


async def test_a_replica_that_came_up_after_it_was_not_wanted_any_more_is_closed() -> None:
    catalog, load = FakeCatalog({}, {"a": 1}), Loads()
    catalog.deploy("a")
    async with routing(catalog, load, poll_seconds=60) as router:
        await until(lambda: router.is_ready)
        load.held["a:1"] = asyncio.Event()
        catalog.deploy("a", replicas=2)
        await router.follow()
        await until(lambda: len(load.tried) == 2)
        catalog.deploy("a", replicas=1)
        await router.follow()
        load.held["a:1"].set()
        await until(lambda: len(load.spies["a:1"]) == 2 and load.spies["a:1"][1].is_closed)
        assert not load.spies["a:1"][0].is_closed and leased(router, "a") == 1


async def test_what_was_read_before_a_change_is_not_acted_on_after_it() -> None:
    catalog, load = FakeCatalog({}, {"a": 1, "b": 1}), Loads()
    catalog.deploy("a")
    async with routing(catalog, load) as router:
        await until(lambda: router.is_ready)
        now, begun, gate = catalog.deployments, threading.Event(), threading.Event()

        def slowly() -> list[Any]:
            found = now()
            begun.set()
            assert gate.wait(10)
            return found

        catalog.deployments = slowly
        early = asyncio.create_task(router.follow())
        await asyncio.to_thread(begun.wait, 10)
        catalog.deployments = now
        catalog.deployed["b"] = SimpleNamespace(**vars(catalog.deployed["a"]) | {"model": "b"})
        late = asyncio.create_task(router.settled("b", 5))
        await asyncio.wait([late], timeout=0.2)  # it would be done, were it not to wait for the other
        gate.set()
        await asyncio.gather(early, late)
        assert "b" in router.models() and leased(router, "b") == 1


async def test_a_name_that_resolves_to_nothing_is_told_not_hidden() -> None:
    catalog, load = FakeCatalog({}, {}), Loads()
    catalog.deploy("ghost")
    async with routing(catalog, load) as router:
        assert router.models()["ghost"].reason == "no version 'ghost'"
        with pytest.raises(NotReady, match="no version 'ghost'"):
            router.lease("ghost")


async def test_a_catalog_that_is_away_for_a_while_changes_nothing() -> None:
    catalog, load = FakeCatalog({}, {"a": 1, "b": 1}), Loads()
    catalog.deploy("a")
    async with routing(catalog, load) as router:
        await until(lambda: router.is_ready)
        revision, asked = catalog.revision, []
        catalog.revision = lambda: 1 // len(asked.append(None) or [])
        await until(lambda: len(asked) > 2)
        assert leased(router, "a") == 1
        catalog.revision = revision
        catalog.deploy("b")
        await until(lambda: "b" in router.models() and router.is_ready)


async def test_a_replica_that_is_gone_is_brought_up_again() -> None:
    catalog, loads = FakeCatalog({}, {"a": 1}), Loads()
    catalog.deploy("a")
    async with routing(catalog, loads) as router:
        await until(lambda: router.find("a").state == "ready")
        (spy,) = loads.spies["a:1"]
        lease = router.lease("a")
        loads.held["a:1"] = asyncio.Event()
        spy.when_gone(Gone("crashed with SIGSEGV", is_crash=True))
        with pytest.raises(NotReady, match="is loading"):
            router.lease("a")
        loads.held["a:1"].set()
        await until(lambda: router.find("a").state == "ready")
        assert router.find("a").replicas == [loads.spies["a:1"][1]]
        assert not spy.is_closed  # a request holds it still
        lease.release()
        await until(lambda: spy.is_closed)


async def test_what_crashes_over_and_over_has_failed_until_it_is_deployed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maasdam.serving.crashes.PAUSE_SECONDS", 0.01)
    catalog, loads = FakeCatalog({}, {"a": 1, "b": 1}), Loads()
    catalog.deploy("a")
    catalog.deploy("b")
    async with routing(catalog, loads) as router:
        for times in (1, 2, 3):
            await until(lambda: router.find("a").state == "ready")
            assert loads.tried.count("a:1") == times
            router.find("a").replicas[0].when_gone(Gone(f"crash {times}", is_crash=True))
        assert router.find("a").state == "failed"
        assert router.find("a").reason == "Crashed: it crashed 3 times within 60 s, the last time so: crash 3"
        await asyncio.sleep(0.05)
        assert loads.tried.count("a:1") == 3
        assert router.find("b").state == "ready"
        catalog.deploy("a")
        await until(lambda: router.find("a").state == "ready")


async def test_what_crashes_while_it_loads_is_tried_three_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maasdam.serving.crashes.PAUSE_SECONDS", 0.01)
    catalog, tried = FakeCatalog({}, {"a": 1}), []
    catalog.deploy("a")

    async def load(version: Any, desired: Any, may_push: bool) -> Any:
        tried.append(version)
        raise Crashed("the work crashed with SIGSEGV")

    async with routing(catalog, load) as router:
        await until(lambda: router.find("a").state == "failed")
        assert len(tried) == 3
        assert "the last time so: the work crashed with SIGSEGV" in str(router.find("a").reason)


async def test_what_is_isolated_from_now_on_answers_until_another_has_taken_its_place() -> None:
    catalog, loads = FakeCatalog({}, {"a": 1}), Loads()
    catalog.deploy("a", replicas=2)
    async with routing(catalog, loads) as router:
        await until(lambda: len(router.find("a").replicas) == 2)
        before = list(router.find("a").replicas)
        loads.held["a:1"] = asyncio.Event()
        catalog.deploy("a", replicas=2, isolate=True)
        await until(lambda: len(loads.tried) == 3)
        assert router.find("a").replicas == before and router.find("a").state == "ready"
        loads.held["a:1"].set()
        await until(lambda: all(spy.is_closed for spy in loads.spies["a:1"][:2]))
        assert router.find("a").replicas == loads.spies["a:1"][2:] and len(loads.tried) == 4
        catalog.deploy("a", replicas=1, isolate=True)
        await until(lambda: len(router.find("a").replicas) == 1)
        assert len(loads.tried) == 4


async def test_another_takes_the_place_of_what_was_opened_with_other_options() -> None:
    catalog, loads = FakeCatalog({}, {"a": 1}), Loads()
    asked: list[Any] = []

    async def load(version: Any, desired: Any, may_push: bool) -> Spy:
        asked.append(desired.options)
        return await loads(version, desired, may_push)

    catalog.deploy("a")
    async with routing(catalog, load) as router:
        await until(lambda: router.find("a").replicas)
        catalog.deploy("a", options={"logprobs": 5})
        await until(lambda: loads.spies["a:1"][0].is_closed)
        assert router.find("a").replicas == loads.spies["a:1"][1:] and router.find("a").state == "ready"
        catalog.deploy("a", options={"logprobs": 5})
        await router.follow()
        assert asked == [{}, {"logprobs": 5}]


async def test_what_is_deployed_anew_while_it_loads_is_tried_again_where_that_load_fails() -> None:
    catalog, loads = FakeCatalog({}, {"a": 1}), Loads()
    catalog.deploy("a")
    loads.held["a:1"], loads.broken = asyncio.Event(), {"a:1"}
    async with routing(catalog, loads) as router:
        await until(lambda: loads.tried)
        catalog.deploy("a", replicas=2)
        await until(lambda: router.models()["a"].replicas == 2)
        loads.held.pop("a:1").set()
        await until(lambda: len(loads.tried) == 2)
        assert router.find("a").state == "failed" and router.find("a").reason == "InvalidModel: a:1 is corrupt"

        loads.held["a:1"] = asyncio.Event()
        catalog.deploy("a")
        await until(lambda: len(loads.tried) == 3)
        catalog.deploy("a", replicas=2)
        await until(lambda: router.models()["a"].replicas == 2)
        fails, goes_well = loads.held["a:1"], asyncio.Event()
        loads.held["a:1"] = goes_well
        fails.set()
        await until(lambda: len(loads.tried) == 4)
        assert router.find("a").state == "loading" and router.find("a").reason is None
        loads.broken.clear()
        goes_well.set()
        await until(lambda: len(router.find("a").replicas) == 2)


async def test_what_is_isolated_while_it_loads_is_loaded_again_apart() -> None:
    catalog, loads = FakeCatalog({}, {"a": 1}), Loads()
    wished: list[bool] = []

    async def load(version: Any, desired: Any, may_push: bool) -> Spy:
        wished.append(desired.is_apart)
        return await loads(version, desired, may_push)

    catalog.deploy("a")
    loads.held["a:1"] = asyncio.Event()
    async with routing(catalog, load) as router:
        await until(lambda: loads.tried)
        catalog.deploy("a", isolate=True)
        await router.follow()
        loads.held["a:1"].set()
        await until(lambda: len(loads.tried) == 2 and loads.spies["a:1"][0].is_closed)
        assert wished == [False, True] and router.find("a").replicas == loads.spies["a:1"][1:]

        loads.held["a:1"] = asyncio.Event()
        catalog.deploy("a")  # and back again, before another is up
        await until(lambda: len(loads.tried) == 3)
        catalog.deploy("a", isolate=True)
        await router.follow()
        loads.held["a:1"].set()
        await until(lambda: len(loads.spies["a:1"]) == 3 and loads.spies["a:1"][2].is_closed)
        assert router.find("a").replicas == [loads.spies["a:1"][1]] and len(loads.tried) == 3
