"""Every log line is one JSON object with the id of its request."""

from __future__ import annotations

import asyncio
import io
import json
import logging

import pytest
import structlog

from maasdam.telemetry.logs import configure


@pytest.fixture
def lines():
    stream = io.StringIO()
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    configure("info", stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    root.handlers = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def test_ours_and_the_libraries_lines_are_json_with_the_request(lines) -> None:
    with structlog.contextvars.bound_contextvars(request_id="r1"):
        structlog.get_logger("maasdam.test").info("answered", status=200)
        logging.getLogger("uvicorn.error").warning("slow %s", "client")
    logging.getLogger("other").error("outside")
    first, second, third = lines()
    assert (first["event"], first["status"], first["level"], first["request_id"]) == ("answered", 200, "info", "r1")
    assert (second["event"], second["logger"], second["request_id"]) == ("slow client", "uvicorn.error", "r1")
    assert "request_id" not in third and third["timestamp"].endswith("Z")


def test_a_traceback_is_one_line(lines) -> None:
    try:
        raise ValueError("over\ntwo lines")
    except ValueError:
        structlog.get_logger("maasdam.test").exception("broke")
    (line,) = lines()
    assert "ValueError: over\ntwo lines" in line["exception"]


def test_below_the_level_nothing_is_written(lines) -> None:
    structlog.get_logger("maasdam.test").debug("whisper")
    logging.getLogger("any").debug("whisper")
    assert lines() == []


async def test_requests_at_once_keep_their_own_ids(lines) -> None:
    async def answer(name: str) -> None:
        with structlog.contextvars.bound_contextvars(request_id=name):
            await asyncio.sleep(0)
            structlog.get_logger("maasdam.test").info(name)

    await asyncio.gather(*(answer(f"r{n}") for n in range(5)))
    assert all(line["event"] == line["request_id"] for line in lines()) and len(lines()) == 5


def test_what_a_caller_wrote_cannot_forge_a_line(lines) -> None:
    structlog.get_logger("maasdam.test").info("asked", model='x"}\n{"event": "forged"}')
    assert [line["event"] for line in lines()] == ["asked"]
