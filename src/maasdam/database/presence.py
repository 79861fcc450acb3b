"""Whether the database is still the one that was opened, and takes rows. Knows files, SQLite's header and one query.

Refuses to know tables' meaning. An open SQLite file can be removed, replaced or overwritten without the connections
noticing: rows would go nowhere. So it is looked at four times a second, and at the begin of every transaction:

    there, its own header, written by SQLite alone -> fine
    gone, another file, other bytes, no room       -> every transaction raises StorageFailure, which says why
    back (the same file, or another with the schema) -> opened anew, then `on_back`: who has rows to write again does

What is documented of the files: https://sqlite.org/fileformat2.html, https://sqlite.org/walformat.html. Closing any
descriptor of a file drops this process's locks on it (https://sqlite.org/howtocorrupt.html, 2.2): the ones here are
closed only after the connections.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy import Engine, event

from maasdam.database.engine import HEAD, RESCUED, marker_of, say_storage_failed
from maasdam.database.tables import Base
from maasdam.errors import StorageFailure

log = logging.getLogger("maasdam.database")

LOOK_SECONDS = 0.25
"""How often it is looked at: trouble is noticed within a second."""
LEAST_FREE_BYTES = 256 * 1024
"""A disk with less room is full: a group of rows may take as much."""
REMOVED = "the database file was removed"
REPLACED = "the database file was replaced by another"
OVERWRITTEN = "the database file was overwritten or is damaged"
FULL = "the disk of the database is full"
UNWRITABLE = "the database can't be written"
AWAY = "the database does not answer"

_MAGIC = b"SQLite format 3\0"
_HEADER_BYTES = 100
_SUSPICIONS = {
    sqlite3.SQLITE_FULL: FULL,
    sqlite3.SQLITE_IOERR: UNWRITABLE,
    sqlite3.SQLITE_READONLY: UNWRITABLE,
    sqlite3.SQLITE_CANTOPEN: UNWRITABLE,
    sqlite3.SQLITE_CORRUPT: OVERWRITTEN,
    sqlite3.SQLITE_NOTADB: OVERWRITTEN,
}
"""What SQLite's error codes hint at."""
_BUSY_SECONDS = 2.0


