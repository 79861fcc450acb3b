"""A database that is removed, replaced, overwritten or full under a running service: said, refused, mended, nothing lost."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, select
from tests.operations.test_infer import Says, asked, itself, the_first
from tests.served import add_mlp, open_home, serving
from tests.waiting import wait_until

from maasdam.accounts.journal import Journal
from maasdam.accounts.ledger import Ledger, PendingRow, packed
from maasdam.accounts.outbox import Outbox
from maasdam.accounts.prices import Prices
from maasdam.api.errors import refusal, without_places
from maasdam.core import Entry
from maasdam.database import presence as presences
from maasdam.database.engine import open_database
from maasdam.database.presence import Presence
from maasdam.database.tables import LedgerRow
from maasdam.errors import DeadlineExceeded, InvalidModel, StorageFailure
from maasdam.operations.infer import Inference
from maasdam.serving.router import Lease
from maasdam.telemetry.metrics import Metrics

BODY = {"inputs": [{"name": "x", "shape": [1, 8], "datatype": "FP32", "data": [0.5] * 8}]}


class Watched:
    """A database, its ledger and who looks after both, as in a service; looked at when a test says so."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.database = open_database(f"sqlite:///{file}")
        self.ledger = Ledger(self.database, file.with_name("journals"))
        self.journal = Journal(file.with_name("journals"))
        self.presence = Presence(self.database, on_back=self.ledger.look_anew)

    def record(self, name: str) -> BaseException | None:
        """A request's row, whether it is answered or refused since the database is known to be lost."""
        entry, refusal = Entry(name, datetime.now(UTC), None, "c", "m", "/", 200, 0.1), None
        try:
            self.presence.refuse_if_lost()
        except StorageFailure as error:
            entry.status, refusal = 503, error
        self.journal.append(packed([PendingRow(entry)]))
        with suppress(StorageFailure):
            self.ledger.take_in()
        return refusal

    def rows(self) -> dict[str, int]:
        self.ledger.take_in()
        with self.database.connect() as connection:
            return dict(connection.execute(select(LedgerRow.request_id, LedgerRow.status)).all())


@pytest.fixture
def watched(tmp_path: Path, sqlite_template: Path) -> Iterator[Watched]:
    shutil.copyfile(sqlite_template, tmp_path / "maasdam.db")
    made = Watched(tmp_path / "maasdam.db")
    yield made
    made.presence.stop()
    made.journal.close()
    made.database.dispose()


def backup(file: Path) -> Path:
    copy = file.with_name("backup.db")
    with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
    return copy


def move_away(file: Path) -> Callable[[], object]:
    away = file.rename(file.with_name("away.db"))
    return lambda: away.rename(file)


def remove(file: Path) -> Callable[[], object]:
    copy = backup(file)
    file.unlink()
    return lambda: copy.rename(file)


def remove_and_put_back_what_was_rescued(file: Path) -> Callable[[], object]:
    file.unlink()
    return lambda: next(file.parent.glob("maasdam.db.rescued-*")).rename(file)


def remove_with_its_log(file: Path) -> Callable[[], object]:
    copy = backup(file)
    for path in file.parent.glob("maasdam.db*"):
        path.unlink()
    return lambda: copy.rename(file)


def overwrite(file: Path) -> Callable[[], object]:
    copy = backup(file)
    file.write_bytes(b"no database" * 5000)
    return lambda: shutil.copyfile(copy, file)


def empty(file: Path) -> Callable[[], object]:
    copy = backup(file)
    file.write_bytes(b"")
    return lambda: shutil.copyfile(copy, file)


LOSSES = (move_away, remove, remove_and_put_back_what_was_rescued, remove_with_its_log, overwrite, empty)


@pytest.mark.parametrize("lose", LOSSES)
def test_a_lost_file_is_noticed_refused_and_taken_up_again_with_every_answer(watched: Watched, lose: Callable) -> None:
    answered = {f"before{n}": 200 for n in range(50) if watched.record(f"before{n}") is None}
    watched.presence.look()
    mend = lose(watched.file)
    if watched.record("meanwhile") is None:  # before anybody could notice: it counts as answered
        answered["meanwhile"] = 200
    watched.presence.look()
    assert watched.presence.reason in (presences.REMOVED, presences.OVERWRITTEN)
    assert isinstance(watched.record("refused"), StorageFailure)
    watched.presence.look()
    assert watched.presence.reason is not None, "nothing has come back yet"
    assert not watched.file.exists() or watched.file.read_bytes()[:16] != b"SQLite format 3\0"
    mend()
    watched.presence.look()
    assert watched.presence.reason is None
    assert watched.record("after") is None
    rows = watched.rows()
    assert {name: rows.get(name) for name in answered} == answered
    assert rows["refused"] == 503 and rows["after"] == 200
    with closing(sqlite3.connect(watched.file)) as plain:
        assert plain.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_no_command_makes_an_empty_database_where_one_was_removed(watched: Watched) -> None:
    watched.file.unlink()
    watched.presence.look()
    with pytest.raises(StorageFailure, match="move that back"):
        open_database(f"sqlite:///{watched.file}")
    assert not watched.file.exists()


