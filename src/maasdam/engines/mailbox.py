"""From an engine's own thread to the event loop of whoever asked.

Knows tokens, loops, turns and cancellation. Refuses to know models.

    event loop: `tokens_of(request, add, meter)` ◄─ call_soon_threadsafe ─ engine thread: `job.give`, `job.fail`
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import Any, Generic, TypeVar

from maasdam.core import Meter, SequenceRequest, Tokens
from maasdam.engines.tensors import closed
from maasdam.errors import DeadlineExceeded, EngineFailure


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


async def tokens_of(request: SequenceRequest, add: Callable[[Job], None], meter: Meter) -> AsyncGenerator[Tokens]:
    """Add a job and yield its tokens to the last; leaving early cancels it. `meter` is told whose thread waits here."""
    meter.exclude_this_thread()
    job = Job(request)
    add(job)
    try:
        while True:
            tokens = await job.read()
            yield tokens
            if tokens.finish_reason is not None:
                return
    finally:
        job.is_cancelled = True


Running = TypeVar("Running", bound=Any)
"""An answer in progress; `job` is whose."""


class Turns(Generic[Running]):
    """An engine's own thread: takes in what is new, drops what is cancelled or late, and steps what is left, until closed."""

    def __init__(
        self,
        name: str,
        join: Callable[[Job], Running | None],
        step: Callable[[list[Running]], list[Running]],
        drop: Callable[[Running], None] = lambda running: None,
        most: int = sys.maxsize,
    ) -> None:
        """`join` begins a job, None where it failed it; `step` gives those still running; `most` run at once, others wait."""
        self._name, self._join, self._step, self._drop, self._most = name, join, step, drop, most
        self._waiting: deque[Job] = deque()
        self._wake = threading.Condition()
        self._is_closing = False
        self._thread = threading.Thread(target=self._live, name=name, daemon=True)
        self._thread.start()

    def add(self, job: Job) -> None:
        """Raises EngineFailure where it was closed."""
        with self._wake:
            if self._is_closing:
                raise closed(self._name)
            self._waiting.append(job)
            self._wake.notify()

    def close(self) -> None:
        """End the thread; jobs in flight end with EngineFailure."""
        with self._wake:
            self._is_closing = True
            self._wake.notify()
        self._thread.join()

    def _live(self) -> None:
        running: list[Running] = []
        try:
            while True:
                with self._wake:
                    while not (self._waiting or running or self._is_closing):
                        self._wake.wait()
                    if self._is_closing:
                        return
                    room = min(len(self._waiting), self._most - len(running))
                    new = [job for job in (self._waiting.popleft() for _ in range(room)) if not job.is_cancelled]
                running += [r for job in new if (r := self._join(job)) is not None]
                running = self._step([r for r in running if not self._is_dropped(r)])
        finally:
            with self._wake:
                self._is_closing = True
                left = [*self._waiting, *(r.job for r in running)]
            for job in left:
                job.fail(EngineFailure(f"the {self._name} engine was closed while it generated"))
            for r in running:
                self._drop(r)

    def _is_dropped(self, r: Running) -> bool:
        request = r.job.request
        late = request.deadline is not None and time.monotonic() > request.deadline
        if late:
            r.job.fail(DeadlineExceeded(f"request {request.id} was not done in time; its tokens are dropped"))
        if late or r.job.is_cancelled:
            self._drop(r)
            return True
        return False
