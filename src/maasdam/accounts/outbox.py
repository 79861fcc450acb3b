"""The one way facts of requests leave a service: rows, counts and lines. Knows groups; never HTTP, and no engine.

    record(entry) -> group of one tick -> journal, one sync -> counts -> `done` of each
    ended(facts)  -> lines, ten times a second -> the log
    first_chunk   -> metrics

An answer's last byte waits for its row, so the group is what is written and synced at once: in the event loop, which nothing
else could use meanwhile but to gather a smaller group; in a thread where the disk is slow.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

from maasdam.accounts.ledger import PendingRow, fitting, packed
from maasdam.accounts.prices import Prices
from maasdam.core import Entry
from maasdam.errors import MaasdamError, ServiceError
from maasdam.telemetry.metrics import Metrics
from maasdam.telemetry.requests import Ended, RequestLines

KEPT = 10_000
"""Requests that were refused because their rows could not be written: so many are kept in memory until they can."""

Done = Callable[[BaseException | None], None]
"""Told, in the event loop, that a row is durable; or why it is not."""


class Rows(Protocol):
    """Where rows become durable."""

    is_slow: bool
    """Whether appending is for a thread."""

    def append(self, payload: bytes) -> None:
        """Return once it is on disk. Raises ServiceError, and then nothing of it is there."""
        ...

    def close(self) -> None:
        """Nothing more comes."""
        ...


class Queued:
    """A row that waits for its group."""

    __slots__ = ("done", "entry", "is_taken")

    def __init__(self, entry: Entry, done: Done) -> None:
        self.entry = entry
        self.done = done
        self.is_taken = False


class Outbox:
    """Of one event loop. `close` may be called from any thread."""

    def __init__(self, rows: Rows, metrics: Metrics, prices: Prices, lines: RequestLines | None = None) -> None:
        self._rows = rows
        self._metrics = metrics
        self._prices = prices
        self._lines = lines or RequestLines()
        self._lock = threading.Lock()
        self._queue: list[Queued] = []
        self._is_woken = False
        self._is_writing = False
        self._is_closed = False
        self._refused: deque[PendingRow] = deque(maxlen=KEPT)
        """Rows of requests that got an error since their own could not be written."""
        self._pool: ThreadPoolExecutor | None = None
        self._loop: asyncio.AbstractEventLoop
        self._answered: dict[str, tuple[str, int | None, int]] = {}
        """Requests that have a row and have not ended: model, version, status."""

    def record(self, entry: Entry, done: Done) -> Queued:
        """Have `done` called once the row is durable, with ServiceError where it can't be. Counts it too.

        A request_id that is in the ledger already is left as it is: recording twice counts once. So an id must be the
        service's own: a caller who chose it could have a second request for nothing.
        """
        row = Queued(entry, done)
        self._answered[entry.request_id] = (entry.model, entry.version, entry.status)
        with self._lock:  # nothing may queue behind what `close` takes
            is_closed = self._is_closed
            if not is_closed:
                self._queue.append(row)
        if is_closed:
            done(ServiceError("the ledger is closed"))
            return row
        if not self._is_woken:
            self._is_woken = True
            self._loop = asyncio.get_running_loop()
            self._loop.call_soon(self._write_group)
        return row

    def restate(self, row: Queued, status: int, error_code: str) -> bool:
        """Let a row be that of an error; False where it is being written already, or is."""
        with self._lock:
            if row.is_taken:
                return False
            row.entry.status, row.entry.error_code = status, error_code
            return True

    def has_row(self, request_id: str) -> bool:
        """Whether this request has a row, durable or not."""
        return request_id in self._answered

    def first_chunk(self, entry: Entry, seconds: float) -> None:
        """The first piece of a streamed answer left."""
        self._metrics.first_chunk(entry, seconds)

    def ended(self, ended: Ended) -> None:
        """A request is over: count it, unless it has a row, and write its line."""
        answered = self._answered.pop(ended.request_id, None)
        reason, status, model, version = ended.reason, ended.status, ended.model, None
        if answered is None:
            self._metrics.passed(status)
        else:  # as its row has it: the model that was found, and how it ended, unless the caller was told another end
            model, version = answered[0] or None, answered[1]
            status = answered[2] if reason is None else status
        if reason is not None:
            self._metrics.refused(reason, status)
        self._lines.add(ended, status, model, version)

    def flush(self) -> None:
        """Write the lines that have gathered."""
        self._lines.flush()

    def close(self) -> None:
        """Write what has gathered, and stop. Whoever calls it waits for that, not only the first."""
        with self._lock:
            self._is_closed = True
        self._lines.flush()
        if self._pool is not None:
            self._pool.shutdown()
        rows = self._taken()
        error = self._append(rows)
        self._rows.close()
        if rows:
            with suppress(RuntimeError):  # the event loop has ended: nobody waits
                self._loop.call_soon_threadsafe(self._tell, rows, error)

    def _write_group(self) -> None:
        """All rows of a tick."""
        self._is_woken = False
        if self._is_writing or self._is_closed:
            return
        if not self._rows.is_slow:
            rows = self._taken()
            self._tell(rows, self._append(rows))
            return
        self._is_writing = True
        self._pool = self._pool or ThreadPoolExecutor(1, "journal")
        self._pool.submit(self._write_apart)

    def _write_apart(self) -> None:
        rows = self._taken()
        error = self._append(rows)
        with suppress(RuntimeError):  # the event loop has ended: nobody waits
            self._loop.call_soon_threadsafe(self._go_on, rows, error)

    def _go_on(self, rows: Sequence[Queued], error: MaasdamError | None) -> None:
        self._is_writing = False
        self._tell(rows, error)
        if self._queue and not self._is_closed:
            self._write_group()

    def _taken(self) -> list[Queued]:
        with self._lock:
            rows, self._queue = self._queue, []
            for row in rows:
                row.is_taken = True
        return rows

    def _append(self, rows: Sequence[Queued]) -> MaasdamError | None:
        """Write what is taken, and what could not be before; what went wrong."""
        if not rows and not self._refused:
            return None
        late = list(self._refused)
        entries = [row.entry for row in rows]
        try:
            entries = [fitting(self._priced(entry)) for entry in entries]
            self._rows.append(packed([*late, *(PendingRow(entry) for entry in entries)]))
        except Exception as problem:  # whatever it is, who waits has to hear of it
            error = problem if isinstance(problem, MaasdamError) else ServiceError(f"the row can't be written: {problem}")
            for entry in entries:
                was_answered = entry.status < 400
                if was_answered:
                    entry = replace(entry, status=error.http_status, error_code=error.code, price=None, currency=None)
                self._refused.append(PendingRow(entry, is_restated=was_answered))
            return error
        for _ in late:
            self._refused.popleft()
        return None

    def _priced(self, entry: Entry) -> Entry:
        if entry.price is None and entry.status < 400:
            entry.price, entry.currency = self._prices.of(entry)
        return entry

    def _tell(self, rows: Sequence[Queued], error: MaasdamError | None) -> None:
        status = None if error is None else error.http_status
        self._metrics.answered([row.entry for row in rows], status)
        for row in rows:
            row.done(error)
