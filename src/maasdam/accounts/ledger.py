"""Facts to bill from: one row a request. Knows rows, sums and how far each journal is in; never what a request was about.

    journals --take_in: their rows and their ends in one transaction--> SQL --> usage, row

What is durable is in a journal (`accounts.journal`) before its caller hears of it. It comes into the database soon after,
once whatever happens: how far a file is in stands in the database itself, so an older copy of it, put in its place, gets what
it lacks. Whoever reads takes in first what is there.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, dataclass, replace
from datetime import datetime
from functools import lru_cache
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import msgspec
from sqlalchemy import Connection, Engine, Text, bindparam, case, delete, func, select
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from maasdam.accounts import journal
from maasdam.core import Entry
from maasdam.database.tables import JournalRow, LedgerRow, ModelRow
from maasdam.errors import LostConnection, MaasdamError, StorageFailure

log = logging.getLogger("maasdam.ledger")

GROUP = 4096
"""Rows in one transaction, about."""
STATEMENT = 256
"""Rows of one statement of SQLite, which asks for Python's lock before and after each: requests wait for it, too."""
KEPT_SECONDS = 3600.0
"""Journals whose writer has ended stay so long, in case the database is put back to an older copy."""

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


@dataclass(slots=True)  # not frozen: there is one for each request
class PendingRow:
    """One row on its way. `is_restated`: it may be there already with another status, as what it was before it was refused."""

    entry: Entry
    is_restated: bool = False


