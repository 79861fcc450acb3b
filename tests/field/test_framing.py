"""What stands around a body is bounded, and nobody reads a request in two ways."""

from __future__ import annotations

import json
import select
import socket
from unittest import mock

import httpx
import psutil
import pytest
from tests.api.conftest import Running, client, fake_service, open_to_all, own_service, wait_for  # noqa: F401  fixtures

from maasdam.api.connection import HttpConnection

TENSOR = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}
BODY = json.dumps(TENSOR).encode()
TEXT = json.dumps({"model": "text", "prompt": "hi", "max_tokens": 2}).encode()
INFER, COMPLETIONS = "/v2/models/doubles/infer", "/v1/completions"
CHUNKED = "Transfer-Encoding: chunked"


def head(service: Running, path: str, *lines: str, version: str = "HTTP/1.1", key: str | None = None) -> bytes:
    key = service.key if key is None else key
    given = [f"POST {path} {version}", "Host: localhost", "Content-Type: application/json"]
    given += [f"Authorization: Bearer {key}"] if key else []
    return "\r\n".join([*given, *lines, "", ""]).encode()


def sent(service: Running, *pieces: bytes, is_apart: bool = False, seconds: float = 2.0) -> bytes:
    """What comes back until the service closes or `seconds` pass without a byte. `is_apart`: none before the last was read."""
    read: list[int] = []

    def data_received(self: HttpConnection, data: bytes) -> None:
        receive(self, data)
        read.append(len(data))

    receive = HttpConnection.data_received
    with (
        mock.patch.object(HttpConnection, "data_received", data_received),
        socket.create_connection(("127.0.0.1", service.port), timeout=seconds) as it,
    ):
        size = 0
        for piece in pieces:
            it.sendall(piece)
            size += len(piece)
            if is_apart:
                wait_for(lambda size=size: sum(read) >= size)
        out = b""
        try:
            while more := it.recv(65536):
                out += more
                if out.count(b"HTTP/1.1 ") and b"connection: close" not in out.lower():
                    it.settimeout(0.3)  # the connection stays open: is there another answer?
        except (TimeoutError, ConnectionError):
            pass
        return out


def statuses(answer: bytes) -> list[int]:
    return [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]]


def chunked(body: bytes, trailers: bytes = b"", extension: bytes = b"") -> bytes:
    return b"%x%b\r\n%b\r\n0\r\n%b\r\n" % (len(body), extension, body, trailers)


@pytest.mark.parametrize("path", [INFER, COMPLETIONS])
def test_a_trailer_is_no_header(fake_service: Running, path: str) -> None:
    body = BODY if path == INFER else TEXT
    trailers = f"Authorization: Bearer {fake_service.key}\r\n".encode()
    answer = sent(fake_service, head(fake_service, path, CHUNKED, key=""), chunked(body, trailers))
    assert statuses(answer) == [401]
    length = b"Inference-Header-Content-Length: 3\r\nContent-Type: text/plain\r\nContent-Encoding: gzip\r\n"
    assert statuses(sent(fake_service, head(fake_service, path, CHUNKED), chunked(body, length))) == [200]


@pytest.mark.parametrize("key", ["", None])
@pytest.mark.parametrize("junk", [b"a:b\r\n" * 2000, b"a: " + b"b" * 10_000, b"c" * 10_000])
def test_endless_trailers_are_refused_and_take_no_memory(fake_service: Running, key: str | None, junk: bytes) -> None:
    before = psutil.Process().memory_info().rss
    with socket.create_connection(("127.0.0.1", fake_service.port), timeout=10) as it:
        it.sendall(head(fake_service, INFER, CHUNKED, key=key) + b"%x\r\n%b\r\n0\r\n" % (len(BODY), BODY))
        with pytest.raises(OSError):
            for _ in range(5000):  # up to 50 MB
                it.sendall(junk)
            raise AssertionError("nobody stopped it")
    assert psutil.Process().memory_info().rss - before < 20_000_000


def test_chunk_extensions_are_bounded_and_many_small_chunks_are_not_refused(fake_service: Running) -> None:
    assert statuses(sent(fake_service, head(fake_service, INFER, CHUNKED), chunked(BODY, extension=b";a=b"))) == [200]
    by_one = b"".join(b"1\r\n%c\r\n" % byte for byte in BODY + b" " * 20_000) + b"0\r\n\r\n"
    assert statuses(sent(fake_service, head(fake_service, INFER, CHUNKED), by_one)) == [200]
    assert statuses(sent(fake_service, head(fake_service, INFER, CHUNKED), b"1;" + b"x" * 20_000, is_apart=True)) == [400]


