"""Turn requests into batches. Knows shapes, rows and time; never models, HTTP or money.

    submit -> queue (bounded; full answers at once) -> take (oldest first, same shape, not expired) -> engine -> split

There is no fixed delay: an engine thread that becomes free takes what is queued. A batch that fails is run again
item by item, so that a bad item fails only its sender. The loop outlives any batch.

Items of several callers are one batch only as far as `most_rows` says that it was proven to leave their answers alone.

A model so small that handing its work to a thread costs more than the work itself runs in the event loop: all items
that came in one turn of the loop are one batch (measured: half the CPU time a request). Whether it is so small is
measured while it warms up, and unlearnt when a batch blocks the loop for long.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from maasdam.core import Checked, Cost, Tensors
from maasdam.errors import DeadlineExceeded, EngineFailure, MaasdamError, NotReady, Overloaded
from maasdam.serving.executions import Executions
from maasdam.serving.pace import Pace
from maasdam.telemetry.meter import CpuMeter

if TYPE_CHECKING:
    from maasdam.core import type_array

log = logging.getLogger("maasdam.serving")

Run = Callable[[Tensors], Mapping[str, "type_array"]]
Shape = tuple[Any, ...]
TOO_LATE = "the request waited past its deadline; try again when the service is less busy"
INLINE_SECONDS = 0.0002
"""A model whose batch of one takes less runs in the event loop."""
MOST_INLINE_ROWS = 256
MOST_INLINE_ITEMS = 64
"""Items of one turn of the loop: those that may not be put together run one after the other."""
TOO_LONG_INLINE_SECONDS = 0.02
CLOSING = "this model is being taken down; send the request again"


Done = Callable[["Ran | BaseException"], None]


@dataclass(slots=True)
class Ran:
    """What became of one item."""

    outputs: dict[str, type_array]
    """Its own rows."""
    cost: Cost
    """Its share of what the batch took."""
    batch_rows: int


class Item:
    """One item that waits or runs."""

    __slots__ = ("came", "deadline", "done", "is_cancelled", "loop", "most", "number", "rows", "shape", "tensors")

    def __init__(self, tensors: Tensors, rows: int, most: int, shape: Shape, deadline: float | None, done: Done) -> None:
        self.tensors = tensors
        self.rows = rows
        self.most = most
        """Rows that a batch with this item in it may hold."""
        self.shape = shape
        self.deadline = deadline
        self.done = done
        self.loop = asyncio.get_running_loop()
        self.came = time.perf_counter()
        self.number = 0
        self.is_cancelled = False


Outcome = tuple[Item, "Ran | BaseException"]


class Scheduler:
    """One queue in front of one engine. `run` is awaited in the event loop; batches run in threads of its own."""

    def __init__(
        self,
        run: Run,
        *,
        queue_size: int,
        batches: bool = True,
        is_fixed: bool = False,
        most_rows: Callable[[Tensors], int] = lambda tensors: MOST_INLINE_ROWS,
        threads: int = 1,
        meter: CpuMeter | None = None,
        pace: Pace | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`batches`: the first axis of every input and output is the batch; `is_fixed`: no other axis is dynamic.

        `most_rows`: how many rows a batch with these tensors in it may hold, 1 for tensors that run alone.
        """
        self._engine = run
        self._queue_size = queue_size
        self._batches = batches
        self._most_rows = most_rows
        self._may_run_inline = is_fixed and batches
        self._tick: list[Item] = []
        self._tick_rows = 0
        self._meter = meter or CpuMeter()
        self._clock = clock
        self._pace = pace or Pace()
        self.executions = Executions()
        self._ready = threading.Condition()
        self._queues: dict[Shape, deque[Item]] = {}
        self._waiting = 0
        self._number = 0
        self._is_closed = False
        self._running: dict[int, float] = {}
        """When the batch of each thread that runs one began."""
        self._threads = [threading.Thread(target=self._work, name=f"engine-{i}", daemon=True) for i in range(threads)]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Items queued and not yet taken."""
        return self._waiting

    @property
    def running_since(self) -> float | None:
        """When the oldest batch that runs now began, by `time.perf_counter`; None: none does."""
        return min(list(self._running.values()), default=None)

    @property
    def cap(self) -> int:
        """Rows that the next batch may hold."""
        return self._pace.cap if self._batches else 1

    @property
    def is_inline(self) -> bool:
        """Whether batches run in the event loop."""
        if not self._may_run_inline:
            return False
        seconds = self._pace.seconds_alone
        return seconds is not None and seconds < INLINE_SECONDS

    def submit(self, tensors: Tensors, deadline: float | None, done: Done) -> Item:
        """Run one item; `done` is told in this event loop what became of it: Ran, DeadlineExceeded, EngineFailure, NotReady.

        Raises Overloaded when the queue is full, NotReady.
        """
        item = self._enqueue_inline(tensors, done) if self.is_inline else None
        return item or self._enqueue(tensors, deadline, done)

    def cancel(self, item: Item) -> None:
        """Out of the queue with it: `done` hears nothing any more. A batch that already runs is not interrupted."""
        item.is_cancelled = True
        with self._ready:
            queue = self._queues.get(item.shape)
            if queue is None or item not in queue:
                return
            queue.remove(item)
            self._waiting -= 1
            if not queue:
                del self._queues[item.shape]

    async def run(self, tensors: Tensors, deadline: float | None = None) -> Ran:
        """`submit`, awaited. Cancelling cancels the item."""
        future: asyncio.Future[Ran] = asyncio.get_running_loop().create_future()
        item = self.submit(tensors, deadline, partial(settle, future))
        try:
            return await future
        except asyncio.CancelledError:
            self.cancel(item)
            raise

    def close(self) -> None:
        """Fail what is queued with NotReady and end the threads once their batch is done."""
        with self._ready:
            self._is_closed = True
            left = [item for queue in self._queues.values() for item in queue]
            self._queues.clear()
            self._waiting = 0
            self._ready.notify_all()
        self._deliver([(item, NotReady(CLOSING)) for item in left])
        current = threading.current_thread()
        for thread in self._threads:
            if thread is not current:
                thread.join(timeout=30)

    def _enqueue(self, tensors: Tensors, deadline: float | None, done: Done) -> Item:
        shape = tuple((name, array.dtype.str, array.shape[1:]) for name, array in tensors.items())
        rows, most = self._counted(tensors)
        item = Item(tensors, rows, most, shape, deadline, done)
        with self._ready:
            if self._is_closed:
                raise NotReady(CLOSING)
            if self._waiting >= self._queue_size:
                raise Overloaded(f"{self._waiting} requests are already waiting for this model; try again in a second")
            self._number += 1
            item.number = self._number
            self._queues.setdefault(shape, deque()).append(item)
            self._waiting += 1
            self._ready.notify()
        return item

    def _counted(self, tensors: Tensors) -> tuple[int, int]:
        """Rows of an item, and how many a batch with it may hold. What has none, or several numbers of them, runs alone."""
        if not self._batches:
            return 1, 1
        counts = {array.shape[0] for array in tensors.values()}
        (rows, *others) = counts
        return max(rows, 1), 1 if others or not rows else self._most_rows(tensors)

    def _enqueue_inline(self, tensors: Tensors, done: Done) -> Item | None:
        """Into this turn's batch; None when it is full or being taken down: the queue decides then."""
        rows, most = self._counted(tensors)
        if self._is_closed or self._tick_rows + rows > MOST_INLINE_ROWS or len(self._tick) >= MOST_INLINE_ITEMS:
            return None
        item = Item(tensors, rows, most, (), None, done)
        if not self._tick:
            item.loop.call_soon(self._run_tick)
        self._tick.append(item)
        self._tick_rows += rows
        return item

    def _run_tick(self) -> None:
        batch = [item for item in self._tick if not item.is_cancelled]
        self._tick = []
        self._tick_rows = 0
        if not batch:
            return
        began = time.thread_time()  # not wall time: being preempted is not the model's doing
        try:
            outcomes = [outcome for part in _parts(batch) for outcome in self._run_batch(part, is_inline=True)]
        except Exception as error:
            log.exception("a batch broke outside the engine")
            outcomes = [(item, _failure(error)) for item in batch]
        if time.thread_time() - began > TOO_LONG_INLINE_SECONDS:
            log.warning("a batch of %d rows blocked the event loop; this model has a thread from now on", len(batch))
            self._may_run_inline = False
        _tell(outcomes)

    def _work(self) -> None:
        while True:
            batch, expired = self._take()
            if expired:
                self._deliver([(item, DeadlineExceeded(TOO_LATE)) for item in expired])
            if batch:
                try:
                    outcomes = self._run_batch(batch)
                except BaseException as error:  # whatever it is, the callers must hear of it and the loop go on
                    log.exception("a batch broke outside the engine")
                    outcomes = [(item, _failure(error)) for item in batch]
                self._deliver(outcomes)
                del batch, expired, outcomes  # a thread that waits for more keeps nobody's answer
            elif not expired:
                return

    def _take(self) -> tuple[list[Item], list[Item]]:
        """The next batch, and items whose deadline has passed. Both empty: closed."""
        with self._ready:
            while True:
                while not self._queues:
                    if self._is_closed:
                        return [], []
                    self._ready.wait()
                batch, expired = self._pop()
                if batch or expired:  # else all were cancelled in this very moment
                    return batch, expired

    def _pop(self) -> tuple[list[Item], list[Item]]:
        queue = min(self._queues.values(), key=lambda waiting: waiting[0].number)
        shape = queue[0].shape
        batch: list[Item] = []
        expired: list[Item] = []
        now = self._clock()
        cap, rows = self.cap, 0
        while queue and (not batch or rows + queue[0].rows <= min(cap, queue[0].most)):
            item = queue.popleft()
            cap = min(cap, item.most)
            self._waiting -= 1
            if item.deadline is not None and item.deadline <= now:
                expired.append(item)
            elif not item.is_cancelled:
                batch.append(item)
                rows += item.rows
        if not queue:
            del self._queues[shape]
        return batch, expired

    def _run_batch(self, batch: list[Item], is_inline: bool = False) -> list[Outcome]:
        if len(batch) == 1:
            return [(batch[0], self._run_one(batch[0], is_inline))]
        rows = sum(item.rows for item in batch)
        joined: Tensors = {name: np.concatenate([item.tensors[name] for item in batch]) for name in batch[0].tensors}
        if all(isinstance(item.tensors, Checked) for item in batch):
            joined = Checked(joined)
        try:
            outputs, wall, cost = self._timed(joined, is_inline)
        except Exception as error:
            log.warning("a batch of %d failed (%s); running its items one by one", len(batch), error)
            return [(item, self._run_one(item, is_inline)) for item in batch]
        if any(array.ndim == 0 or array.shape[0] != rows for array in outputs.values()):
            log.warning("outputs do not have the batch as first axis; this model is not batched from now on")
            self._batches = False
            return [(item, self._run_one(item, is_inline)) for item in batch]
        with self._ready:
            self._pace.learn(rows, wall)
            self.executions.add([item.came for item in batch], rows, wall)
        parts = {count: cost.part(count / rows) for count in {item.rows for item in batch}}
        results: list[Outcome] = []
        start = 0
        for item in batch:
            end = start + item.rows
            own = {name: array[start:end] for name, array in outputs.items()}
            results.append((item, Ran(own, parts[item.rows], rows)))
            start = end
        return results

    def _run_one(self, item: Item, is_inline: bool = False) -> Ran | BaseException:
        if item.deadline is not None and item.deadline <= self._clock():
            return DeadlineExceeded(TOO_LATE)
        try:
            outputs, wall, cost = self._timed(item.tensors, is_inline)
        except Exception as error:
            return _failure(error)
        with self._ready:
            self._pace.learn(item.rows, wall)
            self.executions.add((item.came,), item.rows, wall)
        return Ran(outputs, cost, item.rows)

    def _timed(self, tensors: Tensors, is_inline: bool) -> tuple[dict[str, type_array], float, Cost]:
        """Outputs, wall seconds, what it took."""
        span = 0 if is_inline else self._meter.start()
        spent = time.thread_time() if is_inline else 0.0  # this thread is the event loop's, which spans leave out
        began = time.perf_counter()
        thread = threading.get_ident()
        self._running[thread] = began
        try:
            outputs = dict(self._engine(tensors))
        finally:
            wall = time.perf_counter() - began
            del self._running[thread]
            cost = self._meter.known(time.thread_time() - spent) if is_inline else self._meter.stop(span)
        return outputs, wall, cost

    def _deliver(self, outcomes: list[Outcome]) -> None:
        """Hand results to their event loops, one call a loop."""
        for loop in {item.loop for item, _ in outcomes}:
            try:
                loop.call_soon_threadsafe(_tell, [o for o in outcomes if o[0].loop is loop])
            except RuntimeError:  # that loop is closed: nobody waits any more
                continue


def _parts(items: list[Item]) -> list[list[Item]]:
    """Items of one shape in batches that none of them makes too large."""
    parts: list[list[Item]] = []
    rows = most = 0
    for item in items:
        most = min(most, item.most)
        if not parts or rows + item.rows > most:
            parts.append([])
            rows, most = 0, item.most
        parts[-1].append(item)
        rows += item.rows
    return parts


def _tell(outcomes: list[Outcome]) -> None:
    for item, outcome in outcomes:
        if not item.is_cancelled:
            item.done(outcome)


def settle(future: asyncio.Future[Any], outcome: Any) -> None:
    """Give a future its result, or its exception, unless nobody waits for it any more."""
    if future.done():
        return
    if isinstance(outcome, BaseException):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


def _failure(error: BaseException) -> BaseException:
    if isinstance(error, MaasdamError):
        return error
    failure = EngineFailure(f"the engine failed: {type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure
