"""Files that a request names by their address. Knows hosts, addresses and bounds; never what a file holds.

A server that fetches what it is told to is asked for its own neighbours: the cloud's metadata, a database, itself. So nothing
is fetched unless the setting `image_url_hosts` names the host; the host is resolved once, each of its addresses must be public,
and the connection goes to the one that was looked at, whatever the name says a moment later. No redirect is followed, no proxy
of the environment asked, nothing unpacked.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit

import httpx

from maasdam.errors import InvalidField

SECONDS = 15.0
"""Longest that all of it may take."""
LONGEST = 4096
"""Characters of an address."""
PORTS = {"http": 80, "https": 443}
SETTING = "image_url_hosts"


class Rules(NamedTuple):
    """What may be fetched."""

    hosts: tuple[str, ...]
    """Names, or "*.NAME" for what is below one, each with ":PORT" where it is not that of the scheme."""
    most: int
    """Bytes of a file."""
    seconds: float = SECONDS


def hosts_of(setting: str) -> tuple[str, ...]:
    """The hosts that a setting names, separated by commas."""
    return tuple(host for part in setting.split(",") if (host := part.strip().lower().rstrip(".")))


def is_public(address: str) -> bool:
    """Whether an address is one of the open internet: none of this machine, its networks, its cloud, or many at once.

    What carries another address inside (IPv4 in IPv6, NAT64, 6to4, Teredo) is judged by that one too.
    """
    found = ipaddress.ip_address(address.partition("%")[0])
    inner: list[ipaddress.IPv4Address | ipaddress.IPv6Address] = [found]
    if isinstance(found, ipaddress.IPv6Address):
        teredo = found.teredo or ()
        inner += [one for one in (found.ipv4_mapped, found.sixtofour, *teredo) if one is not None]
        if found in _NAT64 or found.packed[:12] == bytes(12):
            inner.append(ipaddress.IPv4Address(found.packed[12:]))
    return all(one.is_global and not one.is_multicast and not one.is_reserved for one in inner if one not in _NAT64)


_NAT64 = ipaddress.ip_network("64:ff9b::/96")


async def fetched(url: str, field: str, rules: Rules, allows: Callable[[str], bool] = is_public) -> bytes:
    """The bytes of a file. `allows` says which addresses may be connected to. Raises InvalidField, naming `field`."""
    parts, host, port = _read(url, field, rules)
    try:
        async with asyncio.timeout(rules.seconds):
            address = await _resolved(host, port, field, allows)
            return await _body(parts, host, port, address, field, rules.most)
    except TimeoutError:
        raise InvalidField(
            f"'{field}': {host} did not send the file within {rules.seconds:g} s; send its bytes", field
        ) from None


def _read(url: str, field: str, rules: Rules) -> tuple[SplitResult, str, int]:
    if not rules.hosts:
        raise InvalidField(
            f"'{field}' is an address, and this service fetches nothing: send the bytes in base64, or have the operator name "
            f"the host in the setting {SETTING}",
            field,
        )
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").lower().rstrip("."), parts.port
        host = host.encode("idna").decode("ascii") if host and not host.isascii() else host
    except ValueError:
        raise InvalidField(f"'{field}' is no address that can be read; send https://HOST/PATH", field) from None
    if len(url) > LONGEST or any(ord(c) <= 32 or ord(c) == 127 for c in url) or "\\" in url or not host:
        raise InvalidField(
            f"'{field}' is no address that can be read; send https://HOST/PATH of up to {LONGEST} characters", field
        )
    if parts.scheme not in PORTS or parts.username is not None or parts.password is not None:
        raise InvalidField(f"'{field}' must begin with https:// or http://, without a name and a password in it", field)
    asked = host if port in (None, PORTS[parts.scheme]) else f"{host}:{port}"
    if not any(asked == one or (one.startswith("*.") and asked.endswith(one[1:])) for one in rules.hosts):
        raise InvalidField(
            f"'{field}' is on the host '{asked[:100]}', which is not among those that this service fetches from; send the "
            f"bytes in base64, or have the operator name it in the setting {SETTING}",
            field,
        )
    return parts, host, port or PORTS[parts.scheme]


async def _resolved(host: str, port: int, field: str, allows: Callable[[str], bool]) -> str:
    """The one address that is connected to; all that the host has must be allowed."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise InvalidField(f"'{field}': there is no host '{host[:100]}'; send the bytes in base64", field) from None
    addresses = list(dict.fromkeys(str(one[4][0]) for one in found))
    if not addresses or not all(map(allows, addresses)):
        raise InvalidField(
            f"'{field}': the host '{host[:100]}' is at an address that is not public; send the bytes in base64", field
        )
    return addresses[0]


async def _body(parts: SplitResult, host: str, port: int, address: str, field: str, most: int) -> bytes:
    where = f"[{address}]" if ":" in address else address
    target = httpx.URL(scheme=parts.scheme, host=where.strip("[]"), port=port, raw_path=_path(parts))
    name = host if port == PORTS[parts.scheme] else f"{host}:{port}"
    headers = {"Host": name, "Accept": "image/*", "Accept-Encoding": "identity", "User-Agent": "maasdam"}
    try:
        async with (
            httpx.AsyncClient(trust_env=False, follow_redirects=False, timeout=None) as client,
            client.stream("GET", target, headers=headers, extensions={"sni_hostname": host}) as answer,
        ):
            if answer.is_redirect:
                raise InvalidField(
                    f"'{field}': {host} sends elsewhere, and no redirect is followed; send the last address", field
                )
            if answer.status_code != 200:
                raise InvalidField(
                    f"'{field}': {host} answered with status {answer.status_code}; send one that is there", field
                )
            if answer.headers.get("content-encoding", "identity") != "identity":
                raise InvalidField(f"'{field}': {host} sent the file packed, though asked not to; send the bytes", field)
            return await _bounded(answer, host, field, most)
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        why = type(error).__name__
        raise InvalidField(f"'{field}': the file could not be fetched from {host} ({why}); send the bytes", field) from None


def _path(parts: SplitResult) -> bytes:
    from urllib.parse import quote

    path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
    return (path + (f"?{quote(parts.query, safe='/?%:@!$&()*+,;=~-._')}" if parts.query else "")).encode("ascii")


async def _bounded(answer: httpx.Response, host: str, field: str, most: int) -> bytes:
    body = bytearray()
    async for piece in answer.aiter_raw():
        body += piece
        if len(body) > most:
            raise InvalidField(
                f"'{field}': the file at {host} is larger than the {most:,} bytes allowed; send a smaller one", field
            )
    return bytes(body)
