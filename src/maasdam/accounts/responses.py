"""Answers that are kept for whoever asked. Knows owners, chains, sizes and times; never what an answer says.

add -> find, chain, delete                   its owner's alone: to others there is no such answer
add (queued) -> beat, beat -> finish         one that is written behind; without a beat for STALE_SECONDS it has failed
                  \\- cancel: the next beat says so to whoever writes it
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
from sqlalchemy import Engine, delete, func, select, update
from sqlalchemy.orm import Session

from maasdam.database.tables import ResponseRow
from maasdam.errors import InvalidField, NotFound

QUEUED, IN_PROGRESS, CANCELLED, FAILED = "queued", "in_progress", "cancelled", "failed"
RUNNING = (QUEUED, IN_PROGRESS)
STALE_SECONDS = 15.0
"""Whoever writes an answer says so every second; after so long without a word it is gone."""
MOST_LINKS = 1_000
"""Answers of one conversation."""
LARGEST_CHAIN = 8 * 1024 * 1024
"""What is kept of one conversation, bytes of JSON."""
ROOM = 0.9
"""Where a key's answers take too much, the oldest are removed until they take this share of what they may."""
ENDED = {"code": "server_error", "message": "the service ended while this was written; send it again"}
"""The error of an answer whose writer is gone."""


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """One answer, with the items that were asked."""

    id: str
    body: Mapping[str, Any]
    items: Sequence[Mapping[str, Any]]
    previous: StoredResponse | None = None
    depth: int = 0
    chain_size: int = 0

    @property
    def status(self) -> str:
        """As the body has it."""
        return str(self.body["status"])


