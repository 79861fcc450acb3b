"""Open the database, at the newest schema. Knows URLs, SQLite's switches and migrations; no table's meaning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy import Engine, event
from sqlalchemy.exc import DataError, IntegrityError, NotSupportedError, ProgrammingError, SQLAlchemyError

from maasdam.errors import InvalidInput, LostConnection, StorageFailure, from_extra

HEAD = "0008"
"""The newest migration; a test compares it with the migrations' own idea."""
BUSY_SECONDS = 30.0
"""How long a writer waits for another."""
CONNECT_SECONDS = 5
"""How long a server may take to let us in."""
NOTICED = {
    "connect_timeout": CONNECT_SECONDS,
    "keepalives": 1,
    "keepalives_idle": 5,  # seconds without a word
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,  # milliseconds until what was sent must have arrived
}
"""For libpq: where packets are dropped a connection ends within some ten seconds, not after the system's two hours. A URL
may say other figures."""


def open_database(url: str) -> Engine:
    """An engine on the database at `url`, its schema migrated to the newest. Several processes may call this at once.

    SQLite: WAL, synchronous=FULL (a committed row survives a power cut), foreign keys.
    Whatever the engine does later, a disk that is full and a server that is gone come out as StorageFailure.
    Raises InvalidInput for a URL that can't be used, StorageFailure when the database can't be opened, MissingExtra.
    """
    engine = _engine(url)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "first_connect", _write_ahead)
        event.listen(engine, "connect", _tune_sqlite)
        event.listen(engine, "begin", _begin_immediate)
    event.listen(engine, "handle_error", say_storage_failed)
    try:
        with _alone(engine):
            _bring_up_to_date(engine)
    except SQLAlchemyError as error:
        engine.dispose()
        raise StorageFailure(f"can't open the database '{_without_password(url)}': {error}") from error
    except Exception:
        engine.dispose()
        raise
    return engine


def _engine(url: str) -> Engine:
    where = f"can't use the database URL '{_without_password(url)}'"
    try:
        parsed = sqlalchemy.make_url(url)
        kind = parsed.get_backend_name()
        if kind == "postgresql" and "+" not in parsed.drivername:
            parsed = parsed.set(drivername="postgresql+psycopg")
        if kind not in ("sqlite", "postgresql"):
            raise InvalidInput(f"{where}: it takes sqlite:///FILE or postgresql://USER@HOST/NAME")
        if kind == "sqlite":
            if parsed.database in (None, "", ":memory:"):
                raise InvalidInput(f"{where}: name a file, as in sqlite:////var/lib/maasdam/maasdam.db; memory can't be shared")
            file = Path(str(parsed.database))
            file.parent.mkdir(parents=True, exist_ok=True)
            _refuse_to_begin_anew(file)
            return sqlalchemy.create_engine(parsed)
        with from_extra("postgres", "psycopg"):
            return sqlalchemy.create_engine(
                parsed, pool_pre_ping=True, connect_args={k: v for k, v in NOTICED.items() if k not in parsed.query}
            )
    except (SQLAlchemyError, OSError) as error:
        raise InvalidInput(f"{where}: {error}") from error


RESCUED = ".rescued-"
"""Between a database file's name and the seconds: a copy of what was removed under a running service."""


def marker_of(file: Path) -> Path:
    """What a service leaves where its database was, and nothing of it could be saved: it was moved away, say."""
    return file.with_name(f"{file.name}.removed")


def _refuse_to_begin_anew(file: Path) -> None:
    """Whichever command came first would make an empty one where a service lost its database."""
    marker = marker_of(file)
    if file.exists():
        marker.unlink(missing_ok=True)
        return
    rescued = sorted(file.parent.glob(f"{file.name}{RESCUED}*"))
    if rescued:
        raise StorageFailure(
            f"the database {file} was removed, and what it held was saved to {rescued[-1]}: move that back, or move it "
            "elsewhere to begin with an empty one"
        )
    if marker.exists():
        raise StorageFailure(
            f"the database {file} was moved away or removed under a running service: put it back; or stop the service and "
            f"delete {marker} to begin with an empty one"
        )


def _bring_up_to_date(engine: Engine) -> None:
    revision = _revision(engine)
    if revision == HEAD:
        return
    if revision is not None and revision > HEAD:  # migrations are numbered
        url = engine.url.render_as_string(hide_password=True)
        raise InvalidInput(
            f"the database '{url}' was written by a newer Maasdam (schema {revision}, this one knows {HEAD}); "
            "update Maasdam, or name another database"
        )
    _migrate(engine)


CODE_ERRORS = (IntegrityError, DataError, ProgrammingError, NotSupportedError)
"""What the database says when a row or a query is wrong. All else it raises is about the database itself."""


def say_storage_failed(context: Any) -> None:
    """Raise what an error of the driver means, where it is about the database itself; listens to every engine's errors."""
    error = context.sqlalchemy_exception
    if error is None or isinstance(error, CODE_ERRORS) or not isinstance(error, sqlalchemy.exc.DBAPIError):
        return
    # a connection that is tried before its use has no engine yet
    url = "" if context.engine is None else f" '{context.engine.url.render_as_string(hide_password=True)}'"
    kind = LostConnection if context.is_disconnect else StorageFailure
    raise kind(f"the database{url} failed: {str(error.orig).strip()}") from error


def _tune_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # SQLAlchemy's begin, not the driver's: see _begin_immediate
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={int(BUSY_SECONDS * 1000)}")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _write_ahead(connection: Any, _record: Any) -> None:
    """Turn the file to WAL, which it remembers. The turn fails at once, busy_timeout or not, where another is in the file."""
    connection.execute("PRAGMA journal_mode=WAL").close()


def _begin_immediate(connection: sqlalchemy.Connection) -> None:
    """Take the write lock at the start: a transaction that read first can't be upgraded once another has written."""
    is_reader = connection.get_execution_options().get("is_reader", False)
    connection.exec_driver_sql("BEGIN" if is_reader else "BEGIN IMMEDIATE")


def _revision(engine: Engine) -> str | None:
    with engine.connect().execution_options(is_reader=True) as connection:
        if not sqlalchemy.inspect(connection).has_table("alembic_version"):
            return None
        return connection.execute(sqlalchemy.text("SELECT version_num FROM alembic_version")).scalar()


def _migrate(engine: Engine) -> None:
    from alembic import command

    with engine.begin() as connection:
        config = migrations()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def migrations() -> Any:
    """Alembic's configuration for the migrations in this package."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config


def _alone(engine: Engine) -> Any:
    """One process opens an SQLite file at a time: neither the turn to WAL nor a fresh file's schema waits for another."""
    from contextlib import nullcontext

    from filelock import FileLock

    if engine.dialect.name == "sqlite" and engine.url.database:
        return FileLock(engine.url.database + ".lock")
    return nullcontext()


def _without_password(url: str) -> str:
    try:
        return sqlalchemy.make_url(url).render_as_string(hide_password=True)
    except SQLAlchemyError:
        return "(not a URL)"
