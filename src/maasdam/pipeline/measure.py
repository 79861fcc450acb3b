"""Time things against each other on one machine.

Knows clocks, rounds and medians. Refuses to know what is timed. Everything that is compared takes turns, so that what
else the machine does meets all of them alike.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Joules = Callable[[float, float], tuple[float | None, str]]
"""(processor seconds, the last so many seconds) -> (joules or None, the method or why not)."""
MEASURE_SECONDS = 10.0
ENERGY_SECONDS = 2.0
WARM_UP = 3
RARELY = 5
"""Who is only shown beside the others takes part in one round of so many."""


@dataclass(frozen=True, slots=True)
class Timing:
    """What one subject took, run by run."""

    seconds: tuple[float, ...]

    @property
    def p50(self) -> float:
        """Median, seconds."""
        return percentile(self.seconds, 50)

    @property
    def p99(self) -> float:
        """99th percentile, seconds."""
        return percentile(self.seconds, 99)


def percentile(values: Sequence[float], percent: float) -> float:
    """By linear interpolation between the closest ranks. `values` is not empty."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low, high = math.floor(place), math.ceil(place)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def take_turns(
    subjects: Mapping[str, Callable[[int], object]],
    *,
    seconds: float,
    rounds: tuple[int, int] = (20, 200),
    aside: frozenset[str] = frozenset(),
    tell: Callable[[int, int], None] = lambda done, total: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Call each subject once a round, who begins moving on by one each round; each is given the round's number.

    At least rounds[0]; then until `seconds` have passed or rounds[1] are done. Three warm-up rounds are not counted, nor is
    the first of two calls in each turn: it finds the caches as another subject left them, and its threads asleep.
    Those named in `aside` are shown beside the others, not compared: they take part in every fifth round only.
    """
    for warm in range(WARM_UP):
        for name, run in subjects.items():
            if name not in aside or not warm:
                run(warm)
    names = list(subjects)
    took: dict[str, list[float]] = {name: [] for name in names}
    began = clock()
    for number in range(rounds[1]):
        if number >= rounds[0] and clock() - began > seconds:
            break
        tell(number, rounds[1])
        first = number % len(names)
        for name in names[first:] + names[:first]:
            if name in aside and number % RARELY:
                continue
            subjects[name](number)
            start = clock()
            subjects[name](number)
            took[name].append(clock() - start)
    return {name: Timing(tuple(took[name])) for name in names}


def joules_per_run(
    run: Callable[[int], object],
    joules: Joules,
    *,
    seconds: float = ENERGY_SECONDS,
    clock: Callable[[], float] = time.perf_counter,
    cpu_clock: Callable[[], float] = time.process_time,
) -> float | None:
    """Joules of one run, from running for `seconds` without pause; None where nothing measures energy."""
    if joules(0.0, 1.0)[0] is None:
        return None
    start, cpu_start = clock(), cpu_clock()
    count = 0
    while count < 2 or clock() - start < seconds:
        run(count)
        count += 1
    total, _ = joules(cpu_clock() - cpu_start, clock() - start)
    return None if total is None else total / count
