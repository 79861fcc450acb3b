"""Streams written past the framework: the same bytes as by way of ASGI, whoever reads slowly, leaves or is late."""

from __future__ import annotations

import json
import re
import time
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import Future
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.api.conftest import Running, wait_for
from tests.api.test_sockets import head, raw

from maasdam.accounts.prices import Prices
from maasdam.api.connection import Connection
from maasdam.core import Admitted, Constraint, Cost, Tokens
from maasdam.errors import StorageFailure

CHAT, COMPLETION, GENERATE = "/v1/chat/completions", "/v1/completions", "/v2/models/text/generate_stream"
OWN = re.compile(rb"[0-9a-f]{32}|(?<=\"created\":)[0-9]+|(?<=seconds\":)[0-9.e-]+|(?<=joules\":)[0-9.e-]+")
"""What differs from answer to answer."""


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """`is_direct`: whether pieces may go past the framework; `direct`: how many did."""
    told: dict[str, Any] = {"is_direct": True, "direct": 0}
    real = Connection.write_piece

    def noted(self: Connection, piece: bytes) -> bool:
        wrote = told["is_direct"] and real(self, piece)
        told["direct"] += bool(wrote)
        return bool(wrote)

    monkeypatch.setattr(Connection, "write_piece", noted)
    yield told


def events_of(service: Running, path: str, body: dict[str, Any]) -> tuple[int, dict[bytes, bytes], list[bytes]]:
    """Status, headers and events; of an answer that is none, its body."""
    sent = json.dumps(body).encode()
    lines = (f"Content-Length: {len(sent)}", "Content-Type: application/json", "Connection: close")
    with raw(service, head(service, path, *lines) + sent) as it:
        data = b"".join(iter(lambda: it.recv(65536), b""))
    top, _, rest = data.partition(b"\r\n\r\n")
    headers = dict(line.lower().split(b": ", 1) for line in top.split(b"\r\n")[1:])
    if headers.get(b"transfer-encoding") == b"chunked":
        whole = b""
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            whole, rest = whole + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
            if size == b"0":
                assert rest == b""
        rest = whole
    return int(top.split()[1]), headers, [OWN.sub(b"1", event) for event in rest.split(b"\n\n")]


def both_ways(service: Running, ways: dict[str, Any], path: str, body: dict[str, Any]) -> tuple[int, list[bytes]]:
    answers = []
    for is_direct in (True, False):
        ways["is_direct"] = is_direct
        status, headers, events = events_of(service, path, body)
        for name in (b"x-request-id", b"date", b"content-length"):
            headers.pop(name, None)
        answers.append((status, headers, events))
    assert answers[0] == answers[1]
    return answers[0][0], answers[0][2]


def texts_of(events: list[bytes]) -> list[str]:
    """What each event with text says."""
    told = [json.loads(event.removeprefix(b"data: ")) for event in events if event not in (b"", b"data: [DONE]")]
    choices = [one["choices"][0] if "choices" in one else {"text": one["text_output"]} for one in told]
    return [one["text"] if "text" in one else one["delta"]["content"] for one in choices]


@pytest.mark.parametrize("path", [CHAT, COMPLETION, GENERATE])
def test_either_way_writes_the_same_events(fake_service: Running, ways: dict[str, Any], path: str) -> None:
    body: dict[str, Any] = {"model": "text", "max_tokens": 6, "stream": True}
    asked = {CHAT: {"messages": [{"role": "user", "content": "a"}]}, COMPLETION: {"prompt": "a"}}.get(path)
    if asked is None:
        body = {"text_input": "a", "max_tokens": 6}
    status, events = both_ways(fake_service, ways, path, body | (asked or {}))
    assert status == 200 and ways["direct"] >= 3
    assert texts_of(events) == list("abcdef")
    assert (events[-2] == b"data: [DONE]") is (path != GENERATE)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_either_way_writes_the_same_of_anything(fake_service: Running, ways: dict[str, Any], data: st.DataObject) -> None:
    path = data.draw(st.sampled_from([CHAT, COMPLETION]))
    maybe = st.sampled_from([None, 0, 1, 2, 7, 40, -1, "x"])
    body: dict[str, Any] = {"model": data.draw(st.sampled_from(["text", "text", "text:1", "ghost", "doubles"])), "stream": True}
    text = data.draw(st.one_of(st.text(max_size=8), st.just("x" * 70), st.just("a"), st.just("a")))
    body |= {"messages": [{"role": "user", "content": text}]} if path == CHAT else {"prompt": text}
    optional: dict[str, Any] = {
        "max_tokens": maybe,
        "stop": st.sampled_from([None, "c", ["d", "b"], [], "zzz", 1]),
        "temperature": st.sampled_from([0, 1, 3, -1]),
        "return_token_ids": st.booleans(),
        "stream_options": st.sampled_from([None, {"include_usage": True}, {"include_usage": False}, {}]),
    }
    for name in data.draw(st.sets(st.sampled_from(sorted(optional)))):
        body[name] = data.draw(optional[name])
    both_ways(fake_service, ways, path, body)


