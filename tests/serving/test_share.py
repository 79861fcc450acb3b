"""A replica's own threads."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from maasdam.serving.share import Share, apart
from maasdam.telemetry.meter import CpuMeter


def test_work_is_done_and_errors_are_handed_back() -> None:
    share = Share("test")
    assert [f.result(10) for f in [share.submit(pow, 2, i) for i in range(50)]] == [2**i for i in range(50)]
    with pytest.raises(ZeroDivisionError):
        share.submit(lambda: 1 / 0).result(10)


def test_there_are_no_more_threads_than_said_and_they_end_when_idle() -> None:
    alive: set[str] = set()
    ended = threading.Event()
    gate, begun = threading.Event(), threading.Semaphore(0)

    @contextmanager
    def around() -> Iterator[None]:
        alive.add(str(threading.get_ident()))
        yield
        alive.discard(str(threading.get_ident()))
        if not alive:
            ended.set()

    def work() -> None:
        begun.release()
        assert gate.wait(10)

    share = Share("test", around, threads=2, idle_seconds=0.01)
    futures = [share.submit(work) for _ in range(5)]
    for _ in range(2):
        assert begun.acquire(timeout=10)
    assert len(alive) == 2 and not begun.acquire(blocking=False)
    gate.set()
    for future in futures:
        future.result(10)
    assert ended.wait(10)
    assert share.submit(pow, 2, 3).result(10) == 8  # and come again


def test_work_that_nobody_waits_for_any_more_is_not_begun() -> None:
    gate, begun = threading.Event(), threading.Event()
    share = Share("test", threads=1)
    first = share.submit(lambda: (begun.set(), gate.wait(10)))
    assert begun.wait(10)
    second = share.submit(pow, 2, 2)
    assert second.cancel()
    gate.set()
    first.result(10)
    assert share.submit(pow, 2, 3).result(10) == 8


def test_work_that_nobody_waits_for_any_more_is_not_kept_by_threads_that_hang() -> None:
    gate, begun = threading.Event(), threading.Event()
    share = Share("test", threads=1)
    first = share.submit(lambda: (begun.set(), gate.wait(10)))
    assert begun.wait(10)
    payload = type("Payload", (), {})()
    kept = weakref.ref(payload)
    second, third = share.submit(id, payload), share.submit(pow, 2, 2)
    assert second.cancel()
    del payload
    gc.collect()
    assert kept() is None
    gate.set()
    first.result(10)
    assert third.result(10) == 4


async def test_apart_answers_while_others_hang() -> None:
    assert await apart("test", pow, 2, 5) == 32
    with pytest.raises(ZeroDivisionError):
        await apart("test", lambda: 1 / 0)


def test_what_a_thread_spent_stays_excluded_when_it_has_ended() -> None:
    clock = CpuMeter()

    def busy() -> None:
        with clock.without_this_thread():
            sum(i * i for i in range(2_000_000))

    span = clock.start()
    thread = threading.Thread(target=busy)
    clock.exclude_this_thread()
    thread.start()
    thread.join()
    assert clock.stop(span).cpu_seconds < 0.1
