"""The process ends in time, whatever hangs."""

from __future__ import annotations

import faulthandler
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from maasdam.operations import leaving
from maasdam.operations.leaving import Leaving


@pytest.fixture(autouse=True)
def last_clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The clock that ends a process without asking Python would end the tests' own."""
    set_to: list[float] = []
    monkeypatch.setattr(faulthandler, "dump_traceback_later", lambda seconds, exit: set_to.append(seconds))
    yield set_to


def test_at_the_end_of_the_grace_what_must_be_kept_is_closed_and_the_process_left(last_clock: list[float]) -> None:
    happened: queue.Queue[object] = queue.Queue()
    it = Leaving(0.05, lambda: happened.put("closed"), happened.put)
    it.begin()
    it.begin()  # the grace runs from the first signal
    assert [happened.get(timeout=10), happened.get(timeout=10)] == ["closed", 0]
    assert happened.empty() and len(last_clock) == 1 and last_clock[0] > 0.05


def test_told_twice_it_is_left_at_once() -> None:
    happened: queue.Queue[object] = queue.Queue()
    it = Leaving(1000, lambda: happened.put("closed"), happened.put)
    it.begin()
    it.at_once()
    assert [happened.get(timeout=10), happened.get(timeout=10)] == ["closed", 0]


@pytest.mark.parametrize("hangs", [True, False])
def test_a_ledger_that_does_not_close_is_not_waited_for_and_the_status_says_so(
    hangs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leaving, "CLOSE_SECONDS", 0.05)
    ended: queue.Queue[int] = queue.Queue()
    gate = threading.Event()

    def close() -> None:
        if not hangs:
            raise RuntimeError("the disk is gone")
        gate.wait(30)

    Leaving(0.0, close, ended.put).begin()
    status = ended.get(timeout=10)
    gate.set()
    assert status == 1


def test_requests_may_take_most_of_the_grace() -> None:
    assert Leaving(10, lambda: None).finish_seconds == 9
    assert 0 < Leaving(0.4, lambda: None).finish_seconds < 0.4


HANGS = """
import os, signal, time
from maasdam.operations.leaving import Leaving
signal.signal(signal.SIGTERM, lambda number, frame: None)
Leaving(1000, lambda: None, lambda status: os._exit(40 + status)).watch_signals()
signal.raise_signal(signal.SIGTERM)
signal.raise_signal(signal.SIGTERM)
until = time.monotonic() + 60
while time.monotonic() < until:
    time.sleep(1)
"""


def test_signals_are_heard_while_the_main_thread_hangs() -> None:
    """In a process of its own: signals are the whole process's."""
    assert subprocess.run([sys.executable, "-c", HANGS], timeout=100).returncode == 40
