"""The ledger: durable before the future resolves, once, whatever happens around it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from concurrent.futures import wait
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, event, select

from maasdam.accounts.ledger import Ledger
from maasdam.accounts.prices import Prices
from maasdam.core import Entry
from maasdam.database.engine import open_database
from maasdam.database.tables import LedgerRow
from maasdam.errors import LostConnection, ServiceError, StorageFailure

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def entry(request_id: str = "r1", **changes: object) -> Entry:
    whole = Entry(request_id, NOON, None, "anonymous", "digits", "/v2/models/digits/infer", 200, 0.01, version=1)
    return replace(whole, **changes)


def ids(database: Engine) -> list[str]:
    with database.connect() as connection:
        return sorted(connection.execute(select(LedgerRow.request_id)).scalars())


@pytest.fixture
def ledger(database: Engine):
    made = Ledger(database)
    yield made
    made.close()


def test_a_resolved_row_is_there_for_another_connection(ledger: Ledger, database_url: str) -> None:
    ledger.record(entry("r1")).result(10)
    other = open_database(database_url)
    assert ids(other) == ["r1"]
    other.dispose()


def test_recording_twice_counts_once(ledger: Ledger, database: Engine) -> None:
    for future in [ledger.record(entry("same", items=n)) for n in (1, 2)] + [ledger.record(entry("same", items=3))]:
        future.result(10)
    assert ids(database) == ["same"]
    assert ledger.usage("model")[0].items == 1


def test_many_at_once_share_transactions(ledger: Ledger, database: Engine) -> None:
    commits = []
    event.listen(database, "commit", lambda connection: commits.append(1))
    futures = [ledger.record(entry(f"r{n:04}")) for n in range(2000)]
    done, late = wait(futures, 30)
    assert not late and all(future.exception() is None for future in done)
    assert len(ids(database)) == 2000
    assert len(commits) < 200


def test_callers_in_many_threads_lose_nothing(ledger: Ledger, database: Engine) -> None:
    def call(thread: int) -> None:
        for n in range(50):
            ledger.record(entry(f"{thread}-{n}")).result(30)

    threads = [threading.Thread(target=call, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids(database)) == 400


async def test_a_disconnect_loses_no_row_and_stops_no_other(ledger: Ledger, database: Engine) -> None:
    tasks = [asyncio.create_task(_recorded(ledger, f"gone{n}")) for n in range(20)]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.wait_for(_recorded(ledger, "stays"), 10)
    assert len(ids(database)) == 21


async def _recorded(ledger: Ledger, request_id: str) -> None:
    await asyncio.wrap_future(ledger.record(entry(request_id)))


def test_a_bad_row_fails_alone(ledger: Ledger, database: Engine) -> None:
    before, bad, after = (ledger.record(entry(name)) for name in ("a", "b", "c"))
    for future in (before, bad, after):
        future.result(10)
    broken = [ledger.record(entry("bad", seconds=None)), ledger.record(entry("good"))]
    assert broken[1].result(10) is None
    assert isinstance(broken[0].exception(10), ServiceError)
    assert ids(database) == ["a", "b", "c", "good"]


@pytest.mark.parametrize("name", ["x" * 5000, "nul\0inside", "half \ud800 a pair", "line\nbreak"])
def test_any_name_a_caller_wrote_can_be_kept(ledger: Ledger, name: str) -> None:
    ledger.record(entry(model=name, status=404, version=None)).result(10)
    assert ledger.usage("model")[0].errors == 1


def test_a_full_disk_is_an_error_and_room_mends_it(tmp_path: Path) -> None:
    database = open_database(f"sqlite:///{tmp_path / 'full.db'}")
    ledger = Ledger(database)
    limit = "PRAGMA max_page_count = {}"

    @event.listens_for(database, "begin")
    def cap(connection) -> None:
        connection.exec_driver_sql(limit.format(pages))

    pages = 1  # SQLite takes this as: no page more than there are
    future = [ledger.record(entry(f"r{n}", caller="c" * 100, endpoint="e" * 128)) for n in range(400)]
    failed = [f.exception(30) for f in future]
    assert isinstance(failed[-1], ServiceError) and "full" in str(failed[-1])
    kept = {f"r{n}" for n, error in enumerate(failed) if error is None}
    assert set(ids(database)) == kept  # refused is not there, acknowledged is
    pages = 1_000_000
    ledger.record(entry("later")).result(30)
    ledger.close()
    database.dispose()


def test_closing_writes_what_is_queued_and_then_refuses(database: Engine) -> None:
    ledger = Ledger(database)
    futures = [ledger.record(entry(f"r{n}")) for n in range(300)]
    ledger.close()
    assert all(future.done() and future.exception() is None for future in futures)
    assert len(ids(database)) == 300
    assert isinstance(ledger.record(entry("late")).exception(1), ServiceError)


def test_a_server_lost_halfway_is_asked_again_and_the_row_is_single(postgres_database: str) -> None:
    database, other = open_database(postgres_database), open_database(postgres_database)
    ledger = Ledger(database)
    cuts = []

    @event.listens_for(database, "before_cursor_execute")
    def cut(connection, cursor, statement, *_) -> None:
        if statement.startswith("INSERT INTO ledger") and not cuts:
            cuts.append(connection.connection.driver_connection.info.backend_pid)
            with other.connect() as killer:
                killer.exec_driver_sql(f"SELECT pg_terminate_backend({cuts[0]})")

    ledger.record(entry("cut")).result(30)
    assert cuts and ids(other).count("cut") == 1
    ledger.close()
    database.dispose()
    other.dispose()


class Failing(Ledger):
    """Fails as often as is asked for, after it committed or before."""

    failures = 0
    is_committing = False

    def _insert(self, group) -> None:
        if self.failures:
            self.failures -= 1
            if self.is_committing:
                super()._insert(group)
            raise LostConnection("gone")
        super()._insert(group)


@pytest.mark.parametrize("is_committing", [False, True])
def test_a_short_failure_leaves_what_the_caller_was_told(database: Engine, is_committing: bool) -> None:
    ledger = Failing(database, Prices({"digits": {"currency": "EUR", "requests": 2.0}}))
    ledger.record(entry("before")).result(10)
    ledger.failures, ledger.is_committing = 2, is_committing
    assert isinstance(ledger.record(entry("refused")).exception(10), StorageFailure)
    ledger.record(entry("after")).result(10)
    ledger.close()
    row = ledger.row("refused")
    assert row is not None, "nobody else will ask for it to be written"
    assert (row["status"], row["price"], row["currency"], row["error_code"]) == (503, None, None, "storage_failure")
    assert [(ledger.row(name) or {})["price"] for name in ("before", "after")] == [2.0, 2.0]
    assert len(ids(database)) == 3


def test_a_second_close_waits_for_the_rows_too(database: Engine) -> None:
    ledger, may_write = Ledger(database), threading.Event()
    event.listen(database, "begin", lambda connection: may_write.wait(30))
    ledger.record(entry("slow"))
    first = threading.Thread(target=ledger.close)
    first.start()
    while not ledger._is_closed:
        pass
    threading.Timer(0.2, may_write.set).start()
    ledger.close()
    assert may_write.is_set() and ids(database) == ["slow"]
    first.join()


WRITER = """
import sys
from datetime import UTC, datetime
from maasdam.core import Entry
from maasdam.accounts.ledger import Ledger
from maasdam.database.engine import open_database
ledger = Ledger(open_database(sys.argv[1]))
def say(n):
    return lambda future: (sys.stdout.write(f"{n}\\n"), sys.stdout.flush()) if future.exception() is None else None
