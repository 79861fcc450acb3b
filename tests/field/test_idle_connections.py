"""A connection on which nothing is asked: it has a clock, and holds nothing of what was."""

from __future__ import annotations

import asyncio
import json
from typing import Any, cast

import httpx
import pytest
import uvicorn
from tests.api.conftest import Running, client, fake_service, wait_for  # noqa: F401  fixtures
from tests.api.test_at_once import PATH, Wire
from uvicorn.server import ServerState

from maasdam.api.connection import Connection, Exchange, HttpConnection
from maasdam.api.entrance import Entrance
from maasdam.core import names
from maasdam.telemetry.requests import LONGEST, Ended, RequestLines, _alike

POST = f"POST {PATH} HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc".encode()


class Closing(Wire):
    """A transport that knows whether it was closed."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = asyncio.Event()

    def close(self) -> None:
        self.closed.set()

    def is_closing(self) -> bool:
        return self.closed.is_set()


async def connected(answer: Any = None) -> Any:
    """A connection that answers everything with 204, but what `answer` takes; it may be idle for 0.2 s."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    config = uvicorn.Config(app, log_config=None, access_log=False)
    config.load()
    config.timeout_keep_alive = cast(int, 0.2)
    made = HttpConnection(config=config, server_state=ServerState(), app_state={}, at_once=answer)
    made.connection_made(Closing())
    return made


def at_once(exchange: Exchange) -> bool:
    exchange.answer(200, b"content-length: 0\r\n", b"")
    return True


@pytest.mark.parametrize("answer", [None, at_once], ids=["the long way", "at once"])
@pytest.mark.parametrize("after", [[], [b"\r\n"], [b"\r\n"] * 5])
async def test_empty_lines_keep_no_connection_open(answer: Any, after: list[bytes]) -> None:
    it = await connected(answer)
    it.data_received(POST)
    await asyncio.sleep(0.05)
    for piece in after:
        it.data_received(piece)
    async with asyncio.timeout(5):
        await it.transport.closed.wait()
    it.connection_lost(None)


async def test_the_rest_of_a_body_that_nobody_reads_keeps_none_open_either() -> None:
    it = await connected()
    it.data_received(b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n")
    async with asyncio.timeout(5):
        while not it.transport.is_closing():
            it.data_received(b"x")
            await asyncio.sleep(0.05)
    it.connection_lost(None)


async def test_a_request_that_came_late_is_not_cut_off_by_the_clock_for_idle_ones() -> None:
    it = await connected()
    it.data_received(POST + POST[:30])
    await asyncio.sleep(0.5)
    assert not it.transport.is_closing(), "its headers have a clock of their own"
    it.data_received(POST[30:])
    await asyncio.sleep(0.05)
    assert len([data for data in it.transport.written if data.startswith(b"HTTP/1.1 204")]) == 2
    it.connection_lost(None)


async def test_what_was_answered_at_once_is_not_held() -> None:
    taken: list[Exchange] = []
    it = await connected(lambda exchange: bool(taken.append(exchange)) or True)
    it.data_received(POST)
    assert taken[0].body == b"abc"
    at_once(taken[0])
    assert taken[0].body == b""
    it.connection_lost(None)


def test_what_was_answered_by_the_framework_is_not_held_either(
    fake_service: Running, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    scopes: list[Any] = []
    real = Entrance.__call__

    async def noted(self: Entrance, scope: Any, receive: Any, send: Any) -> None:
        await real(self, scope, receive, send)
        scopes.append(scope)

    monkeypatch.setattr(Entrance, "__call__", noted)
    for path, more, status in (("completions", {"prompt": "a"}, 200), ("chat/completions", {"messages": 1}, 400)):
        assert client.post(f"/v1/{path}", json={"model": "text", "max_tokens": 1} | more).status_code == status
    wait_for(lambda: len(scopes) == 2)
    assert all(len(str(scope.get("path"))) > 5 and "maasdam.json" not in scope for scope in scopes)


async def test_an_empty_piece_does_not_end_an_answer() -> None:
    it = await connected()
    assert not Connection(it).write_piece(b"") and it.transport.written == []
    assert Connection(it).write_piece(b"a") and it.transport.written == [b"1\r\na\r\n"]
    it.connection_lost(None)


async def test_what_callers_write_is_not_kept_at_its_length(caplog: pytest.LogCaptureFixture) -> None:
    _alike.cache_clear()
    lines, long = RequestLines(), "/x" * 30_000
    with caplog.at_level("INFO", logger="maasdam.requests"):
        for n in range(3):  # alike in what is kept of them
            lines.add(Ended("r", None, "GET", f"{long}{n}", 401, 0.1, None, f"{long}{n}", None), 401, f"{long}{n}", None)
        lines.flush()
    assert _alike.cache_info().currsize == 1
    written = [json.loads(line) for line in caplog.records[-1].getMessage().splitlines()]
    assert {(one["route"], one["model"]) for one in written} == {(long[:LONGEST], long[:LONGEST])}


def test_a_long_name_is_split_and_not_kept() -> None:
    names._split.cache_clear()
    assert names.split_name("a" * 1000 + ":3") == ("a" * 1000, 3, None)
    assert names._split.cache_info().currsize == 0
    assert names.split_name("a:3") == names.split_name("a:3") == ("a", 3, None)
    assert names._split.cache_info().hits == 1
