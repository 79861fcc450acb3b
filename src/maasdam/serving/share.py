"""A model's own threads, for what decodes, renders and translates its payloads. Knows threads; never what they do.

Each replica has threads of its own, which end when there is nothing to do: a chat template that loops, a tokenizer's regular
expression without end or a picture that takes a minute holds up its own model and no other. Threads can't be ended from
without, so these are daemons: nobody waits for them when the process ends.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

THREADS = 4
"""Of one replica. More would only take turns: much of the work holds Python's lock."""
IDLE_SECONDS = 30.0
"""A thread without work for so long ends."""
Result = TypeVar("Result")


class Share(Executor):
    """An executor whose threads come and go and are never waited for. Thread-safe."""

    def __init__(
        self,
        name: str,
        around: Callable[[], AbstractContextManager[None]] = nullcontext,
        *,
        threads: int = THREADS,
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        """`around` is entered in each thread for as long as it lives."""
        self._name = name
        self._around = around
        self._most = threads
        self._idle_seconds = idle_seconds
        self._ready = threading.Condition()
        self._work: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._threads = 0
        self._idle = 0

    def submit(self, fn: Callable[..., Result], /, *args: Any, **kwargs: Any) -> Future[Result]:
        """Run it in one of the threads, in order of arrival."""
        future: Future[Result] = Future()
        with self._ready:
            self._work.append((future, lambda: fn(*args, **kwargs)))
            if self._idle >= len(self._work):
                self._ready.notify()
            elif self._threads < self._most:
                self._threads += 1
                threading.Thread(target=self._live, name=self._name, daemon=True).start()
        future.add_done_callback(self._drop)
        return future

    def _drop(self, future: Future[Any]) -> None:
        """Where nobody waits for it any more, nothing is kept of it: threads that hang would never come to it."""
        if future.cancelled():
            with self._ready:
                self._work = deque(job for job in self._work if job[0] is not future)

    def _live(self) -> None:
        with self._around():
            while (job := self._next()) is not None:
                future, call = job
                if not future.set_running_or_notify_cancel():
                    continue
                try:
                    result = call()
                except BaseException as error:
                    future.set_exception(error)
                    del error  # or it and this frame keep each other, and the payload
                else:
                    future.set_result(result)
                    del result
                del job, future, call

    def _next(self) -> tuple[Future[Any], Callable[[], Any]] | None:
        """None: nothing came for a while, and this thread is to end."""
        with self._ready:
            self._idle += 1
            came = self._ready.wait_for(lambda: bool(self._work), self._idle_seconds)
            self._idle -= 1
            if came:
                return self._work.popleft()
            self._threads -= 1
            return None


async def apart(
    name: str,
    call: Callable[..., Result],
    *args: Any,
    around: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Result:
    """Await `call(*args)` in a thread of its own, inside `around`: what may hang must take no thread that others wait for."""
    share = Share(name, around, threads=1, idle_seconds=0.0)
    return await asyncio.get_running_loop().run_in_executor(share, lambda: call(*args))
