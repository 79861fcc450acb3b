"""A fresh database for each test: a SQLite file, and a PostgreSQL server started for the session where it is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy

from maasdam.database.engine import HEAD, open_database
from maasdam.database.tables import Base


def _programs() -> Path | None:
    places = [Path(found).resolve().parent] if (found := shutil.which("initdb")) else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((place for place in places if (place / "postgres").is_file()), None)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a server of our own, reached over a socket in a temporary folder; gone afterwards."""
    programs = _programs()
    try:
        import psycopg  # noqa: F401  only whether it is there
    except ImportError:
        programs = None
    if programs is None:
        pytest.skip("PostgreSQL is not installed")
    folder = Path(tempfile.mkdtemp(prefix="pg-"))  # short: a socket's path has at most 107 characters
    is_root = os.geteuid() == 0  # the server refuses to run as root
    if is_root:
        shutil.chown(folder, "postgres")
    become = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if is_root else []

    def run(program: str, *words: str) -> None:
        done = subprocess.run([*become, str(programs / program), *words], cwd=folder, capture_output=True, timeout=120)
        assert done.returncode == 0, (program, done.stderr)

    data = str(folder / "data")
    run("initdb", "-D", data, "-U", "maasdam", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync")
    options = f"-F -k {folder} -c listen_addresses='' -c max_connections=200"
    run("pg_ctl", "-D", data, "-w", "-l", str(folder / "log"), "-o", options, "start")
    try:
        yield f"postgresql+psycopg://maasdam@/postgres?host={folder}"
    finally:
        run("pg_ctl", "-D", data, "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file to copy: migrating takes longer than most tests."""
    path = tmp_path_factory.mktemp("template") / "maasdam.db"
    open_database(f"sqlite:///{path}").dispose()
    return path


@pytest.fixture(scope="session")
def postgres_database(postgres_server: str) -> str:
    """The URL of a migrated database on the server, emptied before each test that uses it."""
    url = _postgres_database(postgres_server)
    open_database(url).dispose()
    return url


def _postgres_database(server: str) -> str:
    name = f"t{uuid.uuid4().hex[:12]}"
    admin = sqlalchemy.create_engine(server, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name} TEMPLATE template0")
    admin.dispose()
    return server.replace("/postgres?", f"/{name}?")


def _emptied(url: str) -> str:
    engine = sqlalchemy.create_engine(url)
    with engine.begin() as connection:
        names = ", ".join(table.name for table in Base.metadata.sorted_tables if table.name != "revision")
        connection.exec_driver_sql(f"TRUNCATE {names}")
        connection.exec_driver_sql("UPDATE revision SET number = 0")
        connection.exec_driver_sql(f"UPDATE alembic_version SET version_num = '{HEAD}'")
    engine.dispose()
    return url


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database without tables, one of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'empty.db'}"
    return _postgres_database(request.getfixturevalue("postgres_server"))


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database with tables and no rows, one of each kind."""
    if request.param == "sqlite":
        shutil.copyfile(request.getfixturevalue("sqlite_template"), tmp_path / "maasdam.db")
        return f"sqlite:///{tmp_path / 'maasdam.db'}"
    return _emptied(request.getfixturevalue("postgres_database"))


@pytest.fixture
def database(database_url: str) -> Iterator[sqlalchemy.Engine]:
    """The same, opened."""
    engine = open_database(database_url)
    yield engine
    engine.dispose()
