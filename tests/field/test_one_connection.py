"""Two requests on one connection: what belongs to one of them is not taken from the other."""

from __future__ import annotations

import json
import socket

from tests.api.conftest import Running, own_service, wait_for  # noqa: F401  fixtures


def _request(key: str, path: str, kind: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {key}\r\nContent-Type: {kind}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def test_whoever_goes_away_is_noticed_while_the_request_before_still_tidies_up(own_service: Running) -> None:
    """A large file is closed in a thread, after its answer is sent and the next request on the connection has begun."""
    fields = {"model": b"speech", "file": b"ab" * 700_000}
    parts = [b'--x\r\nContent-Disposition: form-data; name="%b"' % name.encode() for name in fields]
    parts[1] += b'; filename="a.wav"'
    form = b"".join(b"%b\r\n\r\n%b\r\n" % pair for pair in zip(parts, fields.values(), strict=True)) + b"--x--\r\n"
    text = own_service.engines["text"]
    text.delay, before = 0.05, text.given
    asked = json.dumps({"model": "text", "prompt": "a", "max_tokens": 63, "stream": True}).encode()
    with socket.create_connection(("127.0.0.1", own_service.port), timeout=10) as connection:
        connection.sendall(
            _request(own_service.key, "/v1/audio/transcriptions", "multipart/form-data; boundary=x", form)
            + _request(own_service.key, "/v1/completions", "application/json", asked)
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
        wait_for(lambda: text.given > before + 2)
    wait_for(lambda: text.cancelled)
