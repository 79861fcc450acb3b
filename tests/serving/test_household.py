"""Who stays in memory: room is made, idle ones are sent away, and nobody at work or pinned ever is."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest
from tests.waiting import until

from maasdam.errors import NoRoom, StorageFailure
from maasdam.serving.hosts.household import FRESH_SECONDS, ROOM_SECONDS, HostUse, Household, Stay


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass(eq=False)
class Host:
    """A made-up host, which says what it is told to."""

    home: Home
    model: str
    bytes: int
    expected_bytes: int = 0
    is_loading: bool = False
    in_flight: int = 0
    last_used: float | None = None
    loaded_at: float = 0.0
    loaded_bytes: int = 0
    reason: str | None = None

    @property
    def id(self) -> str:
        return f"{self.model}-{id(self)}"

    @property
    def name(self) -> str:
        return f"{self.model}:1"

    @property
    def kind(self) -> str:
        return f"sha256:{self.model}"

    def measure(self) -> int:
        return self.bytes

    async def use(self) -> HostUse:
        await asyncio.sleep(0)
        return HostUse(self.in_flight, self.last_used)

    async def leave(self, reason: str) -> bool:
        await asyncio.sleep(0)
        if self.in_flight:
            return False
        self.reason = reason
        self.home.hosts.remove(self)
        return True


@dataclass
class Home:
    """Hosts, sizes and wishes."""

    budget: int | None = 100
    hosts: list[Host] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    loaded: dict[str, int] = field(default_factory=dict)
    guesses: dict[str, int] = field(default_factory=dict)
    stays: dict[str, Stay] = field(default_factory=dict)
    clock: Clock = field(default_factory=Clock)

    def expected(self, kind: str) -> tuple[int, int]:
        if kind in self.sizes:
            return self.loaded.get(kind, self.sizes[kind]), self.sizes[kind]
        return 0, self.guesses[kind]

    def keep(self, kind: str, loaded: int, most: int) -> None:
        self.loaded[kind], self.sizes[kind] = loaded, most

    def __post_init__(self) -> None:
        self.household = Household(
            self.budget, self, lambda: self.stays, lambda: self.hosts, clock=self.clock, look_seconds=0.001
        )

    def host(self, model: str, size: int, last_used: float | None = 1.0, **how: object) -> Host:
        made = Host(self, model, size, last_used=last_used, **how)  # type: ignore[arg-type]  # what a test names
        self.hosts.append(made)
        return made

    async def load(self, model: str, size: int, may_push: bool = True) -> Host:
        async with self.household.admitted(f"{model}:1", f"sha256:{model}", may_push) as needs:
            host = self.host(model, 1, None, expected_bytes=needs, is_loading=True, loaded_at=self.clock())
        await asyncio.sleep(0)
        host.bytes = host.loaded_bytes = size
        host.is_loading = False
        return host

    def here(self) -> list[str]:
        return sorted(host.model for host in self.hosts)


async def test_the_least_recently_used_makes_room() -> None:
    home = Home(sizes={"sha256:new": 40})
    home.host("a", 40, 2.0), home.host("b", 40, 1.0)
    await home.load("new", 40)
    assert home.here() == ["a", "new"]


async def test_no_others_leave_for_what_nobody_asked_for() -> None:
    home = Home(sizes={"sha256:new": 40, "sha256:small": 20})
    home.host("a", 40), home.host("b", 40)
    with pytest.raises(NoRoom, match="held by: a:1"):
        await home.load("new", 40, may_push=False)
    await home.load("small", 20, may_push=False)
    assert home.here() == ["a", "b", "small"]


async def test_what_is_pinned_or_at_work_never_leaves() -> None:
    home = Home(sizes={"sha256:new": 50}, stays={"a": Stay(is_pinned=True)})
    home.host("a", 40)
    busy = home.host("b", 40, in_flight=1)
    loading = asyncio.create_task(home.load("new", 50))
    for _ in range(20):
        await asyncio.sleep(0)
    assert home.here() == ["a", "b"] and not loading.done()
    busy.in_flight = 0
    await loading
    assert home.here() == ["a", "new"]
    home.sizes["sha256:big"] = 61
    with pytest.raises(NoRoom, match=r"a:1 0 MB \(pinned\)"):
        await home.load("big", 61)
    assert home.here() == ["a", "new"]


async def test_who_waits_for_one_at_work_waits_only_so_long() -> None:
    home = Home(sizes={"sha256:new": 50})
    home.host("a", 80, in_flight=1)
    loading = asyncio.create_task(home.load("new", 50))
    await asyncio.sleep(0.01)
    assert not loading.done()
    home.clock.now += ROOM_SECONDS + 1
    with pytest.raises(NoRoom, match=r"a:1 0 MB \(at work\)"):
        await loading


async def test_a_host_that_gets_a_request_in_that_moment_stays() -> None:
    home = Home(sizes={"sha256:new": 50})
    busy = home.host("a", 80)

    async def leave(reason: str) -> bool:
        busy.in_flight = 1
        return False

    busy.leave = leave  # type: ignore[method-assign]  # it says no
    loading = asyncio.create_task(home.load("new", 50))
    await until(lambda: busy.in_flight)
    await asyncio.sleep(0.005)
    assert not loading.done() and home.here() == ["a"]
    del busy.leave
    busy.in_flight = 0
    await loading
    assert home.here() == ["new"]


async def test_two_that_come_at_once_do_not_take_the_same_room() -> None:
    home = Home(sizes={"sha256:x": 60, "sha256:y": 60})
    tasks = [asyncio.create_task(home.load(model, 60)) for model in ("x", "y")]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.sleep(0.01)
    assert len(home.hosts) == 1 and sum(task.done() for task in tasks) == 1
    home.hosts[0].last_used = home.clock()
    await asyncio.gather(*tasks)
    assert len(home.hosts) == 1
    home = Home(sizes={"sha256:x": 50, "sha256:y": 50})
    await asyncio.gather(home.load("x", 50), home.load("y", 50))
    assert home.here() == ["x", "y"]


async def test_what_was_just_loaded_is_not_sent_away_before_it_was_asked() -> None:
    home = Home(sizes={"sha256:x": 60, "sha256:y": 60})
    x = await home.load("x", 60)
    loading = asyncio.create_task(home.load("y", 60))
    await asyncio.sleep(0.01)
    assert home.here() == ["x"]
    x.last_used = home.clock()
    await loading
    assert home.here() == ["y"]
    home.clock.now += FRESH_SECONDS + 1  # nobody came
    await home.load("x", 60)
    assert home.here() == ["x"]


async def test_a_guess_refuses_nobody_for_good_and_what_was_measured_does() -> None:
    home = Home(guesses={"sha256:x": 500})
    x = await home.load("x", 120)
    x.last_used = home.clock()
    await home.household.tick()
    assert home.sizes["sha256:x"] == 120 and home.here() == []
    with pytest.raises(NoRoom, match="held by: nobody"):
        await home.load("x", 120)


async def test_what_one_request_made_of_it_refuses_it_no_more_than_a_guess_does() -> None:
    home = Home(guesses={"sha256:x": 20}, stays={"a": Stay(is_pinned=True)})
    home.host("a", 40)
    x = await home.load("x", 20)
    x.last_used = home.clock()
    await home.household.tick()
    x.bytes = 120
    await home.household.tick()
    assert home.here() == ["a"] and (home.loaded["sha256:x"], home.sizes["sha256:x"]) == (20, 120)
    home.host("b", 40)
    again = await home.load("x", 20)
    assert home.here() == ["a", "x"] and again.expected_bytes == 60, "what is pinned leaves so much"


async def test_who_waits_while_room_is_made_for_others_waits_only_so_long() -> None:
    home = Home(sizes={"sha256:new": 50})
    home.clock.now += 1
    async with home.household._turn:
        loading = asyncio.create_task(home.load("new", 50))
        await asyncio.sleep(0.001)
        assert not loading.done()
    await loading
    async with home.household._turn:
        with pytest.raises(NoRoom, match="made for others for too long"):
            async with home.household._in_turn("new:1", home.clock()):
                pass
    assert not home.household._turn.locked()


async def test_over_the_budget_after_a_load_others_leave() -> None:
    home = Home(guesses={"sha256:x": 10})
    home.host("a", 40, 1.0), home.host("b", 40, 2.0)
    x = await home.load("x", 50)
    x.last_used = home.clock()
    await home.household.tick()
    assert home.here() == ["b", "x"] and home.sizes["sha256:x"] == 50


async def test_idle_ones_leave_and_those_at_work_or_without_such_a_wish_stay() -> None:
    home = Home(budget=None, stays={"a": Stay(idle_seconds=60), "b": Stay(idle_seconds=60)})
    home.household._stays = home.stays
    a, b = home.host("a", 40, home.clock() - 61), home.host("b", 40, home.clock() - 61, in_flight=1)
    home.host("c", 40, home.clock() - 1000)
    await home.household.tick()
    assert home.here() == ["b", "c"] and a.reason == "nobody asked for it for 60 s"
    b.in_flight, b.last_used = 0, home.clock() - 59
    await home.household.tick()
    assert home.here() == ["b", "c"]
    home.clock.now += 1
    await home.household.tick()
    assert home.here() == ["c"]


async def test_what_is_watched_survives_a_catalog_that_is_away() -> None:
    home = Home(budget=None)
    asked: list[int] = []

    def read() -> dict[str, Stay]:
        asked.append(1)
        if len(asked) == 1:
            raise StorageFailure("away")
        return {"a": Stay(idle_seconds=1)}

    household = Household(None, home, read, lambda: home.hosts, clock=home.clock, tick_seconds=0.001)
    home.host("a", 40)
    watching = asyncio.create_task(household.watch())
    await until(lambda: not home.hosts)
    watching.cancel()
    assert len(asked) >= 2
