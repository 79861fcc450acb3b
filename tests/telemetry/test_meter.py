"""CPU-seconds and joules are billed once, whoever works at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from types import SimpleNamespace

import numpy as np
import pytest

from maasdam.core import Tensors
from maasdam.telemetry.meter import CpuMeter


def test_compute_is_shared_among_open_spans_and_adds_up() -> None:
    now = 0.0
    clock = CpuMeter(engine_seconds=lambda: now)
    now = 5.0
    one = clock.start()
    now = 6.0
    two = clock.start()
    now = 8.0
    assert clock.stop(one).cpu_seconds == pytest.approx(2.0)
    now = 9.0
    assert clock.stop(two).cpu_seconds == pytest.approx(2.0)


def test_compute_counts_this_process_and_leaves_out_threads_that_are_not_engines() -> None:
    clock = CpuMeter()
    span = clock.start()
    sum(i * i for i in range(300_000))
    assert clock.stop(span).cpu_seconds > 0.003
    clock.exclude_this_thread()
    span = clock.start()
    sum(i * i for i in range(300_000))
    assert clock.stop(span).cpu_seconds < 0.003


async def test_engines_that_work_at_the_same_time_are_billed_what_the_meter_saw_and_no_more() -> None:
    """Tensors, text and speech side by side: each second of the counter, and each joule, is on one bill."""
    from maasdam.serving.scheduler import Scheduler

    spent = [0.0]
    power = SimpleNamespace(rate=7.0, method="fake")
    meter = CpuMeter(power, lambda: spent[0])

    def works(batch: Tensors) -> dict[str, np.ndarray]:
        for _ in range(10):
            spent[0] += 0.013
        return {"y": batch["x"]}

    async def steps(number: int, share: float) -> AsyncGenerator[float]:
        """As a sequence engine does: a span a step, of which requests have shares."""
        for _ in range(number):
            span = meter.start()
            await asyncio.sleep(0)
            spent[0] += 0.021
            cost = meter.stop(span)
            assert cost.joules == pytest.approx(7.0 * cost.cpu_seconds)
            yield cost.part(share).cpu_seconds + cost.part(1 - share).cpu_seconds

    async def all_of(generator: AsyncGenerator[float]) -> float:
        async with aclosing(generator) as given:
            return sum([one async for one in given])

    scheduler = Scheduler(works, queue_size=64, meter=meter)
    outer = meter.start()
    inner = asyncio.gather(
        *(scheduler.run({"x": np.ones((rows, 2), np.float32)}) for rows in (1, 2, 3, 1, 5)),
    )
    text, speech, rans = await asyncio.gather(all_of(steps(20, 0.3)), all_of(steps(7, 0.5)), inner)
    nobody = meter.stop(outer)
    billed = text + speech + sum(ran.cost.cpu_seconds for ran in rans) + nobody.cpu_seconds
    assert billed == pytest.approx(spent[0], rel=0.01)
    joules = [ran.cost.joules for ran in rans]
    assert sum(j for j in joules if j is not None) == pytest.approx(7.0 * sum(ran.cost.cpu_seconds for ran in rans))
    await asyncio.to_thread(scheduler.close)


def test_what_is_unmeasured_stays_so() -> None:
    seconds = 0.0
    meter = CpuMeter(SimpleNamespace(rate=None, method="no counter"), lambda: seconds)
    span = meter.start()
    seconds = 2.0
    assert meter.stop(span) == (2.0, None, "no counter")
    assert CpuMeter(engine_seconds=lambda: seconds).known(1.0).joules is None
