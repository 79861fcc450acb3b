"""The ledger: what is in the journals comes into it, once, whatever happens around it."""

from __future__ import annotations

import fcntl
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import Engine, event, select

from maasdam.accounts.journal import Journal
from maasdam.accounts.ledger import Ledger, PendingRow, fitting, packed
from maasdam.core import Entry
from maasdam.database.engine import open_database
from maasdam.database.tables import JournalRow, LedgerRow
from maasdam.errors import LostConnection, StorageFailure

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def entry(request_id: str = "r1", **changes: object) -> Entry:
    whole = Entry(request_id, NOON, None, "anonymous", "digits", "/v2/models/digits/infer", 200, 0.01, version=1)
    return replace(whole, **changes)


def ids(database: Engine) -> list[str]:
    with database.connect() as connection:
        return sorted(connection.execute(select(LedgerRow.request_id)).scalars())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "journals"


@pytest.fixture
def ledger(database: Engine, folder: Path) -> Ledger:
    return Ledger(database, folder)


@pytest.fixture
def written(folder: Path) -> Iterator[Journal]:
    made = Journal(folder)
    yield made
    made.close()


def write(journal: Journal, *entries: Entry, is_restated: bool = False) -> None:
    journal.append(packed([PendingRow(fitting(each), is_restated) for each in entries]))


def test_what_is_in_a_journal_is_there_for_another_connection(ledger: Ledger, written: Journal, database_url: str) -> None:
    write(written, entry("r1"))
    assert ledger.bytes_behind > 0
    ledger.take_in()
    other = open_database(database_url)
    assert ids(other) == ["r1"] and ledger.bytes_behind == 0
    other.dispose()


def test_who_reads_takes_in_first(ledger: Ledger, written: Journal) -> None:
    write(written, entry("r1"))
    assert ledger.row("r1") is not None
    write(written, entry("r2"))
    assert ledger.usage("model")[0].requests == 2


def test_recording_twice_counts_once(ledger: Ledger, written: Journal, database: Engine) -> None:
    write(written, entry("same", items=1), entry("same", items=2))
    ledger.take_in()
    write(written, entry("same", items=3))
    ledger.take_in()
    assert ids(database) == ["same"]
    assert ledger.usage("model")[0].items == 1


def test_many_at_once_share_transactions(ledger: Ledger, written: Journal, database: Engine) -> None:
    commits = []
    event.listen(database, "commit", lambda connection: commits.append(1))
    for n in range(2000):
        write(written, entry(f"r{n:04}"))
    ledger.take_in()
    assert len(ids(database)) == 2000
    assert len(commits) < 200


def test_several_that_take_in_at_once_and_several_that_write_lose_nothing_and_double_nothing(
    database: Engine, folder: Path
) -> None:
    is_over = threading.Event()

    def call(number: int) -> None:
        journal = Journal(folder)
        for n in range(50):
            write(journal, entry(f"{number}-{n}"))
        journal.close()

    def take() -> None:
        while not is_over.is_set():
            Ledger(database, folder).take_in(is_ending=True)

    writers = [threading.Thread(target=call, args=(n,)) for n in range(6)]
    takers = [threading.Thread(target=take) for _ in range(2)]
    for thread in writers + takers:
        thread.start()
    for thread in writers:
        thread.join()
    is_over.set()
    for thread in takers:
        thread.join()
    Ledger(database, folder).take_in()
    assert ids(database) == sorted(f"{number}-{n}" for number in range(6) for n in range(50))


