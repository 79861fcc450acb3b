"""Facts to bill from: one durable row a request. Knows rows and sums; refuses to know what a request was about.

    record(entry) -> Future --one writer thread--> one transaction for all that queued meanwhile -> futures resolve

A future resolves once its row is on disk (group commit), so an answer whose last byte waits for it can't be lost.
A database can be lost under a running service: the newest rows are kept in memory too, to be written again.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from typing import Any, Literal

from sqlalchemy import Engine, Text, case, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError

from maasdam.accounts.prices import Prices
from maasdam.core import Entry
from maasdam.database.tables import LedgerRow, ModelRow
from maasdam.errors import LostConnection, ServiceError, StorageFailure

GROUP = 512
"""Rows in one transaction at most."""
KEPT = 10_000
"""The newest rows are kept in memory, so many of them, in case the database is lost."""
UNAVAILABLE = 503
"""What became of a request whose row could not be written: it was not answered."""

NO_MODEL = "(no model)"
"""What usage calls requests that named no model of the catalog."""

By = Literal["key", "model", "day"]


@dataclass(frozen=True, slots=True)
class Usage:
    """Sums over one key, model or day. A sum is None where nothing in it was measured."""

    name: str
    requests: int
    errors: int
    """Answers with status 400 and above."""
    items: int
    prompt_tokens: int | None
    completion_tokens: int | None
    audio_seconds: float | None
    seconds: float
    compute_seconds: float | None
    joules: float | None
    grams_co2e: float | None
    price: float | None
    """None also where the requests were priced in several currencies."""
    currency: str | None
    measured_joules: int
    """Requests whose joules are known: fewer than `requests` means the sum is of a part."""
    unpriced: int
    """Answered requests that no price list covered: `price` is of the others."""


class _Row(Future[None]):
    """One row on its way to the disk."""

    def __init__(self, entry: Entry, is_again: bool = False) -> None:
        super().__init__()
        self.entry = entry
        self.is_again = is_again
        """Whether what became of the request is known: this is not the first time the row is written."""
        self.is_restated = False
        """Whether it may be there already with another status: a commit that nobody heard of, then a refusal."""
        self.is_taken = False
        """Whether a transaction has begun that will write it as it is now."""
        self.set_running_or_notify_cancel()  # who waits may go away (a disconnect); the row is written all the same


class Ledger:
    """The ledger in one database: one writer thread, any number of callers."""

    def __init__(self, database: Engine, prices: Prices | None = None) -> None:
        self._writes = database
        self._reads = database.execution_options(is_reader=True)
        self._prices = prices or Prices({})
        self._queue: queue.SimpleQueue[_Row | None] = queue.SimpleQueue()
        self._written: deque[Entry] = deque(maxlen=KEPT)
        self._unwritten: deque[Entry] = deque(maxlen=KEPT)
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._is_closed = False

    def record(self, entry: Entry) -> Future[None]:
        """Resolved once the row is durable; fails with ServiceError when it can't be written.

        A request_id that is in the ledger already is left as it is: recording twice counts once. So an id must be
        the service's own: a caller who chose it could have a second request for nothing.
        """
        return self._queued(_Row(entry))

    def _queued(self, row: _Row) -> _Row:
        with self._lock:
            if self._is_closed:
                row.set_exception(ServiceError("the ledger is closed"))
                return row
            if self._thread is None:
                self._thread = threading.Thread(target=self._write_all, name="ledger", daemon=True)
                self._thread.start()
            self._queue.put(row)  # inside the lock: nothing may queue behind the end that `close` puts
        return row

    def restate(self, row: Future[None], status: int, error_code: str) -> bool:
        """Let a row that `record` gave be that of an error; False where it is being written already, or is."""
        assert isinstance(row, _Row)
        with self._lock:
            if row.is_taken or row.done():
                return False
            row.entry = _refused(row.entry, status, error_code)
            return True

    def write_again(self) -> None:
        """The database was lost and is back: queue the newest rows once more. Those that are there stay single.

        Rows that could not be written are queued too, answered ones as what became of them: 503.
        """
        with self._lock:
            again = [_Row(entry, is_again=True) for entry in self._written] + self._late()
            self._written.clear()
        for row in again:
            self._queued(row)

    def _late(self) -> list[_Row]:
        """The rows that could not be written, to be written now. With the lock."""
        rows = [_Row(entry, is_again=True) for entry in self._unwritten]
        for row in rows:
            row.is_restated = True
        self._unwritten.clear()
        return rows

    def close(self) -> None:
        """Write what is queued and stop. Whoever calls it waits for that, not only the first."""
        with self._lock:
            if self._thread is not None and not self._is_closed:
                self._queue.put(None)
            self._is_closed = True
        if self._thread is not None:
            self._thread.join()

    def usage(self, by: By = "model", since: datetime | None = None) -> list[Usage]:
        """Sums by key (named by its name and id), model (NAME:VERSION) or day (UTC), busiest first (days in order).

        Requests refused for naming no model of the catalog are one row, NO_MODEL: callers can't make up rows of their own.
        """
        is_theirs = (LedgerRow.status >= 400) & (LedgerRow.status < 500)
        is_known = LedgerRow.version.is_not(None) | ~is_theirs | LedgerRow.model.in_(select(ModelRow.name))
        model = case((is_known, LedgerRow.model), else_=NO_MODEL)
        group = {"key": (LedgerRow.key_id, LedgerRow.caller), "model": (model, LedgerRow.version)}
        day = func.substr(_as_text(LedgerRow.at, self._reads), 1, 10)
        columns = (day,) if by == "day" else group[by]
        sums = [getattr(LedgerRow, name) for name in SUMMED]
        query = select(
            *columns,
            func.count(),
            func.sum(case((LedgerRow.status >= 400, 1), else_=0)),
            func.max(LedgerRow.currency),
            func.count(LedgerRow.currency.distinct()),
            func.count(LedgerRow.joules),
            func.sum(case(((LedgerRow.status < 400) & LedgerRow.price.is_(None), 1), else_=0)),
            *(func.sum(column) for column in sums),
        ).group_by(*columns)
        if since is not None:
            query = query.where(LedgerRow.at >= since)
        with self._reads.connect() as connection:
            rows = connection.execute(query).all()
        out = []
        for row in rows:
            names = row[: len(columns)]
            requests, errors, currency, currencies, measured, unpriced, *totals = row[len(columns) :]
            known = dict(zip(SUMMED, totals, strict=True))
            if currencies > 1:
                known["price"] = currency = None
            counts = {"currency": currency, "measured_joules": measured, "unpriced": int(unpriced)}
            out.append(Usage(_name(by, names), requests, int(errors), **counts, **_numbers(known)))
        return sorted(out, key=(lambda u: u.name) if by == "day" else (lambda u: (-u.requests, u.name)))

    def row(self, request_id: str) -> dict[str, Any] | None:
        """One request's row as column -> value; None where there is none."""
        with self._reads.connect() as connection:
            found = connection.execute(select(LedgerRow.__table__).where(LedgerRow.request_id == request_id)).mappings().first()
        return None if found is None else dict(found)

    def _write_all(self) -> None:
        while True:
            first = self._queue.get()
            if first is None:
                return
            group, is_last = [first], False
            while len(group) < GROUP and not self._queue.empty():
                more = self._queue.get()
                if more is None:
                    is_last = True
                    break
                group.append(more)
            if self._write(group):
                self._write_late()
            if is_last:
                return

    def _write_late(self) -> None:
        """The database takes rows: so it may take those of a failure that was over before anybody looked."""
        with self._lock:
            late = self._late()
        for start in range(0, len(late), GROUP):
            self._write(late[start : start + GROUP])

    def _write(self, group: list[_Row]) -> bool:
        """Write and resolve; the thread outlives whatever goes wrong. False: the database takes no rows now."""
        try:
            self._insert_surely(group)
        except StorageFailure as error:  # full disk, lost or locked database: the same for every row
            with self._lock:
                for row in group:
                    was_answered = row.is_again or row.entry.status >= 400
                    self._unwritten.append(row.entry if was_answered else _refused(row.entry, UNAVAILABLE, error.code))
            for row in group:
                row.set_exception(StorageFailure(f"the ledger can't be written: {error}"))
            return False
        except Exception as error:
            if len(group) > 1:  # one bad row must not take its neighbours down
                return all([self._write([row]) for row in group])
            (row,) = group
            if isinstance(error, IntegrityError) and row.entry.key_id is not None:
                # another database was put in place that lacks the key: who called is still told by the name
                row.entry = replace(row.entry, key_id=None, caller=f"{row.entry.caller} ({row.entry.key_id})")
                return self._write([row])
            row.set_exception(ServiceError(f"the ledger can't be written: {error}"))
        else:
            with self._lock:
                self._written += [row.entry for row in group]
            for row in group:
                row.set_result(None)
        return True

    def _insert_surely(self, group: list[_Row]) -> None:
        try:
            self._insert(group)
        except LostConnection:
            self._insert(group)  # the server went away, perhaps after it committed: rows that are there stay single

    def _insert(self, group: list[_Row]) -> None:
        with self._writes.begin() as connection:  # may wait for another writer; until then a row can be restated
            with self._lock:
                for row in group:
                    row.is_taken = True
            for how, is_restated in zip(_inserts(self._writes.dialect.name), (False, True), strict=True):
                entries = [_fitting(self._priced(row.entry)) for row in group if row.is_restated == is_restated]
                if entries:
                    connection.execute(how, [{name: getattr(entry, name) for name in COLUMNS} for entry in entries])

    def _priced(self, entry: Entry) -> Entry:
        if entry.price is not None or entry.status >= 400:
            return entry
        price, currency = self._prices.of(entry.model, {name: getattr(entry, name) for name in COLUMNS})
        return entry if price is None else replace(entry, price=price, currency=currency)


