"""The outbox: one group a tick, everyone told, nothing lost, and as many counts as rows."""

from __future__ import annotations

import asyncio
import logging
import threading
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.waiting import until

from maasdam.accounts.journal import Journal
from maasdam.accounts.ledger import COLUMNS, PendingRow, unpacked
from maasdam.accounts.outbox import Outbox
from maasdam.accounts.prices import Prices
from maasdam.core import Entry
from maasdam.errors import ServiceError, StorageFailure
from maasdam.telemetry.metrics import Metrics
from maasdam.telemetry.requests import Ended


def entry(request_id: str = "r1", **changes: Any) -> Entry:
    return replace(Entry(request_id, datetime.now(UTC), None, "anonymous", "digits", "/", 200, 0.01, version=1), **changes)


class Disk:
    """Groups in a list; fails, is slow or waits as it is told."""

    def __init__(self) -> None:
        self.groups: list[list[PendingRow]] = []
        self.is_slow = False
        self.is_full = False
        self.is_closed = False
        self.threads: list[str] = []
        self.begun, self.may_write = threading.Event(), threading.Event()
        self.may_write.set()

    def append(self, payload: bytes) -> None:
        self.begun.set()
        assert self.may_write.wait(10) and not self.is_closed
        self.threads.append(threading.current_thread().name)
        if self.is_full:
            raise StorageFailure("no space left")
        for row in unpacked(payload):
            assert len(row) == len(COLUMNS) + 1
        self.groups.append([PendingRow(Entry(**dict(zip(COLUMNS, row, strict=False))), row[-1]) for row in unpacked(payload)])

    def close(self) -> None:
        self.is_closed = True


def opened(prices: Prices | None = None) -> tuple[Outbox, Disk, Metrics]:
    disk, metrics = Disk(), Metrics()
    return Outbox(disk, metrics, prices or Prices({})), disk, metrics


async def told(outbox: Outbox, *entries: Entry) -> list[BaseException | None]:
    waiting = [asyncio.get_running_loop().create_future() for _ in entries]
    for each, future in zip(entries, waiting, strict=True):
        outbox.record(each, future.set_result)
    async with asyncio.timeout(10):
        return list(await asyncio.gather(*waiting))


