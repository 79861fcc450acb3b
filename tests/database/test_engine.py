"""Opening a database: made, migrated, tuned, by several at once, and with a sentence when it can't be."""

from __future__ import annotations

import importlib.resources
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy
from sqlalchemy import Engine, inspect, text

from maasdam.database.engine import HEAD, _engine, migrations, open_database
from maasdam.database.tables import Base
from maasdam.errors import InvalidInput, StorageFailure


def test_a_new_database_has_every_table_and_column_the_code_knows(database: Engine) -> None:
    there = inspect(database)
    for table in Base.metadata.sorted_tables:
        columns = {column["name"]: column for column in there.get_columns(table.name)}
        assert set(columns) == {column.name for column in table.columns}, table.name
        assert {c for c in columns if columns[c]["nullable"]} == {c.name for c in table.columns if c.nullable}, table.name


def test_the_migrations_make_what_the_tables_say(database: Engine) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with database.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


def test_head_is_the_newest_migration() -> None:
    from alembic.script import ScriptDirectory

    assert ScriptDirectory.from_config(migrations()).get_current_head() == HEAD


def test_migrations_are_packages_so_that_a_wheel_carries_them() -> None:
    for name in ("maasdam.database.migrations", "maasdam.database.migrations.versions"):
        assert (importlib.resources.files(name) / "__init__.py").is_file(), name


def test_opening_again_changes_nothing(database: Engine, database_url: str) -> None:
    with database.begin() as connection:
        connection.execute(text("UPDATE revision SET number = 41"))
    again = open_database(database_url)
    with again.connect() as connection:
        assert connection.execute(text("SELECT number FROM revision")).scalars().all() == [41]
    again.dispose()


def test_several_processes_may_make_the_same_database_at_once(empty_database_url: str) -> None:
    code = "import sys; from maasdam.database.engine import open_database; open_database(sys.argv[1]); print('open')"
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code, empty_database_url], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    answers = [child.communicate(timeout=120) for child in children]
    assert [out for out, _ in answers] == ["open\n"] * 4, answers


def test_sqlite_is_durable_and_waits_for_its_turn(tmp_path: Path) -> None:
    database = open_database(f"sqlite:///{tmp_path / 'a' / 'b' / 'maasdam.db'}")
    with database.connect() as connection:
        found = {name: connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous")}
        assert found == {"journal_mode": "wal", "synchronous": 2}
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 30_000
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
    database.dispose()


def test_a_database_of_a_newer_maasdam_is_left_alone(database: Engine, database_url: str) -> None:
    with database.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(InvalidInput, match="newer Maasdam"):
        open_database(database_url)


@pytest.mark.parametrize(
    "url", ["", "nonsense", "mysql://u:hush@h/d", "sqlite://", "sqlite:///:memory:", "sqlite:////proc/no/x.db"]
)
def test_a_url_that_cannot_be_used_is_said_so(url: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        open_database(url)
    assert "database URL" in str(caught.value) and "hush" not in str(caught.value)


def test_a_file_that_is_no_database_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "letter.db"
    path.write_text("Dear Sir or Madam, " * 100)
    with pytest.raises(StorageFailure, match=r"letter\.db"):
        open_database(f"sqlite:///{path}")
    assert path.read_text().startswith("Dear Sir")


def test_a_server_that_is_not_there_is_said_so_without_its_password() -> None:
    pytest.importorskip("psycopg", reason="PostgreSQL is not installed")
    with pytest.raises(StorageFailure) as caught:
        open_database("postgresql://someone:hush@127.0.0.1:9/none")
    assert "127.0.0.1" in str(caught.value) and "hush" not in str(caught.value)


def test_a_server_whose_packets_are_dropped_is_noticed() -> None:
    pytest.importorskip("psycopg", reason="PostgreSQL is not installed")
    asked: list[dict] = []

    def note(_dialect: object, _record: object, _arguments: object, named: dict) -> None:
        asked.append(dict(named))
        raise StorageFailure("asked")

    for url in ("postgresql://u@127.0.0.1:9/none", "postgresql://u@127.0.0.1:9/none?keepalives_idle=60"):
        engine = _engine(url)
        sqlalchemy.event.listen(engine, "do_connect", note)
        with pytest.raises(StorageFailure):
            engine.connect()
    first, second = asked
    assert first["keepalives"] == 1 and first["tcp_user_timeout"] <= 10_000
    assert first["keepalives_idle"] + first["keepalives_interval"] * first["keepalives_count"] <= 15
    assert second["keepalives_idle"] == "60"


def test_trouble_after_opening_is_a_storage_failure_and_a_wrong_row_is_not(database: Engine) -> None:
    if database.dialect.name != "sqlite":
        with pytest.raises(StorageFailure), database.connect() as connection:
            connection.exec_driver_sql("SELECT pg_terminate_backend(pg_backend_pid())")
    with pytest.raises(sqlalchemy.exc.IntegrityError), database.begin() as connection:
        connection.execute(text("INSERT INTO models (name, last_version) VALUES ('a', 1), ('a', 2)"))
