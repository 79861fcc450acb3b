"""What an engine's thread makes reaches the event loop, in order, before the engine computes on."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator

import pytest

from maasdam.core import SequenceRequest, Tokens
from maasdam.engines import mailbox
from maasdam.engines.mailbox import Job, Turns
from maasdam.telemetry.meter import CpuMeter

STEPS = 8


class _Running:
    def __init__(self, job: Job) -> None:
        self.job = job


@pytest.fixture
def greedy_threads() -> Iterator[None]:
    """Threads that let go of Python's lock only where they wait: as in a library that computes without letting go of it."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(10)
    yield
    sys.setswitchinterval(before)


async def test_what_a_step_gave_is_heard_before_the_next(greedy_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailbox, "HAND_OVER_SECONDS", 10.0)
    begun = 0

    def step(running: list[_Running]) -> list[_Running]:
        nonlocal begun
        begun += 1
        until = time.thread_time() + 0.002
        while time.thread_time() < until:
            pass
        for one in running:
            one.job.give(Tokens((begun,), finish_reason="length" if begun == STEPS else None))
        return running if begun < STEPS else []

    heard: list[tuple[int, int]] = []
    over = asyncio.Event()

    def hear(tokens: Tokens | BaseException) -> None:
        assert isinstance(tokens, Tokens)
        heard.append((tokens.token_ids[0], begun))
        if tokens.finish_reason is not None:
            over.set()

    turns = Turns("test", _Running, step)
    turns.start(SequenceRequest("a", {}), hear, CpuMeter())
    await asyncio.wait_for(over.wait(), 20)
    turns.close()
    assert heard == [(i, i) for i in range(1, STEPS + 1)]