def only(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def counted(metrics: Metrics, status: int) -> float:
    lines = [line for line in metrics.text().decode().splitlines() if line.startswith("maasdam_requests_total{")]
    return sum(float(line.split()[-1]) for line in lines if f'status="{status}"' in line)


async def test_a_tick_is_one_group_and_everyone_is_told_and_counted() -> None:
    outbox, disk, metrics = opened()
    assert await told(outbox, *(entry(f"r{n}") for n in range(50))) == [None] * 50
    assert [len(group) for group in disk.groups] == [50]
    assert counted(metrics, 200) == 50
    await told(outbox, entry("s", status=404))
    assert counted(metrics, 404) == 1


async def test_nobody_is_told_before_the_group_is_written() -> None:
    outbox, disk, metrics = opened()
    disk.is_slow = True
    disk.may_write.clear()
    errors: list[Any] = []
    outbox.record(entry("first"), errors.append)
    await until(disk.begun.is_set)
    more = asyncio.create_task(told(outbox, entry("second"), entry("third")))
    await until(lambda: len(outbox._queue) == 2)
    assert errors == [] and counted(metrics, 200) == 0
    disk.may_write.set()
    assert await more == [None, None]
    assert errors == [None] and [len(group) for group in disk.groups] == [1, 2], "what came meanwhile is the next group"
    assert all(name.startswith("journal") for name in disk.threads), "a slow disk does not hold the event loop up"


async def test_a_row_can_be_restated_until_it_is_being_written() -> None:
    outbox, disk, _ = opened()
    row = outbox.record(entry("r"), lambda error: None)
    assert outbox.restate(row, 504, "deadline_exceeded")
    await told(outbox, entry("s"))
    assert [(each.entry.status, each.entry.error_code) for each in disk.groups[0]] == [(504, "deadline_exceeded"), (200, None)]
    assert not outbox.restate(row, 500, "x")


async def test_a_full_disk_is_told_and_each_refusal_is_written_once_there_is_room() -> None:
    outbox, disk, metrics = opened(Prices({"digits": {"currency": "EUR", "requests": 2.0}}))
    disk.is_full = True
    errors = await told(outbox, entry("answered"), entry("wrong", status=400))
    assert all(isinstance(error, StorageFailure) for error in errors)
    assert counted(metrics, StorageFailure.http_status) == 2
    disk.is_full = False
    assert await told(outbox, entry("after")) == [None]
    rows = {row.entry.request_id: row for group in disk.groups for row in group}
    assert {name: (row.entry.status, row.entry.price, row.is_restated) for name, row in rows.items()} == {
        "answered": (StorageFailure.http_status, None, True),
        "wrong": (400, None, False),
        "after": (200, 2.0, False),
    }
    await told(outbox, entry("later"))
    assert sum(len(group) for group in disk.groups) == 4


async def test_what_can_not_be_written_down_is_told_too() -> None:
    outbox, _, _ = opened()
    (error,) = await told(outbox, entry(task=object()))
    assert isinstance(error, ServiceError)


async def test_closing_writes_what_is_queued_and_then_refuses() -> None:
    outbox, disk, _ = opened()
    errors: list[Any] = []
    for n in range(300):
        outbox.record(entry(f"r{n}"), errors.append)
    await asyncio.to_thread(outbox.close)
    assert sum(len(group) for group in disk.groups) == 300 and disk.is_closed
    await asyncio.sleep(0)  # they are told in the event loop
    assert errors == [None] * 300
    outbox.record(entry("late"), errors.append)
    assert isinstance(errors[-1], ServiceError)
    await asyncio.to_thread(outbox.close)


async def test_closing_waits_for_the_group_that_is_being_written(tmp_path: Path) -> None:
    outbox, disk, _ = opened()
    disk.is_slow = True
    disk.may_write.clear()
    errors: list[Any] = []
    outbox.record(entry("r"), errors.append)
    await until(disk.begun.is_set)
    closing = asyncio.create_task(asyncio.to_thread(outbox.close))
    await until(lambda: outbox._is_closed)
    assert not closing.done(), "its caller will end the process"
    disk.may_write.set()
    await closing
    assert [row.entry.request_id for group in disk.groups for row in group] == ["r"]


async def test_prices_apply_to_answers_and_not_to_failures() -> None:
    prices = Prices(
        {"digits": {"currency": "EUR", "requests": 0.25, "prompt_tokens": 0.5}, "*": {"currency": "USD", "items": 2}}
    )
    outbox, disk, _ = opened(prices)
    await told(outbox, entry("1", prompt_tokens=3), entry("2", status=500, prompt_tokens=3), entry("3", model="other", items=2))
    assert [(row.entry.price, row.entry.currency) for row in disk.groups[0]] == [(1.75, "EUR"), (None, None), (4.0, "USD")]


async def test_a_request_with_a_row_is_counted_as_its_row_and_one_without_as_it_ended(caplog: Any) -> None:
    outbox, _, metrics = opened()
    caplog.set_level(logging.INFO, "maasdam.requests")
    await told(outbox, entry("r"))
    assert outbox.has_row("r") and not outbox.has_row("s")
    outbox.ended(Ended("r", None, "POST", "/v2/infer", 200, 0.1, None, "wrong name", None))
    outbox.ended(Ended("s", None, "GET", "/x", 404, 0.1, None, None, "not_found"))
    outbox.flush()
    assert counted(metrics, 200) == 1 and counted(metrics, 404) == 1
    assert '"model":"digits","version":1' in caplog.text and '"reason":"not_found"' in caplog.text
    assert not outbox.has_row("r")


async def test_a_real_journal_has_it_when_the_caller_hears(tmp_path: Path) -> None:
    outbox = Outbox(Journal(tmp_path), Metrics(), Prices({}))
    seen: list[int] = []
    outbox.record(entry("r"), lambda error: seen.append(only(tmp_path).stat().st_size))
    await told(outbox, entry("s"))
    assert seen[0] > 100
    outbox.close()