for n in range(int(sys.argv[2]), 10**9):
    future = ledger.record(Entry(f"r{n}", datetime.now(UTC), None, "c", "m", "/", 200, 0.1))
    future.add_done_callback(say(n))
    if n % 16 == 0:
        future.result()
"""


def test_nothing_acknowledged_is_lost_by_kill_9(database_url: str) -> None:
    said: list[str] = []
    for round_ in range(3):
        child = subprocess.Popen(
            [sys.executable, "-c", WRITER, database_url, str(round_ * 10**6)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        for _ in range(200):
            said.append(child.stdout.readline())
        child.kill()
        said += child.stdout.read().splitlines(keepends=True)
        child.wait()
    acknowledged = [f"r{line.strip()}" for line in said if line.endswith("\n")]
    database = open_database(database_url)
    there = ids(database)
    assert len(acknowledged) >= 600
    assert set(acknowledged) <= set(there)
    assert len(there) == len(set(there))
    ledger = Ledger(database)  # and what was acknowledged may be sent again
    wait([ledger.record(entry(request_id)) for request_id in acknowledged], 30)
    ledger.close()
    assert ids(database) == there
    database.dispose()


def test_usage_sums_by_model_key_and_day(database: Engine) -> None:
    from maasdam.accounts.keys import Keys

    key, _ = Keys(database).create("team", ["infer"])
    ledger = Ledger(database)
    rows = [
        entry("1", key_id=key.id, caller="team", prompt_tokens=5, completion_tokens=7, compute_seconds=0.5, joules=2.0),
        entry("2", key_id=key.id, caller="team", prompt_tokens=1, at=NOON + timedelta(hours=11, minutes=59)),
        entry("3", at=NOON + timedelta(hours=12), status=503, model="ghost", version=None),
        entry("4", at=NOON + timedelta(hours=13), audio_seconds=2.5, model="ears", version=4),
    ]
    wait([ledger.record(row) for row in rows])
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
    ledger.close()


def test_prices_apply_to_answers_and_not_to_failures(database: Engine) -> None:
    prices = Prices(
        {"digits": {"currency": "EUR", "requests": 0.25, "prompt_tokens": 0.5}, "*": {"currency": "USD", "items": 2}}
    )
    ledger = Ledger(database, prices)
    rows = [
        entry("1", prompt_tokens=3),
        entry("2", status=500, prompt_tokens=3),
        entry("3", model="other", items=2),
        entry("4", at=NOON + timedelta(days=1)),
    ]
    wait([ledger.record(row) for row in rows])
    found = {row.name: (row.price, row.currency) for row in ledger.usage("model")}
    assert found == {"digits:1": (2.0, "EUR"), "other:1": (4.0, "USD")}
    days = {row.name: (row.price, row.currency) for row in ledger.usage("day")}
    assert days == {"2026-03-01": (None, None), "2026-03-02": (0.25, "EUR")}  # two currencies have no sum
    ledger.close()
