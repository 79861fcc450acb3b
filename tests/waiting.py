"""Waiting for what another thread, task or process does. The only naps in the tests are the two here."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

Found = TypeVar("Found")
NAP_SECONDS = 0.005


def wait_until(
    condition: Callable[[], Found], seconds: float = 30.0, what: str | Callable[[], str] = "it did not come true"
) -> Found:
    """What `condition` gives once that is true; AssertionError, with `what`, where it is not within `seconds`."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, what if isinstance(what, str) else what()
        time.sleep(NAP_SECONDS)
    return found


async def until(condition: Callable[[], Found], seconds: float = 30.0) -> Found:
    """The same for a task, whose event loop goes on."""
    async with asyncio.timeout(seconds):
        while not (found := condition()):  # noqa: ASYNC110 - what is waited for may be in another thread
            await asyncio.sleep(NAP_SECONDS)
    return found
