"""Kept answers, on both databases: whose they are, what they continue, how long they stay, and who writes them behind."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from maasdam.accounts import responses
from maasdam.accounts.responses import STALE_SECONDS, Responses, StoredResponse
from maasdam.database.tables import ResponseRow
from maasdam.errors import InvalidField, NotFound


class Clock:
    """What time it is, as the test has it."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def pass_by(self, **time: float) -> None:
        self.now += timedelta(**time)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def kept(database: Engine, clock: Clock) -> Responses:
    return Responses(database, 30.0, 100_000, clock)


def answer(number: int, previous: StoredResponse | None = None, status: str = "completed", **more: Any) -> StoredResponse:
    body = {"id": f"resp_{number}", "status": status, "error": None, "output": [{"type": "message", "id": f"out_{number}"}]}
    return StoredResponse(f"resp_{number}", body | more, [{"id": f"in_{number}", "text": "naïve \x00 🐈"}], previous)


def ids(database: Engine) -> list[str]:
    with Session(database) as session:
        return sorted(session.scalars(select(ResponseRow.id)))


def test_what_is_kept_is_its_owners_alone(kept: Responses) -> None:
    kept.add("a", answer(1))
    found = kept.find("a", "resp_1")
    assert (found.body, found.items) == (answer(1).body, answer(1).items)
    for ask in (kept.find, kept.chain, kept.delete, kept.cancel):
        with pytest.raises(NotFound, match="no response 'resp_1' of this key"):
            ask("b", "resp_1")
    kept.delete("a", "resp_1")
    with pytest.raises(NotFound):
        kept.find("a", "resp_1")


def test_a_chain_is_whole_and_in_order_or_not_there(kept: Responses) -> None:
    one = None
    for number in range(5):
        kept.add("a", answer(number, one))
        one = kept.chain("a", f"resp_{number}")
    kept.add("a", answer(9, kept.chain("a", "resp_1")))  # a fork
    last: StoredResponse | None = kept.chain("a", "resp_4")
    order = []
    while last is not None:
        order.append(last.id)
        last = last.previous
    assert order == ["resp_4", "resp_3", "resp_2", "resp_1", "resp_0"]
    kept.delete("a", "resp_2")
    assert kept.find("a", "resp_4").id == "resp_4"
    with pytest.raises(NotFound, match="continues one that is no longer kept"):
        kept.chain("a", "resp_4")
    assert kept.chain("a", "resp_9").previous is not None


def test_it_stays_as_long_as_set_and_as_what_continues_it(kept: Responses, clock: Clock, database: Engine) -> None:
    kept.add("a", answer(1))
    kept.add("a", answer(2))
    clock.pass_by(days=20)
    kept.add("a", answer(3, kept.chain("a", "resp_1")))
    clock.pass_by(days=20)
    with pytest.raises(NotFound):
        kept.find("a", "resp_2")
    assert len(ids(database)) == 3, "nobody tidied up"
    kept.tidy()
    assert ids(database) == ["resp_1", "resp_3"]
    assert kept.chain("a", "resp_3").previous is not None
    clock.pass_by(days=11)
    kept.tidy()
    assert ids(database) == []


def test_the_oldest_of_an_owner_go_where_they_take_too_much(kept: Responses, clock: Clock, database: Engine) -> None:
    kept.add("b", answer(0))
    for number in range(1, 8):
        clock.pass_by(seconds=1)
        kept.add("a", answer(number, text="x" * 20_000))
    assert ids(database) == ["resp_0", "resp_4", "resp_5", "resp_6", "resp_7"]


def test_a_conversation_has_an_end(kept: Responses, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responses, "MOST_LINKS", 3)
    for number in range(3):
        kept.add("a", answer(number, kept.chain("a", f"resp_{number - 1}") if number else None))
    with pytest.raises(InvalidField, match="3 responses, which is the most"):
        kept.add("a", answer(3, kept.chain("a", "resp_2")))
    monkeypatch.setattr(responses, "MOST_LINKS", 100)
    monkeypatch.setattr(responses, "LARGEST_CHAIN", 1_000)
    with pytest.raises(InvalidField, match="more than 1,000 bytes"):
        kept.add("a", answer(3, kept.chain("a", "resp_2"), text="x" * 900))


def test_what_is_written_behind_is_finished_once(kept: Responses) -> None:
    kept.add("a", answer(1, status="queued"))
    assert kept.beat(["resp_1"]) == set()
    assert kept.find("a", "resp_1").status == "in_progress"
    assert kept.finish("resp_1", answer(1, text="done").body)
    assert kept.find("a", "resp_1").body == answer(1, text="done").body
    assert not kept.finish("resp_1", answer(1, text="again").body)
    assert kept.cancel("a", "resp_1").status == "completed"


def test_who_writes_hears_that_it_was_cancelled_or_deleted(kept: Responses) -> None:
    for number in (1, 2, 3):
        kept.add("a", answer(number, status="queued"))
    assert kept.cancel("a", "resp_1").status == "cancelled"
    kept.delete("a", "resp_2")
    assert kept.beat(["resp_1", "resp_2", "resp_3"]) == {"resp_1", "resp_2"}
    assert not kept.finish("resp_1", answer(1).body)
    assert not kept.finish("resp_2", answer(2).body)
    assert kept.find("a", "resp_1").status == "cancelled"


def test_what_nobody_writes_any_more_has_failed(kept: Responses, clock: Clock) -> None:
    for number, status in enumerate(("queued", "in_progress")):
        kept.add("a", answer(number, status=status))
    clock.pass_by(seconds=STALE_SECONDS - 1)
    assert kept.find("a", "resp_1").status == "in_progress"
    clock.pass_by(seconds=2)
    for _ in range(2):  # before it is tidied up, and after
        for number in range(2):
            found = kept.find("a", f"resp_{number}")
            assert (found.status, found.body["error"]["code"]) == ("failed", "server_error")
            assert kept.cancel("a", f"resp_{number}").status == "failed"
        kept.tidy()
    assert not kept.finish("resp_1", answer(1).body)


def test_the_size_of_what_was_written_counts(kept: Responses, database: Engine) -> None:
    kept.add("a", answer(1, status="queued"))
    kept.finish("resp_1", answer(1, text="é" * 5_000).body)
    with Session(database) as session:
        row = session.scalars(select(ResponseRow)).one()
        assert row.size == row.chain_size == len((row.body + row.items).encode()) > 10_000
