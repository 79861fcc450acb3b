"""Taking turns, medians and energy, with clocks that are handed in."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from maasdam.pipeline.measure import RARELY, Timing, joules_per_run, percentile, take_turns


class Clock:
    """Stands still but for what subjects take."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def taking(self, seconds: float) -> Callable[[int], None]:
        def run(number: int) -> None:
            self.now += seconds

        return run


def test_each_subject_gets_its_own_time() -> None:
    clock = Clock()
    timings = take_turns({"a": clock.taking(1.0), "b": clock.taking(3.0)}, seconds=0, rounds=(5, 9), clock=clock)
    assert timings["a"].seconds == (1.0,) * 5 and timings["b"].p50 == 3.0


def test_rounds_go_on_until_time_is_up() -> None:
    clock = Clock()
    assert len(take_turns({"a": clock.taking(1.0)}, seconds=20, rounds=(5, 99), clock=clock)["a"].seconds) in (10, 11)
    assert len(take_turns({"a": clock.taking(1.0)}, seconds=1e9, rounds=(5, 9), clock=clock)["a"].seconds) == 9


def test_who_begins_moves_on_each_round() -> None:
    order: list[str] = []
    subjects = {name: lambda n, name=name: order.append(f"{name}{n}") for name in "abc"}
    take_turns(subjects, seconds=0, rounds=(3, 3))
    timed = order[9::2]  # after three warm-up rounds, each turn is two calls
    assert timed == ["a0", "b0", "c0", "b1", "c1", "a1", "c2", "a2", "b2"]


def test_who_is_aside_takes_part_rarely() -> None:
    clock = Clock()
    found = take_turns(
        {"a": clock.taking(1), "b": clock.taking(1)}, seconds=0, rounds=(10, 10), aside=frozenset("b"), clock=clock
    )
    assert (len(found["a"].seconds), len(found["b"].seconds)) == (10, 10 // RARELY)


@pytest.mark.parametrize(("percent", "value"), [(0, 1.0), (50, 2.5), (100, 4.0), (99, 3.97)])
def test_percentiles_interpolate(percent: float, value: float) -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], percent) == pytest.approx(value)
    assert Timing((4.0, 1.0, 3.0, 2.0)).p50 == 2.5


def test_energy_is_that_of_one_run_or_none() -> None:
    clock, cpu = Clock(), Clock()

    def run(number: int) -> None:
        clock.now += 0.5
        cpu.now += 1.0

    found = joules_per_run(run, lambda spent, wall: (spent * 10, "ten watts"), seconds=2, clock=clock, cpu_clock=cpu)
    assert found == pytest.approx(10.0)
    assert joules_per_run(run, lambda spent, wall: (None, "no meter"), clock=clock) is None
