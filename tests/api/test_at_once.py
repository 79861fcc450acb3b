"""Tensor requests answered inside the connection: the same answers as the long way gives, and nothing left behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.api.conftest import Running, wait_for
from tests.api.test_sockets import TENSOR, head, raw
from uvicorn.server import ServerState

from maasdam.accounts import keys
from maasdam.api import oip_json
from maasdam.api.connection import HttpConnection
from maasdam.api.entrance import Entrance
from maasdam.api.oip_at_once import AtOnce
from maasdam.errors import StorageFailure

PATH = "/v2/models/doubles/infer"
OWN = {b"x-request-id", b"maasdam-request-id", b"date", b"maasdam-compute-seconds", b"maasdam-joules", b"maasdam-energy-method"}
OWN |= {b"traceresponse"}
"""Headers that differ from answer to answer."""


SMALLEST = b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1,2]}]}'


class Reader:
    """Answers from one connection, one after the other."""

    def __init__(self, it: socket.socket) -> None:
        self.it, self.rest = it, b""

    def next(self) -> tuple[int, dict[bytes, bytes], bytes]:
        while b"\r\n\r\n" not in self.rest:
            piece = self.it.recv(65536)
            assert piece, "the connection ended"
            self.rest += piece
        top, _, self.rest = self.rest.partition(b"\r\n\r\n")
        first, *lines = top.split(b"\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(b": ") for line in lines)}
        size = int(headers[b"content-length"])
        while len(self.rest) < size:
            self.rest += self.it.recv(65536)
        body, self.rest = self.rest[:size], self.rest[size:]
        return int(first.split()[1]), headers, body


@pytest.fixture
def long_ways(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The paths of requests that went the long way."""
    paths: list[str] = []
    real = Entrance.__call__

    async def noted(self: Entrance, scope: Any, receive: Any, send: Any) -> None:
        paths.append(scope["path"])
        await real(self, scope, receive, send)

    monkeypatch.setattr(Entrance, "__call__", noted)
    monkeypatch.setattr(keys, "SEEN_SECONDS", 60.0)
    yield paths


def known(service: Running) -> None:
    """Let the key be one that was checked a moment ago."""
    service.records.keys._seen.clear()
    with service.client(service.key) as client:
        assert client.get("/v1/models").status_code == 200


def request(service: Running, body: bytes, *lines: str, path: str = PATH, is_chunked: bool = False) -> bytes:
    if is_chunked:  # which is never answered at once
        framed = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
        return head(service, path, "Transfer-Encoding: chunked", *lines) + framed
    return head(service, path, f"Content-Length: {len(body)}", *lines) + body


def both_ways(service: Running, body: bytes, *lines: str, path: str = PATH) -> tuple[int, bytes]:
    """The answer, which is the same whichever way the request went: with a head that is new, with one that was answered with
    another body before, through the framework."""
    known(service)
    answers = []
    for way in ("new", "known", "long"):
        with contextlib.ExitStack() as stack:
            it = stack.enter_context(raw(service))
            reader = Reader(it)
            if way == "known" and len(body) >= len(SMALLEST):
                it.sendall(request(service, SMALLEST.ljust(len(body)), *lines, path=path))
                if reader.next()[0] != 200:  # such a head is not kept, and the connection may be closed
                    it = stack.enter_context(raw(service))
                    reader = Reader(it)
            it.sendall(request(service, body, *lines, path=path, is_chunked=way == "long"))
            status, headers, data = reader.next()
        answers.append((status, data, {name: headers[name] for name in headers if name not in OWN}))
        own = headers.get(b"maasdam-request-id", headers[b"x-request-id"])
        assert len(own) == 32 and headers.get(b"traceresponse", own[-16:])[-19:].startswith(own[-16:])
        answers[-1] = (status, data.replace(own, b"ID"), answers[-1][2])
    assert answers[0] == answers[1] == answers[2]
    return answers[0][0], answers[0][1]