def test_a_bad_row_is_left_out_alone(
    ledger: Ledger, written: Journal, database: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    write(written, entry("a"), replace(entry("bad"), seconds=None), entry("c"))
    ledger.take_in()
    write(written, entry("d"))
    ledger.take_in()
    assert ids(database) == ["a", "c", "d"]
    assert "can't be kept" in caplog.text and "'bad'" in caplog.text, "all of it is told"


def test_a_row_of_a_key_that_is_not_there_tells_who_called_by_the_name(ledger: Ledger, written: Journal) -> None:
    write(written, entry("a", key_id="key_gone", caller="team"), entry("b"))
    assert (ledger.row("a") or {})["caller"] == "team (key_gone)"
    assert ledger.row("b") is not None


@pytest.mark.parametrize("name", ["x" * 5000, "nul\0inside", "half \ud800 a pair", "line\nbreak"])
def test_any_name_a_caller_wrote_can_be_kept(ledger: Ledger, written: Journal, name: str) -> None:
    write(written, entry(model=name, status=404, version=None))
    assert ledger.usage("model")[0].errors == 1


def test_what_was_refused_after_all_is_what_stays(ledger: Ledger, written: Journal) -> None:
    """A sync that failed may have left the row of the answer, and the refusal comes later."""
    write(written, entry("r", price=2.0, currency="EUR"))
    ledger.take_in()
    write(written, entry("r", status=503, error_code="storage_failure"), is_restated=True)
    row = ledger.row("r") or {}
    assert (row["status"], row["price"], row["currency"], row["error_code"]) == (503, None, None, "storage_failure")


def test_a_database_without_room_takes_nothing_in_halves_and_room_mends_it(tmp_path: Path, folder: Path) -> None:
    database = open_database(f"sqlite:///{tmp_path / 'full.db'}")
    ledger, journal = Ledger(database, folder), Journal(folder)
    limit = "PRAGMA max_page_count = {}"

    @event.listens_for(database, "begin")
    def cap(connection) -> None:
        connection.exec_driver_sql(limit.format(pages))

    pages = 1  # SQLite takes this as: no page more than there are
    for n in range(1200):
        write(journal, entry(f"r{n:04}", caller="c" * 100, endpoint="e" * 128))
    with pytest.raises(StorageFailure, match="full"):
        ledger.take_in()
    assert len(ids(database)) < 1200 and ledger.bytes_behind > 0
    pages = 1_000_000
    ledger.take_in()
    assert ids(database) == [f"r{n:04}" for n in range(1200)]
    journal.close()
    database.dispose()


def test_a_server_lost_halfway_is_asked_again_and_the_row_is_single(postgres_database: str, folder: Path) -> None:
    database, other = open_database(postgres_database), open_database(postgres_database)
    ledger, journal = Ledger(database, folder), Journal(folder)
    cuts = []

    @event.listens_for(database, "before_cursor_execute")
    def cut(connection, cursor, statement, *_) -> None:
        if statement.startswith("INSERT INTO ledger") and not cuts:
            cuts.append(connection.connection.driver_connection.info.backend_pid)
            with other.connect() as killer:
                killer.exec_driver_sql(f"SELECT pg_terminate_backend({cuts[0]})")

    write(journal, entry("cut"))
    ledger.take_in()
    assert cuts and ids(other).count("cut") == 1
    journal.close()
    database.dispose()
    other.dispose()


@pytest.mark.parametrize("is_committing", [False, True])
def test_a_failure_before_or_after_the_commit_leaves_each_row_once(
    database: Engine, folder: Path, written: Journal, is_committing: bool
) -> None:
    class Failing(Ledger):
        failures = 2

        def _take_some(self, path: Path) -> tuple[int, bool]:
            if not self.failures:
                return super()._take_some(path)
            self.failures -= 1
            if is_committing:
                super()._take_some(path)
            raise LostConnection("gone")

    ledger = Failing(database, folder)
    write(written, entry("before"), entry("after"))
    with pytest.raises(StorageFailure):
        ledger.take_in()
    ledger.take_in()
    assert ids(database) == ["after", "before"]


def test_files_go_once_they_are_in_and_their_writer_has_ended(ledger: Ledger, folder: Path, database: Engine) -> None:
    journal = Journal(folder)
    write(journal, entry("r"))
    ledger.take_in(is_ending=True)
    assert len(list(folder.iterdir())) == 1, "somebody writes to it"
    write(journal, entry("s"))
    journal.close()
    ledger.take_in()
    assert len(list(folder.iterdir())) == 1, "an older copy of the database may be put in place"
    ledger.take_in(is_ending=True)
    assert not list(folder.iterdir()) and ids(database) == ["r", "s"]
    with database.connect() as connection:
        assert not connection.execute(select(JournalRow)).all()


def test_a_file_that_is_being_begun_is_not_taken_for_one_that_is_over(
    ledger: Ledger, folder: Path, written: Journal, database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody looks between its making and its lock."""
    real = fcntl.flock

    def looked_at(file: int, how: int) -> None:
        if how == fcntl.LOCK_EX:
            ledger.take_in(is_ending=True)
        real(file, how)

    monkeypatch.setattr(fcntl, "flock", looked_at)
    write(written, entry("r"))
    monkeypatch.undo()
    ledger.take_in()
    assert ids(database) == ["r"]
    write(written, entry("s"))
    written.close()
    ledger.take_in(is_ending=True)
    assert ids(database) == ["r", "s"] and not list(folder.iterdir())


def test_an_older_copy_of_the_database_gets_what_it_lacks(
    ledger: Ledger, folder: Path, written: Journal, tmp_path: Path
) -> None:
    write(written, entry("r"))
    older = open_database(f"sqlite:///{tmp_path / 'older.db'}")
    Ledger(older, folder).take_in()
    write(written, entry("s"))
    ledger.take_in()
    Ledger(older, folder).take_in()
    assert ids(older) == ["r", "s"]
    older.dispose()


def test_rows_of_another_version_s_columns_are_read(ledger: Ledger, written: Journal, database: Engine) -> None:
    names = ("request_id", "at", "key_id", "caller", "model", "endpoint", "status", "seconds", "mood")
    values = ("r", NOON, None, "c", "m", "/", 200, 0.5, "good", False)
    written.append(msgspec.msgpack.encode((names, [values])))
    row = ledger.row("r") or {}
    assert (row["seconds"], row["items"], row["at"]) == (0.5, 1, NOON)


WRITER = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from maasdam.core import Entry
from maasdam.accounts.journal import Journal
from maasdam.accounts.ledger import Ledger, PendingRow, packed
from maasdam.database.engine import open_database
import threading
folder = Path(sys.argv[2])
journal, ledger = Journal(folder), Ledger(open_database(sys.argv[1]), folder)
def take():
    while True:
        ledger.take_in()
threading.Thread(target=take, daemon=True).start()
for n in range(int(sys.argv[3]), 10**9, 4):
    journal.append(packed([PendingRow(Entry(f"r{n + i}", datetime.now(UTC), None, "c", "m", "/", 200, 0.1)) for i in range(4)]))
    print(n, flush=True)
"""


def test_nothing_acknowledged_is_lost_by_kill_9(database_url: str, folder: Path) -> None:
    said: list[str] = []
    for round_ in range(3):
        child = subprocess.Popen(
            [sys.executable, "-c", WRITER, database_url, str(folder), str(round_ * 10**6)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        for _ in range(100):
            said.append(child.stdout.readline())
        child.kill()
        said += child.stdout.read().splitlines(keepends=True)
        child.wait()
    acknowledged = {f"r{int(line) + i}" for line in said if line.endswith("\n") for i in range(4)}
    database = open_database(database_url)
    ledger = Ledger(database, folder)
    ledger.take_in()
    there = ids(database)
    assert len(acknowledged) >= 1200
    assert acknowledged <= set(there)
    assert len(there) == len(set(there))
    ledger.take_in(is_ending=True)
    assert not list(folder.iterdir()) and ids(database) == there
    database.dispose()


def test_usage_sums_by_model_key_and_day(database: Engine, ledger: Ledger, written: Journal) -> None:
    from maasdam.accounts.keys import Keys

    key, _ = Keys(database).create("team", ["infer"])
    rows = [
        entry("1", key_id=key.id, caller="team", prompt_tokens=5, completion_tokens=7, compute_seconds=0.5, joules=2.0),
        entry("2", key_id=key.id, caller="team", prompt_tokens=1, at=NOON + timedelta(hours=11, minutes=59)),
        entry("3", at=NOON + timedelta(hours=12), status=503, model="ghost", version=None),
        entry("4", at=NOON + timedelta(hours=13), audio_seconds=2.5, model="ears", version=4),
    ]
    write(written, *rows)
    by_model = {row.name: row for row in ledger.usage("model")}
    assert set(by_model) == {"digits:1", "ghost", "ears:4"}
    digits = by_model["digits:1"]
    assert (digits.requests, digits.errors, digits.prompt_tokens, digits.completion_tokens) == (2, 0, 6, 7)
    assert (digits.compute_seconds, digits.joules, digits.measured_joules) == (0.5, 2.0, 1)
    assert by_model["ghost"].errors == 1 and by_model["ghost"].joules is None and by_model["ghost"].price is None
    assert by_model["ears:4"].audio_seconds == 2.5
    assert [(row.name, row.requests) for row in ledger.usage("key")] == [("anonymous", 2), (f"team ({key.id})", 2)]
    assert [(row.name, row.requests) for row in ledger.usage("day")] == [("2026-03-01", 2), ("2026-03-02", 2)]
    since = (NOON + timedelta(hours=12)).astimezone(None)
    assert sum(row.requests for row in ledger.usage("day", since)) == 2
