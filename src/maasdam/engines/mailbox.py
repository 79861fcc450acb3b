"""From an engine's own thread to the event loop of whoever asked.

Knows tokens, loops and cancellation. Refuses to know models.

    event loop: `tokens_of(job, start, cancel)` ◄─ call_soon_threadsafe ─ engine thread: `job.give`, `job.fail`
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

from maasdam.core import SequenceRequest, Tokens


class Job:
    """One generation in flight. Made in the event loop; fed from the engine's thread."""

    def __init__(self, request: SequenceRequest) -> None:
        self.request = request
        self.is_cancelled = False
        """Set from the event loop, read by the engine's thread between steps."""
        self._loop = asyncio.get_running_loop()
        self._mail: asyncio.Queue[Tokens | BaseException] = asyncio.Queue()

    def give(self, tokens: Tokens) -> None:
        """Hand tokens over; those with a `finish_reason` are the last."""
        self._post(tokens)

    def fail(self, error: BaseException) -> None:
        """End with an error."""
        self._post(error)

    def _post(self, item: Tokens | BaseException) -> None:
        try:
            self._loop.call_soon_threadsafe(self._mail.put_nowait, item)
        except RuntimeError:
            self.is_cancelled = True  # the loop is closed: nobody waits any more

    async def read(self) -> Tokens:
        """The next tokens. Raises what the engine failed with."""
        item = await self._mail.get()
        if isinstance(item, BaseException):
            raise item
        return item


async def tokens_of(job: Job, start: Callable[[Any], None]) -> AsyncGenerator[Tokens]:
    """Start the job and yield its tokens to the last; leaving early cancels it."""
    start(job)
    try:
        while True:
            tokens = await job.read()
            yield tokens
            if tokens.finish_reason is not None:
                return
    finally:
        job.is_cancelled = True