def test_no_command_makes_an_empty_database_where_one_was_moved_away(watched: Watched) -> None:
    assert watched.record("before") is None
    put_back = move_away(watched.file)
    watched.presence.look()
    for _ in range(2):
        with pytest.raises(StorageFailure, match="put it back"):
            open_database(f"sqlite:///{watched.file}")
        assert not watched.file.exists()
        watched.presence.look()
    put_back()
    watched.presence.look()
    assert watched.presence.reason is None and watched.rows() == {"before": 200}
    assert not watched.file.with_name("maasdam.db.removed").exists()
    open_database(f"sqlite:///{watched.file}").dispose()


def test_what_is_put_back_after_the_service_ended_is_opened_and_forgets_the_loss(watched: Watched) -> None:
    put_back = move_away(watched.file)
    watched.presence.look()
    put_back()
    open_database(f"sqlite:///{watched.file}").dispose()
    assert not watched.file.with_name("maasdam.db.removed").exists()


@pytest.mark.parametrize("was_seen", [False, True])
def test_a_new_and_empty_database_is_not_taken_up(watched: Watched, sqlite_template: Path, was_seen: bool) -> None:
    assert watched.record("before") is None
    put_back = move_away(watched.file)
    if was_seen:
        watched.presence.look()
    shutil.copyfile(sqlite_template, watched.file)
    for _ in range(2):
        watched.presence.look()
        assert watched.presence.reason is not None
    put_back()
    watched.presence.look()
    assert watched.presence.reason is None and watched.rows() == {"before": 200}


def test_an_empty_database_that_is_put_back_is_taken_up(watched: Watched) -> None:
    mend = remove_and_put_back_what_was_rescued(watched.file)
    watched.presence.look()
    mend()
    watched.presence.look()
    assert watched.presence.reason is None


def test_an_older_file_in_its_place_is_taken_up_and_what_it_lacks_is_written_again(watched: Watched) -> None:
    assert watched.record("oldest") is None
    older = backup(watched.file)
    assert [watched.record(f"r{n}") for n in range(50)] == [None] * 50
    older.rename(watched.file)
    assert watched.record("early") is None, "it is durable, whatever lies at the database's place"
    assert isinstance(watched.record("noticed"), StorageFailure)
    watched.presence.look()
    assert watched.presence.reason is None and watched.record("later") is None
    answered = ["oldest", "early", "later", *(f"r{n}" for n in range(50))]
    assert watched.rows() == dict.fromkeys(answered, 200) | {"noticed": 503}


def test_an_older_copy_written_into_the_file_is_noticed(watched: Watched) -> None:
    with watched.database.execution_options(is_probe=True).connect() as connection:
        connection.exec_driver_sql("COMMIT")
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    older = backup(watched.file)
    assert [watched.record(f"r{n}") for n in range(50)] == [None] * 50
    watched.presence.look()
    before = watched.file.stat().st_mtime_ns
    shutil.copyfile(older, watched.file)
    os.utime(watched.file, ns=(before, before + 10_000_000))  # its time has to differ
    watched.presence.look()
    watched.presence.look()
    assert watched.presence.reason is None and watched.record("later") is None
    assert watched.rows() == {f"r{n}": 200 for n in range(50)} | {"later": 200}