class Responses:
    """The kept answers in one database. Thread-safe; everything blocks."""

    def __init__(self, database: Engine, days: float, most_bytes: int, now: Callable[[], datetime] | None = None) -> None:
        """`days`: how long one is kept; 0 keeps none. `most_bytes`: of each owner."""
        self._writes = database
        self._reads = database.execution_options(is_reader=True)
        self.days = days
        self._most_bytes = most_bytes
        self._now = now or (lambda: datetime.now(UTC))

    def add(self, owner: str, one: StoredResponse) -> None:
        """Keep it, and what it continues as long as it. Raises InvalidField where the conversation is too large."""
        body, items = orjson.dumps(one.body), orjson.dumps(one.items)
        size, before = len(body) + len(items), one.previous
        check_room(before, size)
        now = self._now()
        expires_at = now + timedelta(days=self.days)
        row = ResponseRow(
            id=one.id,
            owner=owner,
            previous=before and before.id,
            depth=0 if before is None else before.depth + 1,
            status=one.status,
            body=body.decode(),
            items=items.decode(),
            size=size,
            chain_size=size + (0 if before is None else before.chain_size),
            created_at=now,
            expires_at=expires_at,
            beat_at=now if one.status in RUNNING else None,
        )
        self._make_room(owner, size)
        ids = []
        while before is not None:
            ids.append(before.id)
            before = before.previous
        with Session(self._writes) as session, session.begin():
            session.add(row)
            if ids:
                session.execute(update(ResponseRow).where(ResponseRow.id.in_(ids)).values(expires_at=expires_at))

    def find(self, owner: str, response_id: str) -> StoredResponse:
        """One of this owner's. Raises NotFound."""
        with Session(self._reads) as session:
            row = session.scalar(select(ResponseRow).where(*self._is(owner, response_id)))
            if row is None:
                raise _missing(response_id)
            return self._stored(row, None)

    def chain(self, owner: str, response_id: str) -> StoredResponse:
        """The same with all that it continues. Raises NotFound, also where one of those is gone."""
        with Session(self._reads) as session:
            found = select(ResponseRow.id, ResponseRow.previous).where(*self._is(owner, response_id)).cte(recursive=True)
            found = found.union_all(
                select(ResponseRow.id, ResponseRow.previous)
                .join(found, ResponseRow.id == found.c.previous)
                .where(ResponseRow.owner == owner, ResponseRow.expires_at > self._now())
            )
            rows = list(
                session.scalars(select(ResponseRow).join(found, ResponseRow.id == found.c.id).order_by(ResponseRow.depth))
            )
            if not rows:
                raise _missing(response_id)
            if len(rows) != rows[-1].depth + 1:
                raise NotFound(
                    f"response '{response_id}' continues one that is no longer kept; send its items as input instead"
                )
            one = None
            for row in rows:
                one = self._stored(row, one)
            assert one is not None
            return one

    def delete(self, owner: str, response_id: str) -> None:
        """Keep it no longer; who writes it stops. Raises NotFound."""
        with Session(self._writes) as session, session.begin():
            if not _changed(session, delete(ResponseRow).where(*self._is(owner, response_id))):
                raise _missing(response_id)

    def cancel(self, owner: str, response_id: str) -> StoredResponse:
        """Have it written no further; one that ended stays as it is. Raises NotFound."""
        with Session(self._writes) as session, session.begin():
            running = ResponseRow.status.in_(RUNNING), ResponseRow.beat_at > self._stale
            values = {"status": CANCELLED, "beat_at": None}
            session.execute(update(ResponseRow).where(*self._is(owner, response_id), *running).values(values))
        return self.find(owner, response_id)

    def beat(self, ids: Collection[str]) -> set[str]:
        """Say that these are being written; those that are to be written no further."""
        with Session(self._writes) as session, session.begin():
            wanted = ResponseRow.id.in_(ids), ResponseRow.status.in_(RUNNING)
            session.execute(update(ResponseRow).where(*wanted).values(status=IN_PROGRESS, beat_at=self._now()))
            return set(ids) - set(session.scalars(select(ResponseRow.id).where(*wanted)))

    def finish(self, response_id: str, body: Mapping[str, Any]) -> bool:
        """Keep what was written; False where nobody wants it any more."""
        data = orjson.dumps(body)
        with Session(self._writes) as session, session.begin():
            wanted = ResponseRow.id == response_id, ResponseRow.status.in_(RUNNING)
            row = session.scalar(select(ResponseRow).where(*wanted).with_for_update())
            if row is None:
                return False
            grown = len(data) - len(row.body.encode())
            row.body, row.status, row.beat_at = data.decode(), body["status"], None
            row.size, row.chain_size = row.size + grown, row.chain_size + grown
            return True

    def tidy(self) -> None:
        """Remove what was kept long enough, and give up on what nobody writes any more."""
        with Session(self._writes) as session, session.begin():
            session.execute(delete(ResponseRow).where(ResponseRow.expires_at <= self._now()))
            gone = ResponseRow.beat_at <= self._stale, ResponseRow.status.in_(RUNNING)
            session.execute(update(ResponseRow).where(*gone).values(status=FAILED, beat_at=None))

    @property
    def _stale(self) -> datetime:
        return self._now() - timedelta(seconds=STALE_SECONDS)

    def _is(self, owner: str, response_id: str) -> tuple[Any, ...]:
        return ResponseRow.id == response_id, ResponseRow.owner == owner, ResponseRow.expires_at > self._now()

    def _make_room(self, owner: str, size: int) -> None:
        taken = select(func.coalesce(func.sum(ResponseRow.size), 0)).where(ResponseRow.owner == owner)
        with Session(self._reads) as session:
            over = session.scalar(taken) + size - self._most_bytes  # type: ignore[operator]  # a sum is a number
            if over <= 0:
                return
            over += int(self._most_bytes * (1 - ROOM))
            oldest = select(ResponseRow.id, ResponseRow.size).where(ResponseRow.owner == owner).order_by(ResponseRow.created_at)
            ids = []
            for one_id, one_size in session.execute(oldest):
                ids.append(one_id)
                over -= one_size
                if over <= 0:
                    break
        with Session(self._writes) as session, session.begin():
            for at in range(0, len(ids), 1_000):  # a statement takes so many parameters and more
                session.execute(delete(ResponseRow).where(ResponseRow.id.in_(ids[at : at + 1_000])))

    def _stored(self, row: ResponseRow, previous: StoredResponse | None) -> StoredResponse:
        body = orjson.loads(row.body)
        status = row.status
        if status in RUNNING and row.beat_at is not None and row.beat_at <= self._stale:
            status = FAILED
        body["status"] = status
        if status == FAILED and body["error"] is None:
            body["error"] = ENDED
        return StoredResponse(row.id, body, orjson.loads(row.items), previous, row.depth, row.chain_size)


def check_room(before: StoredResponse | None, size: int) -> None:
    """Raise InvalidField where a conversation would have too many answers, or take too much."""
    if before is None:
        return
    if before.depth + 1 >= MOST_LINKS:
        raise InvalidField(
            f"this conversation has {MOST_LINKS:,} responses, which is the most; begin another", "previous_response_id"
        )
    if before.chain_size + size > LARGEST_CHAIN:
        raise InvalidField(
            f"this conversation would take more than {LARGEST_CHAIN:,} bytes, the most that is kept of one; begin another",
            "previous_response_id",
        )


def _missing(response_id: str) -> NotFound:
    return NotFound(f"no response '{response_id[:80]}' of this key; it was never stored, was deleted, or kept long enough")


def _changed(session: Session, statement: Any) -> int:
    """How many rows it changed."""
    return int(session.execute(statement).rowcount)  # type: ignore[attr-defined]  # of a change the result has it