class Ledger:
    """The ledger in one database, and the journals of one folder. Thread-safe; any number of processes may have one."""

    def __init__(self, database: Engine, folder: Path | None = None) -> None:
        """Without a folder there are no journals to take in."""
        self._writes = database
        self._reads = database.execution_options(is_reader=True)
        self._folder = folder
        self._ends: dict[str, int] = {}
        """How far files are in, as far as is known: what saves most looks a transaction."""
        self._lock = threading.Lock()

    def take_in(self, is_ending: bool = False) -> None:
        """Bring what the journals hold into the database. Raises StorageFailure; what was not taken in stays where it is.

        `is_ending`: files that are in are let go of, even young ones.
        """
        if self._folder is None:
            return
        with self._lock:
            for path in sorted(self._folder.glob(journal.PATTERN)):
                with suppress(FileNotFoundError):  # another process was faster
                    self._take_file(path, is_ending)

    def look_anew(self) -> None:
        """Another database, or an older copy, is in place: how far files are in is to be asked of it."""
        with self._lock:
            self._ends.clear()

    @property
    def bytes_behind(self) -> int:
        """How much of the journals is not known to be in."""
        paths = [] if self._folder is None else self._folder.glob(journal.PATTERN)
        known = ((path, self._ends.get(path.name, 0)) for path in paths)
        return sum(max(journal.length(path, end) - end, 0) for path, end in known)

    def _take_file(self, path: Path, is_ending: bool) -> None:
        changed_at = path.stat().st_mtime
        is_over = not journal.is_written(path)  # asked before it is read: what comes after the last look is none
        known = self._ends.get(path.name, 0)
        if journal.length(path, known) != known:
            is_more = True
            while is_more:
                try:
                    self._ends[path.name], is_more = self._take_some(path)
                except LostConnection:  # the server went away, perhaps after it committed: then its end says so
                    self._ends[path.name], is_more = self._take_some(path)
        if is_over and (is_ending or changed_at + KEPT_SECONDS < time.time()):
            journal.discard(path)
            self._ends.pop(path.name, None)
            with self._writes.begin() as connection:
                connection.execute(delete(JournalRow).where(JournalRow.name == path.name))

    def _take_some(self, path: Path) -> tuple[int, bool]:
        """The next rows of a file, in one transaction; how far it is in then, and whether there is more."""
        try:
            with self._writes.begin() as connection:
                return self._take_group(connection, path, self._insert)
        except MaasdamError:
            raise
        except (SQLAlchemyError, ValueError, TypeError, AttributeError):  # one bad row must not take its neighbours down
            with self._writes.begin() as connection:
                return self._take_group(connection, path, self._insert_singly)

    def _take_group(self, connection: Connection, path: Path, insert: Any) -> tuple[int, bool]:
        connection.execute(_insert(self._writes, JournalRow).values(name=path.name, end=0).on_conflict_do_nothing())
        its = JournalRow.name == path.name
        end = begun = int(connection.execute(select(JournalRow.end).where(its).with_for_update()).scalar_one())
        rows: list[Values] = []
        for payload, end in journal.read(path, begun):  # noqa: B007  the last one
            rows += unpacked(payload)
            if len(rows) >= GROUP:
                break
        if end > begun:
            insert(connection, rows)
            connection.execute(JournalRow.__table__.update().where(its).values(end=end))  # type: ignore[attr-defined]  # a Table
        return end, len(rows) >= GROUP

    def _insert(self, connection: Connection, rows: Sequence[Values]) -> None:
        is_sqlite = self._writes.dialect.name == "sqlite"
        for is_restated in (False, True):
            columns: list[Any] = list(zip(*[row[:-1] for row in rows if row[-1] == is_restated], strict=True))
            if columns and is_sqlite:  # a third of what it takes by way of dictionaries, less without empty columns
                columns[AT] = [_text(at) for at in columns[AT]]
                there = tuple([i for i, column in enumerate(columns) if column.count(None) < len(column)])
                values = list(zip(*[columns[i] for i in there], strict=True))
                end = len(values) // STATEMENT * STATEMENT
                for i in range(0, end, STATEMENT):
                    some = tuple(chain.from_iterable(values[i : i + STATEMENT]))
                    connection.exec_driver_sql(_in_sqlite(is_restated, there, STATEMENT), some)
                if values[end:]:
                    connection.exec_driver_sql(_in_sqlite(is_restated, there), values[end:])
            elif columns:
                connection.exec_driver_sql(_in_postgresql(is_restated), tuple(map(list, columns)))

    def _insert_singly(self, connection: Connection, rows: Sequence[Values]) -> None:
        for row in rows:
            try:
                self._insert_apart(connection, row)
            except (SQLAlchemyError, ValueError, TypeError, AttributeError) as error:
                log.error("a row can't be kept in the ledger: %s: %s", dict(zip(COLUMNS, row, strict=False)), error)

    def _insert_apart(self, connection: Connection, row: Values) -> None:
        try:
            with connection.begin_nested():
                self._insert(connection, [row])
        except IntegrityError:
            key_id, caller = row[KEY_ID], f"{row[CALLER]} ({row[KEY_ID]})"
            if key_id is None:
                raise
            # another database was put in place that lacks the key: who called is still told by the name
            changed = {KEY_ID: None, CALLER: _fitting(caller, WIDTHS["caller"])}
            with connection.begin_nested():
                self._insert(connection, [tuple(changed.get(i, value) for i, value in enumerate(row))])

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
        self._catch_up()
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
        self._catch_up()
        with self._reads.connect() as connection:
            found = connection.execute(select(LedgerRow.__table__).where(LedgerRow.request_id == request_id)).mappings().first()
        return None if found is None else dict(found)

    def _catch_up(self) -> None:
        """So that who reads what was used sees the newest too; what can't be taken in now is told by `bytes_behind`."""
        try:
            self.take_in()
        except StorageFailure as error:
            log.warning("what is in the journals is not in the ledger yet: %s", error)


COLUMNS = tuple(Entry.__dataclass_fields__)
TOLD = ("status", "price", "currency", "error_code")
"""What an answer that became a refusal changes in its row."""
TEXTS = ("caller", "model", "task", "endpoint", "error_code")
WIDTHS = {name: LedgerRow.__table__.c[name].type.length for name in TEXTS}  # type: ignore[attr-defined]  # String
DEFAULTS = {name: field.default for name, field in Entry.__dataclass_fields__.items() if field.default is not MISSING}

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


AT, KEY_ID, CALLER = (COLUMNS.index(name) for name in ("at", "key_id", "caller"))
Values = tuple[Any, ...]
"""What the columns of a row hold, in the order of COLUMNS; then whether it is restated, see `PendingRow`."""