def test_an_engine_that_breaks_midway_is_an_event_and_one_row(own_service: Running, ways: dict[str, Any]) -> None:
    own_service.engines["text"].fails_after = 3
    status, events = both_ways(own_service, ways, COMPLETION, {"model": "text", "prompt": "a", "stream": True})
    assert status == 200 and b'"error"' in events[-2] and b"[DONE]" not in b"".join(events)
    row = own_service.newest_row()
    assert (row.status, row.completion_tokens) == (500, 3)
    own_service.engines["text"].fails_after = 0
    assert both_ways(own_service, ways, COMPLETION, {"model": "text", "prompt": "a", "stream": True})[0] == 500


def test_a_last_event_whose_row_can_not_be_written_is_an_error(own_service: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(payload: bytes) -> None:
        raise StorageFailure("no space left")

    monkeypatch.setattr(own_service.service.outbox._rows, "append", full)
    _, _, events = events_of(own_service, COMPLETION, {"model": "text", "prompt": "a", "stream": True, "max_tokens": 3})
    assert b'"error"' in events[-2] and b"[DONE]" not in b"".join(events) and len(events) == 4


def _asked(service: Running, **more: Any) -> bytes:
    body = json.dumps({"model": "text", "prompt": "a", "stream": True} | more).encode()
    return head(service, COMPLETION, f"Content-Length: {len(body)}", "Content-Type: application/json") + body


def test_a_client_that_leaves_ends_the_generation(own_service: Running) -> None:
    engine = own_service.engines["text"]
    engine.delay = 0.02
    before = len(engine.cancelled)
    it = raw(own_service, _asked(own_service, max_tokens=60))
    assert b"200" in it.recv(100)
    wait_for(lambda: engine.given > 4)
    it.close()
    wait_for(lambda: len(engine.cancelled) == before + 1)
    wait_for(lambda: own_service.newest_row() is not None and own_service.newest_row().status == 499)
    assert 0 < own_service.newest_row().completion_tokens < 60


def test_a_first_piece_that_is_late_is_a_504(own_service: Running) -> None:
    own_service.engines["text"].delay = 30
    began = time.monotonic()
    status, headers, _ = events_of(own_service, COMPLETION, {"model": "text", "prompt": "a", "stream": True})
    assert status == 504 and time.monotonic() - began < 20
    (row,) = own_service.rows(headers[b"x-request-id"].decode())
    assert (row.status, row.error_code) == (504, "deadline_exceeded")


def test_who_reads_late_gets_all_of_it_in_order(own_service: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the client is behind, pieces are held and go by way of ASGI, which waits; then past it again."""
    behind: list[bool] = []
    real = Connection.write_piece

    def paused(self: Connection, piece: bytes) -> bool:
        behind.append(len(behind) % 5 in (1, 2, 3))
        if behind[-1]:
            return False
        return real(self, piece)

    monkeypatch.setattr(Connection, "write_piece", paused)
    own_service.engines["text"].delay = 0.001
    _, _, events = events_of(own_service, COMPLETION, {"model": "text", "prompt": "a", "stream": True, "max_tokens": 26})
    assert texts_of(events) == list("abcdefghijklmnopqrstuvwxyz") and any(behind)


def test_an_answer_that_is_not_of_the_form_asked_for_is_an_error_and_not_billed(
    fake_service: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that promises to hold to a form, and writes something else."""

    async def lies(request: Any) -> AsyncGenerator[Tokens]:
        yield Tokens((97,))
        yield Tokens((98,), finish_reason="stop", cost=Cost(0.001, None, "fake"))

    def admits(constraint: Constraint) -> Future[Admitted]:
        answer: Future[Admitted] = Future()
        answer.set_result(Admitted("", 0))
        return answer

    engine = fake_service.engines["text"]
    monkeypatch.setattr(engine, "submit", lies)
    monkeypatch.setattr(engine, "admit", admits, raising=False)
    monkeypatch.setattr("maasdam.operations.deployments.HOLD_FORMS", {"fake"})
    monkeypatch.setattr(fake_service.service.outbox, "_prices", Prices({"*": {"currency": "EUR", "completion_tokens": 1.0}}))
    body = {"model": "text", "prompt": "x", "guided_choice": ["ab", "x"]}
    status, _, _ = events_of(fake_service, COMPLETION, body)
    assert status == 200, "it is one of the choices"
    body["guided_choice"] = ["xyz"]
    status, _, (answer,) = events_of(fake_service, COMPLETION, body)
    assert status == 500 and b"ab" not in answer
    row = fake_service.newest_row()
    assert row is not None and (row.status, row.error_code, row.price) == (500, "engine_failure", None)
    status, _, events = events_of(fake_service, COMPLETION, body | {"stream": True})
    assert status == 200 and b'"error"' in events[-2] and not any(b'"stop"' in event for event in events), events
    row = fake_service.newest_row()
    assert row is not None and (row.status, row.error_code, row.price) == (500, "engine_failure", None)
