"""Where this home's service listens, what lets its operator in, and how to ask it. Knows one small file; never what is asked.

serve --announced--> HOME/service.json (mode 0600: url, pid, secret) --whereabouts--> status, on the same machine
                                                                         \\- asked: over TCP, TLS or a Unix socket

Who can read the file is the operator: the secret in it is an administrator's for as long as that service lives.
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

FILE = "service.json"
NO_CHECK_TIME = 0x200000
"""OpenSSL's X509_V_FLAG_NO_CHECK_TIME, which Python has no name for."""


@dataclass(frozen=True, slots=True)
class Address:
    """A service that runs, or ran until it was killed."""

    url: str
    """http://HOST:PORT, https://HOST:PORT or unix:PATH."""
    pid: int
    secret: str
    certificate: str = ""
    """File of the one that is used where the URL says https."""


@contextmanager
def announced(home: Path, url: str, certificate: str = "") -> Iterator[Address]:
    """Say in `home` that this process listens at `url` while the context lasts. Of several services the newest is kept."""
    address = Address(url, os.getpid(), secrets.token_urlsafe(32), certificate)
    path, new = home / FILE, home / f".{FILE}.{os.getpid()}"
    with suppress(FileNotFoundError):
        new.unlink()
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:  # noqa: PTH123  # with its mode from the start
        json.dump(asdict(address), file)
    new.replace(path)
    try:
        yield address
    finally:
        if whereabouts(home) == address:
            path.unlink(missing_ok=True)


def whereabouts(home: Path) -> Address | None:
    """The service last announced in `home`; None where there is none, or the file is not this user's to read."""
    try:
        data = json.loads((home / FILE).read_text())
        return Address(str(data["url"]), int(data["pid"]), str(data["secret"]), str(data.get("certificate", "")))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def asked(address: Address, path: str, secret: str | None, seconds: float) -> tuple[int, bytes]:
    """Status and body of a GET. Raises OSError, http.client.HTTPException and ValueError where no such service answers.

    Over TLS the other end must have the key of the very certificate that the address names: who signed it, which names it has
    and how old it is do not matter then.
    """
    connection = _connection(address, seconds)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {secret}"} if secret else {})
        reply = connection.getresponse()
        return reply.status, reply.read()
    finally:
        connection.close()


def reaching(address: Address, is_async: bool = False) -> dict[str, Any]:
    """What an httpx client (`is_async`: an AsyncClient) takes to ask the service with the operator's rights.

    Raises OSError and ValueError where its certificate can't be read.
    """
    import httpx

    kind, _, rest = address.url.partition(":")
    told: dict[str, Any] = {"headers": {"Authorization": f"Bearer {address.secret}"}, "trust_env": False}
    if kind == "unix":
        transport = httpx.AsyncHTTPTransport(uds=rest) if is_async else httpx.HTTPTransport(uds=rest)
        return told | {"base_url": "http://localhost", "transport": transport}
    return told | {"base_url": address.url, "verify": _context(address) if kind == "https" else True}


def _connection(address: Address, seconds: float) -> http.client.HTTPConnection:
    kind, _, rest = address.url.partition(":")
    if kind == "unix":
        connection = http.client.HTTPConnection("localhost", timeout=seconds)
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.sock.settimeout(seconds)
        connection.sock.connect(rest)
        return connection
    parts = urlsplit(address.url)
    host = parts.hostname or ""
    if kind != "https":
        return http.client.HTTPConnection(host, parts.port, timeout=seconds)
    return http.client.HTTPSConnection(host, parts.port, timeout=seconds, context=_context(address))


def _context(address: Address) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # one certificate is taken, and no other
    if address.certificate:
        context.load_verify_locations(cadata=_first(Path(address.certificate).read_text()))
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | NO_CHECK_TIME
    return context


def _first(chain: str) -> str:
    """The certificate itself, without those that lead to its root."""
    end = "-----END CERTIFICATE-----"
    return chain[chain.index("-----BEGIN CERTIFICATE-----") : chain.index(end) + len(end)]