def test_what_is_whole_and_right_takes_no_long_way(fake_service: Running, long_ways: list[str]) -> None:
    known(fake_service)
    long_ways.clear()
    with raw(fake_service) as it:
        reader = Reader(it)
        for number in range(20):
            body = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [number, 1]}]}
            it.sendall(request(fake_service, json.dumps(body).encode(), "Content-Type: application/json"))
            status, _, data = reader.next()
            assert status == 200 and json.loads(data)["outputs"][0]["data"] == [2 * number, 2]
    assert long_ways == []


BINARY = json.dumps(
    {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}]}
).encode()
BODIES: list[tuple[bytes, tuple[str, ...], int]] = [
    (json.dumps(TENSOR).encode(), (), 200),
    (json.dumps(TENSOR | {"id": "mine", "outputs": [{"name": "y"}]}).encode(), (), 200),
    (json.dumps(TENSOR | {"outputs": [{"name": "y", "parameters": {"binary_data": True}}]}).encode(), (), 200),
    (BINARY + np.float32([1, 2]).tobytes(), (f"Inference-Header-Content-Length: {len(BINARY)}",), 200),
    (json.dumps(TENSOR).encode(), ("X-Request-Id: abc-123", "traceparent: 00-" + "a" * 32 + "-" + "b" * 16 + "-01"), 200),
    (json.dumps(TENSOR).encode(), ("Accept-Encoding: gzip",), 200),
    (json.dumps(TENSOR | {"outputs": [{"name": "none"}]}).encode(), (), 400),
    (json.dumps(TENSOR | {"parameters": {"mood": 1}}).encode(), (), 400),
    (json.dumps({"inputs": []}).encode(), (), 400),
    (b"{", (), 400),
    (b"", (), 400),
    (b"[" * 2000, (), 400),
    (json.dumps(TENSOR).encode(), ("Content-Encoding: br",), 415),
    (json.dumps(TENSOR).encode(), ("Inference-Header-Content-Length: 99999",), 400),
]


@pytest.mark.parametrize(("body", "lines", "status"), BODIES)
def test_either_way_gives_the_same_answer(fake_service: Running, body: bytes, lines: tuple[str, ...], status: int) -> None:
    assert both_ways(fake_service, body, *lines)[0] == status


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v2/models/doubles/versions/1/infer", 200),
        ("/v2/models/doubles/versions/9/infer", 404),
        ("/v2/models/doubles/versions/x/infer", 404),
        ("/v2/models/ghost/infer", 404),
        ("/v2/models/doubl%65s/infer", 200),
        ("/v2/models/doubles/infer?a=1", 400),
        ("/v2/models/doubles//infer", 404),
        ("/v1/models/infer", 405),
    ],
)
def test_either_way_finds_the_same_model(fake_service: Running, path: str, status: int) -> None:
    assert both_ways(fake_service, json.dumps(TENSOR).encode(), path=path)[0] == status


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_either_way_gives_the_same_answer_to_anything(fake_service: Running, data: st.DataObject) -> None:
    whole = json.dumps(TENSOR).encode()
    kind = data.draw(st.sampled_from(["cut", "changed", "made up"]))
    if kind == "cut":
        body = whole[: data.draw(st.integers(0, len(whole)))]
    elif kind == "changed":
        at = data.draw(st.integers(0, len(whole) - 1))
        body = whole[:at] + data.draw(st.binary(max_size=3)) + whole[at + 1 :]
    else:
        values = st.one_of(st.floats(), st.integers(-(2**70), 2**70), st.text(max_size=3), st.none(), st.booleans())
        shape = data.draw(st.lists(st.integers(-1, 3), max_size=3))
        tensor = {"name": "x", "shape": shape, "datatype": data.draw(st.sampled_from(["FP32", "INT64", "BYTES", "BF16", "X"]))}
        body = json.dumps({"inputs": [tensor | {"data": data.draw(st.lists(values, max_size=4))}]}).encode()
    both_ways(fake_service, body)