COLUMNS = tuple(Entry.__dataclass_fields__)
TOLD = ("status", "price", "currency", "error_code")
"""What an answer that became a refusal changes in its row."""
WIDTHS = {name: LedgerRow.__table__.c[name].type.length for name in ("caller", "model", "task", "endpoint", "error_code")}  # type: ignore[attr-defined]  # String

SUMMED = (
    "items",
    "prompt_tokens",
    "completion_tokens",
    "audio_seconds",
    "seconds",
    "compute_seconds",
    "joules",
    "grams_co2e",
    "price",
)


@lru_cache
def _inserts(database: str) -> tuple[Any, Any]:
    """How rows are written: those that are there stay as they are, or become what was told instead."""
    new = (postgresql if database == "postgresql" else sqlite).insert(LedgerRow.__table__)
    told = {name: new.excluded[name] for name in TOLD}
    is_other = LedgerRow.__table__.c.status != new.excluded.status
    return new.on_conflict_do_nothing(), new.on_conflict_do_update(index_elements=["request_id"], set_=told, where=is_other)


def _refused(entry: Entry, status: int, error_code: str) -> Entry:
    """The row of an answer that could not be given after all: nobody pays for it."""
    return replace(entry, status=status, error_code=error_code, price=None, currency=None)


def _fitting(entry: Entry) -> Entry:
    """What callers wrote, as a column can hold it: a wrong model's name may be endless or no text at all."""
    cut: dict[str, Any] = {}
    for name, width in WIDTHS.items():
        text = getattr(entry, name)
        if text is not None and (len(text) > width or not text.isprintable()):
            cut[name] = "".join(c if c.isprintable() else "\ufffd" for c in text[:width])
    return replace(entry, **cut) if cut else entry


def _numbers(known: Mapping[str, Any]) -> dict[str, Any]:
    whole = {"items", "prompt_tokens", "completion_tokens"}
    return {name: None if value is None else int(value) if name in whole else float(value) for name, value in known.items()}


def _as_text(column: Any, engine: Engine) -> Any:
    if engine.dialect.name == "postgresql":
        return func.to_char(func.timezone("UTC", column), "YYYY-MM-DD")
    return column.cast(Text)


def _name(by: By, names: Any) -> str:
    if by == "key":
        return f"{names[1]} ({names[0]})" if names[0] else str(names[1])
    if by == "model":
        return str(names[0]) if names[1] is None else f"{names[0]}:{names[1]}"
    return str(names[0])
