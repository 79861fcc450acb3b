"""The scheduler's promises."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from tests.fakes import FakeEngine
from tests.waiting import until

from maasdam.core import Tensors
from maasdam.errors import DeadlineExceeded, EngineFailure, NotReady, Overloaded
from maasdam.serving.pace import Pace
from maasdam.serving.scheduler import Scheduler


class Eights(Pace):
    """Eight rows, whatever is measured."""

    cap = 8


def row(*values: float) -> Tensors:
    return {"x": np.array([values], np.float32)}


@asynccontextmanager
async def scheduler(engine: FakeEngine, **options: Any) -> AsyncIterator[Scheduler]:
    it = Scheduler(engine.run, queue_size=options.pop("queue_size", 100), **options)
    try:
        yield it
    finally:
        engine.gate.set()
        await asyncio.to_thread(it.close)


async def hold(it: Scheduler, engine: FakeEngine) -> asyncio.Task[Any]:
    """Keep the engine thread busy with one item, so that what comes next is queued."""
    engine.gate.clear()
    held = asyncio.create_task(it.run(row(0, 0)))
    await asyncio.sleep(0)
    await until(lambda: it.waiting == 0)
    return held


async def test_each_sender_gets_its_own_rows_of_a_batch() -> None:
    engine = FakeEngine(delay=0.002)
    async with scheduler(engine) as it:
        many = await asyncio.gather(*(it.run(row(i, -i)) for i in range(200)), return_exceptions=True)
        answered = [(i, ran) for i, ran in enumerate(many) if not isinstance(ran, Overloaded)]
        assert len(answered) >= 100
        for i, ran in answered:
            assert not isinstance(ran, BaseException)
            assert ran.outputs["y"].tolist() == [[2 * i, -2 * i]]
        assert max(engine.batches) > 1, "a fixed cost per batch makes batching pay"


async def test_items_of_another_shape_are_not_batched_together() -> None:
    engine = FakeEngine()
    async with scheduler(engine, pace=Eights()) as it:
        held = await hold(it, engine)
        same = [asyncio.create_task(it.run(row(i, i))) for i in range(3)]
        other = asyncio.create_task(it.run({"x": np.ones((1, 5), np.float32)}))
        await until(lambda: it.waiting == 4)
        engine.gate.set()
        await asyncio.gather(held, other, *same)
        assert engine.batches == [1, 3, 1]


async def test_bad_item_fails_only_its_sender() -> None:
    engine = FakeEngine(fails=lambda batch: bool((batch["x"] == 13).any()))
    async with scheduler(engine, pace=Eights()) as it:
        held = await hold(it, engine)
        tasks = [asyncio.create_task(it.run(row(v, v))) for v in (1, 13, 2)]
        await until(lambda: it.waiting == 3)
        engine.gate.set()
        good, bad, also_good = await asyncio.gather(*tasks, return_exceptions=True)
        await held
        assert engine.batches[1] == 3, "they ran as one batch first"
        assert isinstance(bad, EngineFailure)
        assert not isinstance(good, BaseException) and good.outputs["y"].tolist() == [[2, 2]]
        assert not isinstance(also_good, BaseException) and also_good.outputs["y"].tolist() == [[4, 4]]


async def test_the_loop_outlives_an_engine_that_breaks_in_any_way() -> None:
    class Rude(FakeEngine):
        def run(self, batch: Tensors) -> dict[str, Any]:
            if batch["x"][0, 0] == 13:
                raise KeyboardInterrupt
            return super().run(batch)

    engine = Rude()
    async with scheduler(engine) as it:
        with pytest.raises(EngineFailure):
            await it.run(row(13, 0))
        assert (await it.run(row(1, 2))).outputs["y"].tolist() == [[2, 4]]


async def test_a_full_queue_answers_at_once() -> None:
    engine = FakeEngine()
    async with scheduler(engine, queue_size=2) as it:
        held = await hold(it, engine)
        waiting = [asyncio.create_task(it.run(row(1, 1))) for _ in range(2)]
        await until(lambda: it.waiting == 2)
        began = time.perf_counter()
        with pytest.raises(Overloaded):
            await it.run(row(2, 2))
        assert time.perf_counter() - began < 0.05
        engine.gate.set()
        await asyncio.gather(held, *waiting)


async def test_an_expired_item_never_reaches_the_engine() -> None:
    engine = FakeEngine()
    now = 100.0
    async with scheduler(engine, clock=lambda: now) as it:
        held = await hold(it, engine)
        late = asyncio.create_task(it.run(row(1, 1), deadline=101.0))
        await until(lambda: it.waiting == 1)
        now = 102.0
        engine.gate.set()
        with pytest.raises(DeadlineExceeded):
            await late
        await held
        assert engine.batches == [1]


async def test_a_cancelled_item_leaves_the_queue() -> None:
    engine = FakeEngine()
    async with scheduler(engine) as it:
        held = await hold(it, engine)
        gone = asyncio.create_task(it.run(row(1, 1)))
        await until(lambda: it.waiting == 1)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        assert it.waiting == 0
        engine.gate.set()
        await held
        assert engine.batches == [1]


async def test_closing_fails_what_is_queued() -> None:
    engine = FakeEngine()
    async with scheduler(engine) as it:
        held = await hold(it, engine)
        queued = asyncio.create_task(it.run(row(1, 1)))
        await until(lambda: it.waiting == 1)
        closing = asyncio.create_task(asyncio.to_thread(it.close))
        with pytest.raises(NotReady):
            await queued
        engine.gate.set()
        await closing
        assert (await held).outputs["y"].tolist() == [[0, 0]]
        with pytest.raises(NotReady):
            await it.run(row(1, 1))


async def test_a_model_whose_outputs_are_no_batch_runs_item_by_item() -> None:
    class Sums(FakeEngine):
        def run(self, batch: Tensors) -> dict[str, Any]:
            self.gate.wait(30)
            self.batches.append(batch["x"].shape[0])
            return {"y": batch["x"].sum(keepdims=True)[0]}

    engine = Sums()
    async with scheduler(engine, pace=Eights()) as it:
        held = await hold(it, engine)
        tasks = [asyncio.create_task(it.run(row(v, v))) for v in (1, 2)]
        await until(lambda: it.waiting == 2)
        engine.gate.set()
        one, two = await asyncio.gather(*tasks)
        await held
        assert one.outputs["y"].tolist() == [2] and two.outputs["y"].tolist() == [4]
        assert it.cap == 1


def test_pace_grows_where_batching_pays_and_stays_where_it_does_not() -> None:
    mlp, conv = Pace(), Pace()
    for _ in range(40):
        mlp.learn(mlp.cap, 0.001 + 0.00001 * mlp.cap)
        conv.learn(conv.cap, 0.05 * conv.cap * 1.05)
    assert mlp.cap >= 64
    assert conv.cap == 1


def test_pace_forgives_one_slow_measurement() -> None:
    pace = Pace()
    pace.learn(1, 0.001)
    pace.learn(2, 0.5)
    for _ in range(3000):
        pace.learn(pace.cap, 0.001 + 0.0001 * pace.cap)
    assert pace.cap > 1


async def small(engine: FakeEngine, it: Scheduler) -> None:
    for _ in range(3):
        await it.run(row(1, 1))
    assert it.is_inline


async def test_a_tiny_model_runs_all_that_came_in_one_turn_as_one_batch() -> None:
    engine = FakeEngine()
    async with scheduler(engine, is_fixed=True) as it:
        await small(engine, it)
        engine.batches.clear()
        many = await asyncio.gather(*(it.run(row(i, i)) for i in range(50)))
        assert engine.batches == [50]
        assert [ran.outputs["y"].tolist() for ran in many] == [[[2 * i, 2 * i]] for i in range(50)]
        assert sum(ran.cost.cpu_seconds for ran in many) > 0


async def test_a_bad_item_fails_only_its_sender_in_the_event_loop_too() -> None:
    engine = FakeEngine(fails=lambda batch: bool((batch["x"] == 13).any()))
    async with scheduler(engine, is_fixed=True) as it:
        await small(engine, it)
        good, bad = await asyncio.gather(it.run(row(1, 1)), it.run(row(13, 13)), return_exceptions=True)
        assert isinstance(bad, EngineFailure) and not isinstance(good, BaseException)
        gone = asyncio.create_task(it.run(row(1, 1)))
        await asyncio.sleep(0)
        gone.cancel()
        assert (await it.run(row(2, 2))).outputs["y"].tolist() == [[4, 4]]


async def test_a_model_that_blocks_the_event_loop_gets_a_thread() -> None:
    class Heavy(FakeEngine):
        def run(self, batch: Tensors) -> dict[str, Any]:
            if batch["x"][0, 0] == 7:
                end = time.thread_time() + 0.05
                while time.thread_time() < end:
                    pass
            return super().run(batch)

    engine = Heavy()
    async with scheduler(engine, is_fixed=True) as it:
        await small(engine, it)
        await it.run(row(7, 7))
        assert not it.is_inline
        assert (await it.run(row(2, 2))).outputs["y"].tolist() == [[4, 4]]


async def test_a_model_with_dynamic_sizes_never_runs_in_the_event_loop() -> None:
    engine = FakeEngine()
    async with scheduler(engine, is_fixed=False) as it:
        await it.run(row(1, 1))
        assert not it.is_inline