def test_requests_in_one_piece_are_answered_in_order(fake_service: Running) -> None:
    known(fake_service)
    ask = [{"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [n, n]}]} for n in range(6)]
    pieces = [request(fake_service, json.dumps(one).encode()) for one in ask]
    with raw(fake_service, b"".join([*pieces[:3], head(fake_service, "/v2/health/live", method="GET"), *pieces[3:]])) as it:
        reader = Reader(it)
        answers = [reader.next() for _ in range(7)]
    assert [status for status, _, _ in answers] == [200] * 7
    assert [json.loads(body)["outputs"][0]["data"] for _, _, body in answers if b"outputs" in body] == [
        [2 * n, 2 * n] for n in range(6)
    ]
    assert b"live" in answers[3][2]


def test_a_client_that_goes_away_is_one_row_499_and_holds_nothing(own_service: Running, long_ways: list[str]) -> None:
    engine = own_service.engines["doubles"]
    engine.gate.clear()
    known(own_service)
    long_ways.clear()
    it = raw(own_service, request(own_service, json.dumps(TENSOR).encode()))
    (group,) = (group for group in own_service.service.router.groups() if group.version.model == "doubles")
    wait_for(lambda: sum(replica.in_flight for replica in group.replicas) == 1)
    it.close()
    wait_for(lambda: sum(replica.in_flight for replica in group.replicas) == 0)
    engine.gate.set()
    wait_for(lambda: own_service.newest_row() is not None and own_service.newest_row().status == 499)
    assert long_ways == []


def test_a_late_answer_is_a_504_and_its_row_says_so(own_service: Running, long_ways: list[str]) -> None:
    own_service.engines["doubles"].gate.clear()
    known(own_service)
    long_ways.clear()
    body = json.dumps(TENSOR | {"parameters": {"timeout": 200_000}}).encode()
    with raw(own_service, request(own_service, body)) as it:
        status, headers, data = Reader(it).next()
    own_service.engines["doubles"].gate.set()
    (row,) = own_service.rows(headers[b"x-request-id"].decode())
    assert (status, row.status, row.error_code) == (504, 504, "deadline_exceeded") and b"time limit" in data
    assert long_ways == []


def test_an_engine_that_fails_is_the_error_of_the_long_way(own_service: Running, long_ways: list[str]) -> None:
    own_service.engines["doubles"].fails = lambda batch: True
    status, body = both_ways(own_service, json.dumps(TENSOR).encode())
    assert status == 500 and b"log has the reason" in body
    assert long_ways.count(PATH) == 1 and own_service.newest_row().status == 500


def test_a_head_that_was_answered_is_read_once(fake_service: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    known(fake_service)
    read: list[bytes] = []
    real = HttpConnection.on_headers_complete

    def noted(self: HttpConnection) -> None:
        read.append(self.url)
        real(self)

    monkeypatch.setattr(HttpConnection, "on_headers_complete", noted)
    bodies = [json.dumps(TENSOR | {"id": f"{n:03}"}).encode() for n in range(5)]
    mine = ("Content-Type: application/json", "Accept-Language: tlh")  # a head that nobody else sends
    with raw(fake_service) as it, raw(fake_service) as other:
        reader, others = Reader(it), Reader(other)
        for n, body in enumerate(bodies):
            to, of = (other, others) if n % 2 else (it, reader)
            to.sendall(request(fake_service, body, *mine))
            assert json.loads(of.next()[2])["id"] == f"{n:03}"
        assert len(read) == 1
        it.sendall(request(fake_service, bodies[0] + b" ", *mine))  # another length
        assert reader.next()[0] == 200 and len(read) == 2
        it.sendall(head(fake_service, "/v2/health/live", method="GET"))
        assert b"live" in reader.next()[2]
        for path in ("/v1/embeddings", "/v2/models/doubles/versions/9/infer") * 2:  # is not taken for what was before it
            it.sendall(request(fake_service, bodies[0], *mine))
            assert reader.next()[0] == 200
            it.sendall(request(fake_service, bodies[0], *mine, path=path))
            assert reader.next()[0] in (400, 404)
        whole = request(fake_service, bodies[1], *mine)
        it.sendall(whole[:60])  # in pieces
        time.sleep(0.05)
        it.sendall(whole[60:] + request(fake_service, bodies[2], *mine))
        assert [json.loads(reader.next()[2])["id"] for _ in range(2)] == ["001", "002"]
        it.sendall(request(fake_service, bodies[3], *mine) + request(fake_service, bodies[4], *mine))
        assert [json.loads(reader.next()[2])["id"] for _ in range(2)] == ["003", "004"]
        it.sendall(request(fake_service, bodies[0], *mine))
        assert json.loads(reader.next()[2])["id"] == "000"


def test_heads_that_no_other_request_will_have_are_not_kept(fake_service: Running) -> None:
    known(fake_service)
    body = json.dumps(TENSOR).encode()
    kept = fake_service.heads
    before = len(kept)
    with raw(fake_service) as it:
        reader = Reader(it)
        for line in ("X-Request-Id: once-1", "traceparent: 00-" + "a" * 32 + "-" + "b" * 16 + "-01", "Accept: " + "a" * 3000):
            it.sendall(request(fake_service, body, line))
            assert reader.next()[0] == 200
        assert len(kept) == before
        it.sendall(request(fake_service, body, "Accept: b/b"))
        assert reader.next()[0] == 200
    assert len(kept) == before + 1


def test_what_breaks_before_the_model_has_it_is_the_error_of_the_long_way(
    own_service: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("a fault of ours")

    monkeypatch.setattr(oip_json, "decode", broken)
    assert both_ways(own_service, json.dumps(TENSOR).encode())[0] == 500


def test_an_answer_whose_row_can_not_be_written_is_not_given(own_service: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    known(own_service)

    def full(payload: bytes) -> None:
        raise StorageFailure("no space left")

    monkeypatch.setattr(own_service.service.outbox._rows, "append", full)
    with raw(own_service, request(own_service, json.dumps(TENSOR).encode())) as it:
        status, headers, data = Reader(it).next()
    assert status == StorageFailure.http_status and b"outputs" not in data
    monkeypatch.undo()
    with own_service.client() as client:
        assert client.post(PATH, json=TENSOR).status_code == 200
    (row,) = own_service.rows(headers[b"x-request-id"].decode())
    assert (row.status, row.price) == (StorageFailure.http_status, None)


def test_a_revoked_key_is_refused_within_a_second(own_service: Running) -> None:
    key = next(key for key in own_service.records.keys.list() if key.name == "tests")
    body = json.dumps(TENSOR).encode()
    with raw(own_service) as it:
        reader = Reader(it)
        it.sendall(request(own_service, body))
        assert reader.next()[0] == 200
        own_service.records.keys.revoke(key.id)
        revoked_at = time.monotonic()
        while (status := _asked(it, reader, request(own_service, body))) == 200:
            assert time.monotonic() < revoked_at + 5
    assert status == 401 and time.monotonic() < revoked_at + 5


def _asked(it: socket.socket, reader: Reader, data: bytes) -> int:
    it.sendall(data)
    return reader.next()[0]


def test_what_was_answered_is_freed_without_the_collector(own_service: Running, long_ways: list[str]) -> None:
    known(own_service)
    body = json.dumps(TENSOR).encode()
    kept: list[str] = []
    with raw(own_service) as it:
        reader = Reader(it)
        assert _asked(it, reader, request(own_service, body)) == 200
        own_service.engines["doubles"].fails = lambda batch: bool((batch["x"] > 100).any())
        wrong = json.dumps({"inputs": [TENSOR["inputs"][0] | {"data": [200, 1]}]}).encode()
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            for n in range(8):
                assert _asked(it, reader, request(own_service, wrong if n % 4 == 3 else body)) == (500 if n % 4 == 3 else 200)
            gc.collect()
            kept = [type(one).__name__ for one in gc.garbage]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
    assert not {"_One", "_Answering", "Request", "Entry", "Exchange", "Item", "Queued", "OipCall"} & set(kept)


def test_bodies_of_what_is_in_flight_are_counted(
    own_service: Running, long_ways: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    known(own_service)
    asked: list[AtOnce] = []
    real, body, gate = AtOnce.__call__, json.dumps(TENSOR).encode(), own_service.engines["doubles"].gate
    monkeypatch.setattr(AtOnce, "__call__", lambda self, exchange: asked.append(self) or real(self, exchange))
    gate.clear()
    with raw(own_service, request(own_service, body)) as it, raw(own_service, request(own_service, body)) as gone:
        wait_for(lambda: asked and asked[0].limits.held == 2 * len(body))
        gone.close()
        wait_for(lambda: asked[0].limits.held == len(body))
        long_ways.clear()
        monkeypatch.setattr(asked[0].limits, "held_bytes", 0)
        with raw(own_service, request(own_service, body)) as another:
            assert Reader(another).next()[0] == 503
        assert long_ways == [PATH], "which says why"
        gate.set()
        assert Reader(it).next()[0] == 200
    wait_for(lambda: asked[0].limits.held == 0)


def test_a_key_in_use_is_looked_up_by_one_and_in_time(own_service: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    real = own_service.records.keys.check
    monkeypatch.setattr(
        own_service.records.keys, "check", lambda secret: asked.append(secret) or time.sleep(0.05) or real(secret)
    )
    lines = json.dumps(TENSOR).encode()
    with contextlib.ExitStack() as stack:
        readers = [Reader(stack.enter_context(raw(own_service, request(own_service, lines)))) for _ in range(8)]
        assert [reader.next()[0] for reader in readers] == [200] * 8
        assert len(asked) == 1
        wait_for(lambda: own_service.records.keys.is_due(own_service.key))
        for reader in readers:
            assert _asked(reader.it, reader, request(own_service, lines)) == 200
        wait_for(lambda: not own_service.records.keys.is_due(own_service.key))
        assert len(asked) == 2


def test_without_keys_only_this_machine_is_answered(open_to_all: Running) -> None:
    body = json.dumps(TENSOR).encode()
    lines = (f"Content-Length: {len(body)}",)
    for host, status in (("localhost", 200), ("evil.example", 403)):
        with raw(
            open_to_all, head(open_to_all, PATH, *lines).replace(b"Host: localhost", f"Host: {host}".encode()) + body
        ) as it:
            assert Reader(it).next()[0] == status


class Wire:
    """A transport that goes nowhere."""

    def __init__(self) -> None:
        self.written: list[bytes] = []

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 1) if name in ("peername", "sockname") else default

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None:
        pass

    resume_reading = close = pause_reading


@pytest.mark.parametrize(
    ("first", "lines", "is_paused", "is_offered"),
    [
        (f"POST {PATH} HTTP/1.1", ["Content-Length: 2"], False, True),
        (f"POST {PATH} HTTP/1.1", ["Content-Length: 2"], True, False),
        (f"POST {PATH} HTTP/1.0", ["Content-Length: 2", "Connection: keep-alive"], False, False),
        (f"POST {PATH} HTTP/1.1", ["Content-Length: 2", "Connection: close"], False, False),
        (f"POST {PATH} HTTP/1.1", ["Content-Length: 2", "Expect: 100-continue"], False, False),
        (f"PUT {PATH} HTTP/1.1", ["Content-Length: 2"], False, False),
        ("POST /v1/chat/completions HTTP/1.1", ["Content-Length: 2"], False, False),
    ],
)
async def test_only_what_holds_no_surprise_is_offered(first: str, lines: list[str], is_paused: bool, is_offered: bool) -> None:
    long, offered = [], []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        long.append(scope["path"])
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    config = uvicorn.Config(app, log_config=None, access_log=False)
    config.load()
    wire = Wire()
    protocol = HttpConnection(
        config=config,
        server_state=ServerState(),
        app_state={},
        at_once=lambda exchange: bool(offered.append(exchange.body)) or True,
    )
    protocol.connection_made(wire)
    if is_paused:
        protocol.flow.pause_writing()
    protocol.data_received("\r\n".join([first, "Host: a", *lines, "", "{}"]).encode())
    await asyncio.sleep(0.01)
    assert (offered, len(long)) == (([b"{}"], 0) if is_offered else ([], 1))
    protocol.connection_lost(None)