def test_checkpoints_are_no_strangers(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    alarms: list[Path] = []
    monkeypatch.setattr(presences, "_damage", lambda path: alarms.append(path))
    for n in range(5):
        assert watched.record(f"r{n}") is None
        watched.presence.look()
        with closing(sqlite3.connect(watched.file)) as other:
            other.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        watched.presence.look()
    assert alarms == [] and watched.presence.reason is None


def test_another_schema_in_its_place_is_not_taken_up(watched: Watched) -> None:
    with closing(sqlite3.connect(watched.file.with_name("other.db"))) as other:
        other.execute("CREATE TABLE letters (text)")
    watched.file.with_name("other.db").rename(watched.file)
    for _ in range(2):
        watched.presence.look()
        assert watched.presence.reason == presences.REPLACED


def test_a_full_disk_is_said_until_there_is_room(watched: Watched) -> None:
    pages = 1  # SQLite takes this as: no page more than there are

    @event.listens_for(watched.database, "begin")
    def cap(connection) -> None:
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

    errors = [watched.record("x" * 100 + str(n)) for n in range(200)]
    assert isinstance(errors[-1], StorageFailure)
    assert watched.presence.reason == presences.FULL
    pages = 1_000_000
    watched.presence.look()
    assert watched.presence.reason is None
    assert sum(status == 200 for status in watched.rows().values()) == errors.count(None)


def test_a_disk_without_room_is_noticed_before_anything_is_written(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presences, "LEAST_FREE_BYTES", 1 << 62)
    watched.presence.look()
    assert watched.presence.reason == presences.FULL


def test_a_server_that_goes_away_is_said_and_found_again(postgres_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    database = open_database(postgres_database)
    presence = Presence(database)
    monkeypatch.setattr(database.dialect, "connect", _refuses)
    database.dispose()
    presence.look()
    assert presence.reason == presences.AWAY
    with pytest.raises(StorageFailure):
        presence.refuse_if_lost()
    monkeypatch.undo()
    presence.look()
    assert presence.reason is None
    presence.stop()
    database.dispose()


def _refuses(*_: object, **__: object) -> None:
    import psycopg

    raise psycopg.OperationalError("connection refused")


def test_another_writer_of_the_database_keeps_no_answer_waiting(watched: Watched) -> None:
    with closing(sqlite3.connect(watched.file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        watched.journal.append(packed([PendingRow(Entry("r1", datetime.now(UTC), None, "c", "m", "/", 200, 0.1))]))
        assert watched.ledger.bytes_behind > 0
        other.execute("ROLLBACK")
    assert watched.rows() == {"r1": 200}


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_deadline_covers_the_wait_for_a_slow_disk_and_the_row_says_so(watched: Watched, is_stream: bool) -> None:
    from types import SimpleNamespace

    bard: Any = SimpleNamespace(model="bard", version=3, task=None)
    may_write = threading.Event()

    class Slow(Journal):
        def append(self, payload: bytes) -> None:
            assert may_write.wait(20)
            super().append(payload)

    journal = Slow(watched.file.with_name("journals"))
    journal.is_slow = True
    outbox = Outbox(journal, Metrics(), Prices({}))
    infer = Inference(SimpleNamespace(lease=lambda name: Lease(bard, Says("a", "b"))), outbox)
    outbox.record(Entry("before", datetime.now(UTC), None, "c", "m", "/", 200, 0.1), lambda error: None)
    await asyncio.sleep(0)  # it is being written
    asyncio.get_running_loop().call_later(0.6, may_write.set)
    with pytest.raises(DeadlineExceeded):
        async with asyncio.timeout(20):
            asking = asked(time.monotonic() + 0.2)
            if is_stream:
                async for _ in infer.stream(asking, itself):
                    pass
            else:
                await infer.whole(asking, the_first)
    await asyncio.to_thread(outbox.close)
    assert watched.rows() == {"before": 200, "r1": 504}
    row = watched.ledger.row("r1")
    assert row is not None and row["error_code"] == "deadline_exceeded"


def test_a_service_refuses_and_comes_back(tmp_path: Path) -> None:
    with open_home(tmp_path) as workspace:
        add_mlp(workspace)
        _, key = workspace.keys.create("tests", ["infer", "deploy", "admin"])
    file = tmp_path / "maasdam.db"
    with serving(tmp_path, key) as running, running.client() as client:

        def until(path: str, status: int) -> dict:
            replies = (client.get(path) for _ in itertools.count())
            return dict(wait_until(lambda: reply if (reply := next(replies)).status_code == status else None).json())

        assert client.post("/v2/models/mlp/infer", json=BODY).status_code == 200
        away = file.rename(tmp_path / "away.db")
        assert until("/v2/health/ready", 503) == {"ready": False, "reason": presences.REMOVED}
        refused = client.post("/v2/models/mlp/infer", json=BODY)
        assert refused.status_code == 503 and "removed" in refused.text and str(tmp_path) not in refused.text
        assert client.get("/health").json()["status"] == presences.REMOVED
        away.rename(file)
        until("/v2/health/ready", 200)
        assert client.post("/v2/models/mlp/infer", json=BODY).status_code == 200


def test_a_home_with_spaces_is_told_to_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "big old models"
    monkeypatch.setenv("MAASDAM_HOME", str(home))
    assert without_places(f"no artifact in {home}/artifacts or in {home}") == (
        "no artifact in a file of the service or in a file of the service"
    )


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("the database 'sqlite:////home/x/maasdam.db' failed: full", "the database failed: full"),
        ("can't read postgresql+psycopg://u:***@h/db now", "can't read the database now"),
        (
            "no artifact 'sha256:ab' in /home/me/artifacts; build it",
            "no artifact 'sha256:ab' in a file of the service; build it",
        ),
        ("'/tmp/a b/x.onnx' is bad", "a file of the service is bad"),
        ("can't open file:///home/me/m.onnx: none", "can't open a file of the service: none"),
        ("'file:///home/me/a b/m.onnx' is bad", "a file of the service is bad"),
        ("path:/home/me/z is bad", "path:a file of the service is bad"),
        ("/home/me/my models/m.onnx is bad", "a file of the service is bad"),
        ("no /tmp/a b.onnx here.", "no a file of the service here."),
        ("no file /tmp/x. See /v1/models", "no file a file of the service See /v1/models"),
        (
            "see http://127.0.0.1:8080/docs and /v1/models or http://home/x",
            "see http://127.0.0.1:8080/docs and /v1/models or http://home/x",
        ),
        ("no route /v1/x; GET /docs lists them", "no route /v1/x; GET /docs lists them"),
    ],
)
def test_callers_are_told_no_paths_and_no_urls(said: str, shown: str) -> None:
    assert without_places(said) == shown
    assert refusal(InvalidModel(said), "r").message == shown
    assert refusal(StorageFailure(said), "r").message == shown
