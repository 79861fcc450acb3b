"""Clients that are slow, huge, gone or malicious harm nobody else."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from tests.api.conftest import Running, wait_for

from maasdam.api import connection

TENSOR = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}


def raw(service: Running, data: bytes = b"") -> socket.socket:
    it = socket.create_connection(("127.0.0.1", service.port), timeout=10)
    it.sendall(data)
    return it


def head(service: Running, path: str, *lines: str, method: str = "POST") -> bytes:
    all_lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {service.key}", *lines]
    return ("\r\n".join(all_lines) + "\r\n\r\n").encode()


def read_all(it: socket.socket) -> bytes:
    out = b""
    while piece := it.recv(65536):
        out += piece
    return out


def answers(client: httpx.Client) -> bool:
    return client.post("/v2/models/doubles/infer", json=TENSOR).status_code == 200


@pytest.mark.parametrize("path", ["/v2/models/doubles/infer", "/v1/chat/completions", "/v1/images/classifications", "/admin/x"])
@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_300_mb_body_gets_413_and_memory_stays_flat(
    fake_service: Running, client: httpx.Client, path: str, is_chunked: bool
) -> None:
    before = psutil.Process().memory_info().rss
    peak = before
    stop = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not stop.wait(0.005):
            peak = max(peak, psutil.Process().memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    megabyte = b"x" * 1_000_000
    how = ["Transfer-Encoding: chunked"] if is_chunked else ["Content-Length: 300000000"]
    it = raw(
        fake_service,
        head(fake_service, path, *how, "Content-Type: application/json").replace(
            fake_service.key.encode(), fake_service.admin_key.encode()
        ),
    )
    began = time.monotonic()
    for _ in range(300):
        it.sendall(b"f4240\r\n" + megabyte + b"\r\n" if is_chunked else megabyte)
    if is_chunked:
        it.sendall(b"0\r\n\r\n")
    answer = read_all(it)
    stop.set()
    watcher.join()
    assert answer.startswith(b"HTTP/1.1 413 "), answer[:300]
    assert b"at most 2000000" in answer
    assert peak - before < 30_000_000, f"{(peak - before) / 1e6:.0f} MB more"
    assert time.monotonic() - began < 10
    assert answers(client)


def test_a_declared_huge_body_is_refused_before_any_of_it_is_sent(fake_service: Running) -> None:
    it = raw(fake_service, head(fake_service, "/v2/models/doubles/infer", "Content-Length: 300000000", "Expect: 100-continue"))
    assert read_all(it).startswith(b"HTTP/1.1 413 ")


def test_slow_headers_are_cut_off_and_block_nobody(
    fake_service: Running, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HEADER_SECONDS", 2.0)
    slow = [raw(fake_service, b"POST /v2/models/doubles/infer HTTP/1.1\r\nHost: l") for _ in range(100)]
    silent = [raw(fake_service) for _ in range(100)]
    assert answers(client)
    assert not select.select(slow + silent, [], [], 0)[0], "they were still open when another was answered"
    for it in slow + silent:
        assert it.recv(1000) == b""


def test_a_request_in_flight_is_not_cut_off_by_the_clock_for_headers(
    own_service: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HEADER_SECONDS", 0.2)
    own_service.engines["doubles"].delay = 0.8
    with own_service.client() as client:
        assert answers(client)


def test_a_slow_body_gets_408(own_service: Running) -> None:
    for path in ("/v2/models/doubles/infer", "/v1/chat/completions"):
        it = raw(own_service, head(own_service, path, "Content-Length: 1000") + b"{")
        began = time.monotonic()
        assert read_all(it).startswith(b"HTTP/1.1 408 ")
        assert 2.5 < time.monotonic() - began < 9


def test_endless_headers_are_refused(fake_service: Running, client: httpx.Client) -> None:
    it = raw(fake_service, b"GET /health HTTP/1.1\r\n")
    try:
        it.sendall(b"".join(b"X-%d: %b\r\n" % (i, b"y" * 200) for i in range(10_000)))
        is_refused = read_all(it).startswith(b"HTTP/1.1 431 ")
    except ConnectionError:  # gone while we still sent
        is_refused = True
    assert is_refused
    assert answers(client)


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00\x01\x02\x03" * 100,
        b"GET / HTTP/9.9\r\n\r\n",
        b"G@T / HTTP/1.1\r\n\r\n",
        b"POST /v2/models/doubles/infer HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        b"POST /v2/models/doubles/infer HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        b"POST /v2/models/doubles/infer HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v2/models/doubles/infer HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
    ],
)
def test_garbage_is_refused(fake_service: Running, client: httpx.Client, garbage: bytes) -> None:
    it = raw(fake_service, garbage)
    answer = read_all(it)
    assert answer.split(b" ")[1][:1] in (b"4",), answer[:200]
    assert answers(client)


def test_a_half_closed_connection_blocks_nobody(fake_service: Running, client: httpx.Client) -> None:
    body = json.dumps(TENSOR).encode()
    many = []
    for _ in range(20):
        it = raw(fake_service, head(fake_service, "/v2/models/doubles/infer", f"Content-Length: {len(body) + 10}") + body)
        it.shutdown(socket.SHUT_WR)
        many.append(it)
    assert answers(client)
    for it in many:
        it.settimeout(10)
        read_all(it)


def test_pipelined_requests_are_answered_in_order(fake_service: Running) -> None:
    one = []
    for i in range(5):
        body = json.dumps(
            {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [i, i]}], "id": f"n{i}"}
        ).encode()
        one.append(head(fake_service, "/v2/models/doubles/infer", f"Content-Length: {len(body)}") + body)
    one.append(head(fake_service, "/health", "Connection: close", method="GET"))
    answer = read_all(raw(fake_service, b"".join(one)))
    places = [answer.index(f'"n{i}"'.encode()) for i in range(5)]
    assert places == sorted(places) and answer.count(b"HTTP/1.1 200 OK") == 6


@pytest.fixture
def slow_text(own_service: Running) -> Iterator[Running]:
    own_service.engines["text"].delay = 0.02
    yield own_service


def completion(service: Running, stream: bool) -> bytes:
    body = json.dumps({"model": "text", "prompt": "hi", "max_tokens": 60, "stream": stream}).encode()
    return head(service, "/v1/completions", f"Content-Length: {len(body)}", "Content-Type: application/json") + body


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_cancels_its_generation(slow_text: Running, stream: bool) -> None:
    engine = slow_text.engines["text"]
    before = engine.given
    it = raw(slow_text, completion(slow_text, stream))
    wait_for(lambda: engine.given > before + 2)
    if stream:
        assert b"data:" in it.recv(100_000)
    assert engine.cancelled == []
    it.close()
    wait_for(lambda: len(engine.cancelled) == 1, 1)
    wait_for(lambda: slow_text.newest_row() is not None)
    row = slow_text.newest_row()
    assert row.status == 499 and row.model == "text"
    assert row.completion_tokens > 0, "what was generated is metered"


def test_a_client_that_goes_away_leaves_the_queue(own_service: Running) -> None:
    engine = own_service.engines["doubles"]
    engine.gate.clear()
    body = json.dumps(TENSOR).encode()
    sent = head(own_service, "/v2/models/doubles/infer", f"Content-Length: {len(body)}") + body
    (replica,) = own_service.service.router.find("doubles").replicas
    running = raw(own_service, sent)
    wait_for(lambda: (replica.in_flight, replica.waiting) == (1, 0))
    gone = [raw(own_service, sent) for _ in range(5)]
    wait_for(lambda: replica.waiting == 5)
    for it in gone:
        it.close()
    wait_for(lambda: (replica.in_flight, replica.waiting) == (1, 0))
    batches = len(engine.batches)
    engine.gate.set()
    assert running.recv(1000).startswith(b"HTTP/1.1 200")
    wait_for(lambda: replica.in_flight == 0)
    assert len(engine.batches) == batches + 1, "what nobody waits for is not computed"


def test_a_client_that_does_not_read_is_cut_off(own_service: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    lost = threading.Event()
    connection_lost = connection.HttpConnection.connection_lost

    def noted(self: connection.HttpConnection, error: Exception | None) -> None:
        connection_lost(self, error)
        lost.set()

    monkeypatch.setattr(connection, "STALLED_SECONDS", 0.5)
    monkeypatch.setattr(connection.HttpConnection, "connection_lost", noted)
    rows = 200_000
    data = np.ones((rows, 2), np.float32).tobytes()
    inputs = [{"name": "x", "shape": [rows, 2], "datatype": "FP32", "parameters": {"binary_data_size": len(data)}}]
    text = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    it = socket.socket()
    it.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    it.connect(("127.0.0.1", own_service.port))
    lines = (f"Content-Length: {len(text) + len(data)}", f"Inference-Header-Content-Length: {len(text)}")
    one = head(own_service, "/v2/models/doubles/infer", *lines) + text + data
    for _ in range(6):  # more answers than the system's buffers hold
        try:
            it.sendall(one)
        except OSError:
            break
    assert lost.wait(20)
    with pytest.raises(OSError):
        size = len(read_all(it))
        if size < 6 * len(data):
            raise OSError
    with own_service.client() as client:
        assert answers(client)


def test_open_files_do_not_leak(fake_service: Running, client: httpx.Client) -> None:
    answers(client)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(50):
        raw(fake_service, b"GET /health HTTP/1.1\r\n").close()
    wait_for(lambda: len(list(Path("/proc/self/fd").iterdir())) <= before + 2)


def test_all_bodies_together_are_bounded(own_service: Running) -> None:
    """The service takes 4 bodies of the largest size at once; more are told to come again."""
    body = b"{" + b" " * 1_900_000
    started = []
    for _ in range(12):
        it = raw(own_service, head(own_service, "/v2/models/doubles/infer", "Content-Length: 1999999"))
        it.sendall(body)
        started.append(it)
    wait_for(lambda: len(select.select(started, [], [], 0)[0]) >= 7)
    with own_service.client() as client:
        for _ in range(20):  # turns of the event loop, in which more would be refused
            client.get("/health")
    refused = 0
    for it in started:
        it.settimeout(0.2)
        with contextlib.suppress(TimeoutError):
            refused += it.recv(1000).startswith(b"HTTP/1.1 503 ")
    assert 7 <= refused <= 9
    for it in started:
        it.close()
    with own_service.client() as client:
        wait_for(lambda: answers(client))
        big = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}], "id": "y" * 1_900_000}
        assert all(client.post("/v2/models/doubles/infer", json=big).status_code == 200 for _ in range(12)), (
            "all was given back"
        )