_values = attrgetter(*COLUMNS)
_texts = attrgetter(*WIDTHS)
_encode = msgspec.msgpack.Encoder(enc_hook=lambda number: number.item()).encode  # NumPy's
_decode = msgspec.msgpack.Decoder(tuple[tuple[str, ...], tuple[tuple[Any, ...], ...]]).decode


def packed(rows: Sequence[PendingRow]) -> bytes:
    """Rows for a journal. Their names are beside them: another version may have others."""
    return _encode((COLUMNS, [(*_values(row.entry), row.is_restated) for row in rows]))


def unpacked(payload: bytes) -> Sequence[Values]:
    """What `packed` was given."""
    names, rows = _decode(payload)
    if names == COLUMNS:
        return rows
    known = [dict(zip(names, row, strict=False)) | {"": row[-1]} for row in rows]
    return [tuple(row.get(name, DEFAULTS.get(name)) for name in (*COLUMNS, "")) for row in known]


def _insert(database: Engine, table: Any) -> Any:
    return (_postgresql() if database.dialect.name == "postgresql" else sqlite).insert(table.__table__)


def _postgresql() -> Any:
    """Imported by who needs it: a thirtieth of a service's start."""
    from sqlalchemy.dialects import postgresql

    return postgresql


@lru_cache
def _how(database: Any, is_restated: bool) -> Any:
    """How rows are written: those that are there stay as they are, or become what was told instead."""
    new = database.insert(LedgerRow.__table__).values({name: bindparam(name) for name in COLUMNS})
    told = {name: new.excluded[name] for name in TOLD}
    is_other = LedgerRow.__table__.c.status != new.excluded.status
    if not is_restated:
        return new.on_conflict_do_nothing()
    return new.on_conflict_do_update(index_elements=["request_id"], set_=told, where=is_other)


@lru_cache
def _in_sqlite(is_restated: bool, there: Sequence[int], rows: int = 1) -> str:
    """The same as text, for rows that have only these of COLUMNS."""
    how = str(_how(sqlite, is_restated).compile(dialect=sqlite.dialect()))
    row = f"({', '.join('?' * len(there))})"
    names = ", ".join(COLUMNS[i] for i in there)
    return f"INSERT INTO ledger ({names}) VALUES {', '.join([row] * rows)} {how[how.index('ON CONFLICT') :]}"


@lru_cache
def _in_postgresql(is_restated: bool) -> str:
    """The same as one statement for a whole group: its parameters are lists, one a column, in the order of COLUMNS."""
    dialect = _postgresql().dialect()
    how = str(_how(_postgresql(), is_restated).compile(dialect=dialect))
    kinds = LedgerRow.__table__.c
    names = [kinds[name].type.compile(dialect=dialect).partition("(")[0] for name in COLUMNS]  # a width would cut, not refuse
    lists = ", ".join(f"%s::{name}[]" for name in names)
    return f"INSERT INTO ledger ({', '.join(COLUMNS)}) SELECT * FROM unnest({lists}) {how[how.index('ON CONFLICT') :]}"


def _text(at: datetime) -> str:
    """As SQLAlchemy keeps moments in SQLite. Python's own way takes over three times as long."""
    text: str = msgspec.to_builtins(at)  # 2026-11-30T15:12:39.057918Z, in UTC; whole seconds without what is behind the point
    return f"{text[:10]} {text[11:26] if '.' in text else f'{text[11:19]}.000000'}"


def fitting(entry: Entry) -> Entry:
    """What callers wrote, as a column can hold it: a wrong model's name may be endless or no text at all."""
    texts = _texts(entry)
    cut = _fitting_all(texts)
    changed: dict[str, Any] = dict(zip(WIDTHS, cut, strict=True))
    return entry if cut == texts else replace(entry, **changed)


@lru_cache(maxsize=256)
def _fitting_all(texts: tuple[str | None, ...]) -> tuple[str | None, ...]:
    """Most requests have those of another."""
    return tuple([text and _fitting(text, width) for text, width in zip(texts, WIDTHS.values(), strict=True)])


def _fitting(text: str, width: int) -> str:
    return "".join(c if c.isprintable() else "\ufffd" for c in text[:width])


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