class Presence:
    """Of one database. `start` looks in a thread until `stop`; `on_back` is called in it when the database is back."""

    def __init__(self, database: Engine, on_back: Callable[[], None] = lambda: None) -> None:
        self._database = database
        self._probes = database.execution_options(is_probe=True, is_reader=True)
        self._on_back = on_back
        self._is_sqlite = database.dialect.name == "sqlite"
        self._path = Path(str(database.url.database)) if self._is_sqlite else None
        self._file = None if self._path is None else _File(self._path)
        self._reason: str | None = None
        self._suspicion: str | None = None
        """What an error of a transaction hinted at; the next look finds out."""
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._looking = threading.RLock()
        event.listen(database, "do_connect", self._before_connecting)
        event.listen(database, "begin", self._before_work, insert=True)
        event.remove(database, "handle_error", say_storage_failed)  # it raises, and none after it would be told
        event.listen(database, "handle_error", self._note_error)

    @property
    def reason(self) -> str | None:
        """Why the database can't be used now; None: it can."""
        return self._reason

    def refuse_if_lost(self) -> None:
        """Raise StorageFailure while the database can't be used."""
        reason = self._reason
        if reason is not None:
            raise StorageFailure(f"{reason}; the service answers again once it is mended")

    def start(self) -> None:
        """Look from now on, in a thread."""
        self._thread = threading.Thread(target=self._watch, name="database-presence", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(5)
        event.remove(self._database, "do_connect", self._before_connecting)
        event.remove(self._database, "begin", self._before_work)
        event.remove(self._database, "handle_error", self._note_error)
        event.listen(self._database, "handle_error", say_storage_failed)

    def look(self) -> None:
        """Look once, and act on what is seen."""
        with self._looking:
            seen = self._examine_file() if self._file is not None else self._ask()
            if seen is None and self._reason is not None:
                log.warning("the database is back (%s before)", self._reason)
                self._reason = None
                self._on_back()
            elif seen is not None:
                self._lose(seen)

    def _watch(self) -> None:
        while not self._stopping.wait(LOOK_SECONDS):
            try:
                self.look()
            except Exception:  # whatever a look runs into, the next one must come
                log.exception("can't look at the database")

    def _lose(self, reason: str) -> None:
        if reason != self._reason:
            log.error("%s: requests are refused until it is mended", reason)
        self._reason = reason

    def _before_connecting(self, *_about: Any) -> None:
        """SQLite would make an empty file where there is none."""
        if self._file is not None and (self._file.is_let_go or not self._file.path.exists()):
            raise StorageFailure(self._reason or REMOVED)

    def _before_work(self, connection: sqlalchemy.Connection) -> None:
        if connection.get_execution_options().get("is_probe", False):
            return
        if self._reason is None and self._file is not None and not self._file.is_in_place():
            self._lose(REPLACED if self._file.path.exists() else REMOVED)
        self.refuse_if_lost()

    def _note_error(self, context: Any) -> None:
        self._suspect(context)
        say_storage_failed(context)

    def _suspect(self, context: Any) -> None:
        code = getattr(context.original_exception, "sqlite_errorcode", None)
        suspicion = None if code is None else _SUSPICIONS.get(code & 0xFF)
        if suspicion is None or self._reason is not None:
            return
        self._suspicion = suspicion
        if suspicion != OVERWRITTEN:
            self._lose(suspicion)

    def _ask(self) -> str | None:
        """Of a server: whether it answers and has our tables."""
        try:
            with self._probes.connect() as connection:
                connection.execute(sqlalchemy.text("SELECT version_num FROM alembic_version")).scalar()
        except Exception as error:
            if self._reason is None:
                log.error("the database does not answer: %s", error)
            return AWAY
        return None

    def _examine_file(self) -> str | None:
        file, suspicion = self._file, self._suspicion
        assert file is not None
        if file.is_let_go:  # lost: may another be taken up?
            return self._take_up(file)
        if not file.path.exists():
            return self._let_go(file, REMOVED)
        if not file.is_in_place():
            self._lose(self._let_go(file, REPLACED))
            return self._take_up(file)
        if not file.has_own_header():
            return self._let_go(file, OVERWRITTEN)
        if suspicion == OVERWRITTEN or file.was_written_by_others():
            self._suspicion = None
            if _damage(file.path) is not None:
                self._lose(self._let_go(file, OVERWRITTEN))
                return self._take_up(file)
            self._database.dispose()  # what the connections remember of its pages may be old
            self._on_back()
        if _is_full(file.path.parent):
            return FULL
        if self._reason is not None and not self._takes_rows():
            return self._reason
        self._suspicion = None
        return None

    def _takes_rows(self) -> bool:
        """Whether a transaction can be committed now. It writes what is there already."""
        try:
            with self._database.execution_options(is_probe=True).begin() as connection:
                connection.exec_driver_sql("UPDATE revision SET number = number")
        except Exception as error:
            log.debug("the database still takes no rows: %s", error)
            return False
        return True

    def _let_go(self, file: _File, reason: str) -> str:
        """The connections lead to a file that is lost: save what they can still read, then close them. Gives `reason`."""
        self._lose(reason)
        if reason == OVERWRITTEN:
            file.set_log_aside()  # else the last connection to close would write it into whatever is there now
        else:
            if reason == REMOVED:
                file.mark()
            file.held_rows = file.holds_rows(self._probes)
            file.finish_log(self._probes)
            if file.is_deleted() and file.rescue(self._probes):
                marker_of(file.path).unlink(missing_ok=True)  # the copy stands for it
        file.is_let_go = True
        return reason

    def _take_up(self, file: _File) -> str | None:
        """Open what lies at the path now, if it is a database of ours that is whole."""
        reason = self._reason or REMOVED
        if self._database.pool.checkedout():  # type: ignore[attr-defined]  # a QueuePool; work of before has to end
            return reason
        self._database.dispose()
        if not file.path.is_file():
            return reason
        damage = _damage(file.path)
        if damage is None and file.held_rows and not file.is_in_place() and _is_empty(file.path):
            damage = "it is new and empty; put back what was there, or start the service anew to begin with this one"
        if damage is not None:
            if damage != file.complaint:
                log.error("what lies at the database's place can't be used: %s", damage)
                file.complaint = damage
            return reason
        with closing(sqlite3.connect(file.path, timeout=_BUSY_SECONDS)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
        file.close()
        self._file = _File(file.path)
        marker_of(file.path).unlink(missing_ok=True)
        with self._probes.connect() as connection:
            connection.execute(sqlalchemy.text("SELECT version_num FROM alembic_version")).scalar()
        return FULL if _is_full(file.path.parent) else None


class _File:
    """One SQLite file as it was opened: which one it is, and what its header said."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_let_go = False
        self.complaint: str | None = None
        self.held_rows = True
        """Whether anything was kept in it, as far as is known."""
        self._handle = os.open(path, os.O_RDONLY)
        status = os.fstat(self._handle)
        self._identity = (status.st_dev, status.st_ino)
        self._shared: tuple[int, int] | None = None
        """Descriptor and inode of the file by which SQLite's connections tell each other of the log."""
        self._seen: tuple[int, bytes] | None = None

    def is_in_place(self) -> bool:
        """Whether the path still leads to this file."""
        try:
            status = os.stat(self.path)  # noqa: PTH116  a microsecond less, before every transaction
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self._identity

    def is_deleted(self) -> bool:
        """Whether no path leads to it any more."""
        return os.fstat(self._handle).st_nlink == 0

    def has_own_header(self) -> bool:
        """Whether it begins as an SQLite file does, and has a page at least: while SQLite moves pages into it, not all."""
        header = os.pread(self._handle, _HEADER_BYTES, 0)
        if len(header) < _HEADER_BYTES or not header.startswith(_MAGIC):
            return False
        page = int.from_bytes(header[16:18], "big")
        page = 65536 if page == 1 else page
        return page >= 512 and os.fstat(self._handle).st_size >= page

    def was_written_by_others(self) -> bool:
        """Whether the file changed since the last look though SQLite moved nothing into it from its log.

        In WAL mode only a checkpoint writes to the file, and each leaves its marks beside the log's index: the salts of
        the log's header, how many frames were moved, and how many it set out to move.
        """
        before = self._marks()
        changed_at = os.fstat(self._handle).st_mtime_ns
        marks = self._marks()
        if marks is None or marks != before or marks[96:100] != marks[128:132]:  # a checkpoint is under way, or none may be
            return False
        last, self._seen = self._seen, (changed_at, marks[32:40] + marks[96:100])
        return last is not None and last[0] != changed_at and last[1] == self._seen[1]

    def _marks(self) -> bytes | None:
        path = self.path.with_name(self.path.name + "-shm")
        try:
            inode = path.stat().st_ino
        except OSError:
            return None
        if self._shared is None or self._shared[1] != inode:
            if self._shared is not None:
                os.close(self._shared[0])
            self._shared, self._seen = (os.open(path, os.O_RDONLY), inode), None
        marks = os.pread(self._shared[0], 136, 0)
        return marks if len(marks) == 136 else None

    def _log(self) -> Path:
        return self.path.with_name(self.path.name + "-wal")

    def finish_log(self, probes: Engine) -> None:
        """Move what is in the log into the file, wherever that is now: the log must not be taken for another file's."""
        with contextlib.suppress(Exception), probes.connect() as connection:
            connection.exec_driver_sql("COMMIT")  # a checkpoint can't run inside a transaction
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").all()

    def set_log_aside(self) -> None:
        """Keep a copy of the log, and empty it."""
        log_file = self._log()
        with contextlib.suppress(OSError):
            if log_file.stat().st_size:
                aside = self.path.with_name(f"{log_file.name}.{int(time.time())}")
                with contextlib.suppress(OSError):
                    shutil.copyfile(log_file, aside)
                    aside.chmod(0o600)
                os.truncate(log_file, 0)

    def mark(self) -> None:
        """Let no command make an empty database where this one was."""
        with contextlib.suppress(OSError):
            marker_of(self.path).touch(0o600)

    def holds_rows(self, probes: Engine) -> bool:
        """Whether it has rows, by the connections that still lead to it; True where they don't say."""
        with contextlib.suppress(Exception), probes.connect() as connection:
            return any(connection.exec_driver_sql(question).scalar() for question in _ANY_ROWS)
        return True

    def rescue(self, probes: Engine) -> bool:
        """A deleted file lives as long as a connection has it open: copy it to a path of its own, while that is so."""
        place = self.path.with_name(f"{self.path.name}{RESCUED}{int(time.time())}")
        try:
            with probes.connect() as connection, closing(sqlite3.connect(place)) as copy:
                connection.exec_driver_sql("COMMIT")
                driver: Any = connection.connection.driver_connection
                driver.backup(copy)
            place.chmod(0o600)
            log.error("what the removed database held was saved to %s; to go on with it, move it back to %s", place, self.path)
        except Exception:
            log.exception("the removed database could not be saved")
            place.unlink(missing_ok=True)  # half a copy is none
            return False
        return True

    def close(self) -> None:
        """Let go of the descriptors; only after the connections."""
        os.close(self._handle)
        if self._shared is not None:
            os.close(self._shared[0])


def _damage(path: Path) -> str | None:
    """What is wrong with the database file at `path`; None: it is whole and has our schema."""
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=_BUSY_SECONDS)) as connection:
            verdict = connection.execute("PRAGMA quick_check(1)").fetchone()
            if verdict is None or verdict[0] != "ok":
                return f"it is damaged ({verdict and verdict[0]})"
            schema = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.Error as error:
        return str(error)
    if schema is None or schema[0] != HEAD:
        return f"its schema is {schema and schema[0]}, this service needs {HEAD}; any maasdam command brings an older one up"
    return None


_ANY_ROWS = [f"SELECT EXISTS (SELECT 1 FROM {table.name})" for table in Base.metadata.sorted_tables if table.name != "revision"]


def _is_empty(path: Path) -> bool:
    """Whether a database of our schema is as it was made: no command has written to it."""
    with closing(sqlite3.connect(path, timeout=_BUSY_SECONDS)) as connection:
        return not any(connection.execute(question).fetchone()[0] for question in _ANY_ROWS)


def _is_full(folder: Path) -> bool:
    try:
        room = os.statvfs(folder)
    except OSError:
        return False
    blocks = room.f_bfree if os.geteuid() == 0 else room.f_bavail  # the system keeps some for root
    return blocks * room.f_frsize < LEAST_FREE_BYTES
