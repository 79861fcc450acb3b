"""From an engine's own thread to the event loop of whoever asked.

Knows tokens, loops, turns and cancellation. Refuses to know models.

    event loop: `hear(tokens)` ◄─ Mail, one wake-up for all that came since the last ─ engine thread: `job.give`, `job.fail`
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, Generic, TypeVar

from maasdam.core import Meter, SequenceEngine, SequenceRequest, Tokens
from maasdam.engines.tensors import closed
from maasdam.errors import DeadlineExceeded, EngineFailure

log = logging.getLogger("maasdam.engines")
HAND_OVER_SECONDS = 0.005
"""An engine waits no longer for an event loop to take what came of its step."""
Piece = TypeVar("Piece")
Hear = Callable[[Tokens | BaseException], None]


class Mail:
    """What engines' threads have for one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._items: deque[tuple[Job, Tokens | BaseException]] = deque()
        self._is_woken = False
        self._is_read = threading.Event()

    def post(self, job: Job, item: Tokens | BaseException) -> None:
        """From any thread."""
        self._items.append((job, item))
        if not self._is_woken:
            self._is_woken = True
            self._is_read.clear()
            self.loop.call_soon_threadsafe(self._deliver)

    def hand_over(self) -> None:
        """Let the loop read what was posted. An engine that holds Python's lock while it computes, as OpenVINO GenAI does,
        would keep what came of one step until after the next."""
        if self._is_woken:
            self._is_read.wait(HAND_OVER_SECONDS)

    def _deliver(self) -> None:
        self._is_woken = False  # before the look: who posts after it wakes us again
        items = self._items
        while items:
            job, item = items.popleft()
            if not job.is_cancelled:
                try:
                    job.hear(item)
                except Exception:  # one that can't hear must not keep the others from theirs
                    job.is_cancelled = True
                    log.exception("what was generated for request %s could not be given to it", job.request.id)
        self._is_read.set()


class Job:
    """One generation in flight. Made in the event loop; fed from the engine's thread."""

    __slots__ = ("_mail", "hear", "is_cancelled", "request")

    def __init__(self, request: SequenceRequest, hear: Hear, mail: Mail) -> None:
        self.request = request
        self.hear = hear
        self.is_cancelled = False
        """Set from the event loop, read by the engine's thread between steps."""
        self._mail = mail

    def give(self, tokens: Tokens) -> None:
        """Hand tokens over; those with a `finish_reason` are the last."""
        self._post(tokens)

    def fail(self, error: BaseException) -> None:
        """End with an error."""
        self._post(error)

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        self.is_cancelled = True

    def _post(self, item: Tokens | BaseException) -> None:
        try:
            self._mail.post(self, item)
        except RuntimeError:
            self.is_cancelled = True  # the loop is closed


async def as_they_come(
    begin: Callable[[Callable[[Piece | BaseException], None]], Callable[[], object]], is_last: Callable[[Piece], bool]
) -> AsyncGenerator[Piece]:
    """What `begin` has told to what it is given, to be awaited; raises the errors among it. Closing this calls what it gave."""
    mail: asyncio.Queue[Piece | BaseException] = asyncio.Queue()
    cancel = begin(mail.put_nowait)
    try:
        while True:
            piece = await mail.get()
            if isinstance(piece, BaseException):
                raise piece
            yield piece
            if is_last(piece):
                return
    finally:
        cancel()


def tokens_of(engine: SequenceEngine, request: SequenceRequest) -> AsyncGenerator[Tokens]:
    """What `SequenceEngine.start` tells, to be awaited; closing this cancels."""
    return as_they_come(lambda hear: engine.start(request, hear), lambda tokens: tokens.finish_reason is not None)


def told(
    pieces: AsyncGenerator[Piece], hear: Callable[[Piece | BaseException], None], is_last: Callable[[Piece], bool]
) -> Callable[[], object]:
    """The other way round: have `hear` told of what comes, or of the error that ends it. What this gives closes `pieces`."""

    async def listen() -> None:
        async with aclosing(pieces):
            try:
                async for piece in pieces:
                    hear(piece)
                    if is_last(piece):
                        return
                raise EngineFailure("a generation ended without saying why")
            except Exception as error:
                hear(error)

    return asyncio.ensure_future(listen()).cancel


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
        self._mail: Mail | None = None
        self._thread = threading.Thread(target=self._live, name=name, daemon=True)
        self._thread.start()

    def start(self, request: SequenceRequest, hear: Hear, meter: Meter) -> Callable[[], None]:
        """See `SequenceEngine.start`. `meter` is told whose thread waits here. Raises EngineFailure where it was closed."""
        meter.exclude_this_thread()
        loop = asyncio.get_running_loop()
        with self._wake:
            if self._is_closing:
                raise closed(self._name)
            if self._mail is None or self._mail.loop is not loop:
                self._mail = Mail(loop)
            job = Job(request, hear, self._mail)
            self._waiting.append(job)
            self._wake.notify()
        return job.cancel

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
                if self._mail is not None:
                    self._mail.hand_over()
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