@pytest.mark.parametrize("protocol", ["h2c", "websocket"])
@pytest.mark.parametrize("path", [INFER, COMPLETIONS])
@pytest.mark.parametrize("is_apart", [False, True])
def test_upgrade_is_ignored_and_its_body_is_no_request(fake_service: Running, path: str, protocol: str, is_apart: bool) -> None:
    body = BODY if path == INFER else TEXT
    lines = ("Connection: Upgrade, HTTP2-Settings", f"Upgrade: {protocol}", "HTTP2-Settings: AAMAAABkAAQAAP__")
    for framed, kind in ((body, f"Content-Length: {len(body)}"), (chunked(body), CHUNKED)):
        one = head(fake_service, path, *lines, kind)
        if is_apart:
            assert statuses(sent(fake_service, one, framed, is_apart=is_apart)) == [200]
            continue
        assert statuses(sent(fake_service, (one + framed) * 3)) == [200] * 3
    inner = f"GET /v1/models HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {fake_service.key}\r\n\r\n".encode()
    smuggled = head(fake_service, path, *lines, f"Content-Length: {len(inner)}")
    assert statuses(sent(fake_service, smuggled, inner, is_apart=is_apart)) == [400]


@pytest.mark.parametrize("path", [INFER, COMPLETIONS])
@pytest.mark.parametrize(
    ("lines", "version", "status"),
    [
        (["Content-Length: {n}", CHUNKED], "HTTP/1.1", 400),
        (["Content-Length: {n}", "Content-Length: {n}"], "HTTP/1.1", 400),
        (["Content-Length: {n}", "Content-Length: 5"], "HTTP/1.1", 400),
        (["Content-Length: +{n}"], "HTTP/1.1", 400),
        (["Content-Length: 18446744073709551616"], "HTTP/1.1", 400),
        (["Content-Length: {n}   "], "HTTP/1.1", 200),
        (["Content-Length: {n}", "X-A: 1\r\n folded"], "HTTP/1.1", 400),
        (["Content-Length: {n}", "X-A: 1\nX-B: 2"], "HTTP/1.1", 400),
        (["Content-Length: {n}", "Host: evil"], "HTTP/1.1", 400),
        (["Content-Length: {n}", *["a: b"] * 200], "HTTP/1.1", 431),
        (["Content-Length: {n}", "Expect: 200-ok"], "HTTP/1.1", 417),
        (["Content-Length: {n}"], "HTTP/2.0", 505),
        (["Content-Length: {n}"], "HTTP/0.9", 505),
        (["Content-Length: {n}"], "HTTP/1.0", 200),
        (["Transfer-Encoding: gzip, chunked"], "HTTP/1.1", 501),
        (["Transfer-Encoding: identity"], "HTTP/1.1", 501),
        ([CHUNKED], "HTTP/1.0", 501),
    ],
)
def test_framing_is_read_in_one_way_or_refused(
    fake_service: Running,
    path: str,
    lines: list[str],
    version: str,
    status: int,
) -> None:
    body = BODY if path == INFER else TEXT
    given = head(fake_service, path, *(line.format(n=len(body)) for line in lines), version=version)
    is_chunked = any("hunked" in line for line in lines)
    answer = sent(fake_service, given + (chunked(body) if is_chunked else body))
    assert statuses(answer) == [status], answer
    if status != 200:
        told = json.loads(answer.split(b"\r\n\r\n", 1)[1])["error"]
        assert told if path == INFER else told["message"], "in the words of the door"
        assert b"x-request-id: " in answer


@pytest.mark.parametrize("tail", [b"rubbish\r\n\r\n", b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"])
def test_rubbish_behind_a_request_does_not_take_its_answer(fake_service: Running, tail: bytes) -> None:
    one = head(fake_service, INFER, f"Content-Length: {len(BODY)}") + BODY
    answer = sent(fake_service, one + one + tail)
    assert statuses(answer) == [200, 200] and b"connection: close" in answer.lower()


def test_a_full_queue_is_told_and_closed_at_once(own_service: Running) -> None:
    engine = own_service.engines["doubles"]
    engine.gate.clear()
    one = head(own_service, INFER, f"Content-Length: {len(BODY)}") + BODY
    waiting = []
    try:
        for _ in range(40):  # one runs, 8 wait
            waiting.append(socket.create_connection(("127.0.0.1", own_service.port), timeout=4))
            waiting[-1].sendall(one)
        wait_for(lambda: len(select.select(waiting, [], [], 0)[0]) >= 20)
        refused = 0
        for it in waiting:
            it.settimeout(0.05)
            try:
                answer = it.recv(10_000)
            except TimeoutError:
                continue
            assert answer.startswith(b"HTTP/1.1 503 ") and b"retry-after" in answer
            assert it.recv(10) == b"", "closed, and not only after a while"
            refused += 1
        assert refused >= 20
    finally:
        engine.gate.set()
        for it in waiting:
            it.close()


@pytest.mark.parametrize("header", ["Host: [", "Host: ]", "Host: a:b:c", "Host: [::1", "Origin: http://[", "Origin: \xff"])
def test_a_malformed_host_or_origin_is_refused_without_keys(open_to_all: Running, header: str) -> None:
    host = "" if header.startswith("Host") else "Host: localhost\r\n"
    given = f"GET /v1/models HTTP/1.1\r\n{host}{header}\r\nConnection: close\r\n\r\n".encode("latin-1")
    assert statuses(sent(open_to_all, given)) == [403]
    wait_for(lambda: httpx.get(f"{open_to_all.url}/v1/models").status_code == 200)
