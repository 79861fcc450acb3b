"""Pictures by their address: from hosts that a setting names, never from inside, never elsewhere, within bounds."""

from __future__ import annotations

import asyncio
import http.server
import socket
import threading
from collections.abc import Iterator
from typing import ClassVar

import pytest

from maasdam.api import addresses
from maasdam.api.addresses import Rules, fetched, hosts_of, is_public
from maasdam.errors import InvalidField

PRIVATE = [
    "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "224.0.0.1",
    "255.255.255.255", "240.0.0.1", "192.0.2.1", "198.18.0.1", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1",
    "fd00:ec2::254", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "2002:7f00:1::", "2002:a00:1::1", "2001:db8::1", "::7f00:1", "2001:0:53aa:64c:0:0:80ff:fffe",
]  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_inside_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["93.184.215.14", "8.8.8.8", "2606:4700:4700::1111", "64:ff9b::808:808"])
def test_others_are(address: str) -> None:
    assert is_public(address)


RULES = Rules(hosts_of("images.example.com, *.cdn.example.com ,localhost,127.0.0.1,[::1],10.0.0.1:8080"), 1000, 5)
REFUSED = {
    "no host": ("https:///a.png", "address that can be read"),
    "a file": ("file:///etc/passwd", "address that can be read"),
    "ftp": ("ftp://images.example.com/a", "https://"),
    "another host": ("https://example.com/a", "not among"),
    "a host that ends so": ("https://evilimages.example.com/a", "not among"),
    "a host that begins so": ("https://images.example.com.evil.com/a", "not among"),
    "the name above": ("https://cdn.example.com/a", "not among"),
    "another port": ("https://images.example.com:22/a", "not among"),
    "a password": ("https://me:secret@images.example.com/a", "password"),
    "a name that looks like the host": ("https://images.example.com@evil.com/a", "password"),
    "a backslash": ("https://images.example.com\\@evil.com/a", "address that can be read"),
    "a line break": ("https://images.example.com/a\r\nHost: evil", "address that can be read"),
    "a port that is none": ("https://images.example.com:port/a", "address that can be read"),
    "an endless one": ("https://images.example.com/" + "a" * 5000, "address that can be read"),
    "this machine by name": ("http://localhost/a", "not public"),
    "this machine": ("http://127.0.0.1/a", "not public"),
    "a host written as a number": ("http://2130706433/a", "not among"),
    "a private one with its port": ("http://10.0.0.1:8080/a", "not public"),
}


@pytest.mark.parametrize("wrong", REFUSED)
def test_what_is_not_fetched_is_refused_by_name(wrong: str) -> None:
    url, says = REFUSED[wrong]
    with pytest.raises(InvalidField, match=says) as refused:
        asyncio.run(fetched(url, "image", RULES))
    assert refused.value.param == "image"


def test_without_the_setting_nothing_is_fetched_and_the_error_names_it() -> None:
    with pytest.raises(InvalidField, match="image_url_hosts"):
        asyncio.run(fetched("https://images.example.com/a.png", "image", Rules(hosts_of(""), 1000)))


class Files(http.server.BaseHTTPRequestHandler):
    """Files, and what servers do that should not be asked."""

    seen: ClassVar[list[str | None]] = []

    def do_GET(self) -> None:
        self.seen.append(self.headers["Host"])
        if self.path == "/elsewhere":
            self.send_response(302)
            self.send_header("Location", "http://169.254.169.254/")
            self.end_headers()
        elif self.path == "/slow":
            self.send_response(200)
            self.end_headers()
            threading.Event().wait(3)
        elif self.path == "/missing":
            self.send_error(404)
        else:
            packed = self.path == "/packed"
            self.send_response(200)
            if packed:
                self.send_header("Content-Encoding", "gzip")
            self.end_headers()
            self.wfile.write(b"x" * (5000 if self.path == "/large" else 10))

    def log_message(self, *_: object) -> None:
        """To nobody."""


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Files)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


def get(port: int, path: str, seconds: float = 5) -> bytes:
    rules = Rules((f"pictures.test:{port}",), 1000, seconds)
    return asyncio.run(fetched(f"http://pictures.test:{port}{path}", "image", rules, lambda address: address == "127.0.0.1"))


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The test's host is this machine the first time that it is asked for, and another machine from then on."""
    asked: list[str] = []

    async def resolve(self: object, host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        asked.append(host)
        where = "127.0.0.1" if len(asked) == 1 else "127.0.0.2"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (where, port))]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", resolve)
    return asked


def test_the_connection_goes_to_the_address_that_was_looked_at(port: int, named: list[str]) -> None:
    assert get(port, "/a.png") == b"x" * 10
    assert named.count("pictures.test") == 1 and Files.seen[-1] == f"pictures.test:{port}"


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/elsewhere", "no redirect is followed"),
        ("/large", "larger than the 1,000 bytes"),
        ("/missing", "status 404"),
        ("/packed", "packed"),
        ("/slow", "within 0.5 s"),
    ],
)
def test_what_comes_back_is_bounded(port: int, named: list[str], path: str, says: str) -> None:
    with pytest.raises(InvalidField, match=says):
        get(port, path, 0.5)


def test_a_host_of_which_one_address_is_private_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async def resolve(self: object, host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        return [(2, 1, 6, "", (address, port)) for address in ("8.8.8.8", "10.0.0.1")]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", resolve)
    with pytest.raises(InvalidField, match="not public"):
        asyncio.run(fetched("https://images.example.com/a", "image", RULES))
    assert addresses.SETTING == "image_url_hosts"
