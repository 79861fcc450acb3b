"""Read a body within limits: bytes, seconds and depth. Knows ASGI messages; never what a body means."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import numpy as np

from maasdam.api.errors import BodyTooSlow, WrongContentType
from maasdam.errors import InvalidInput, TooLarge

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Headers = list[tuple[bytes, bytes]]

STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"', re.DOTALL)
OPENERS, CLOSERS = (b"[", b"{"), (b"]", b"}")


class Disconnected(Exception):
    """The client went away."""


def header(headers: Headers, name: bytes) -> bytes | None:
    """The value of a header; lower-case `name`."""
    for key, value in headers:
        if key == name:
            return value
    return None


def declared_length(headers: Headers) -> int | None:
    """Content-Length, None where there is none. Raises InvalidInput when it is no number."""
    value = header(headers, b"content-length")
    if value is None:
        return None
    if not value.isdigit():
        raise InvalidInput("Content-Length is not a number")
    return int(value)


def check_length(headers: Headers, limit: int) -> None:
    """Raise TooLarge when the declared body is over `limit` bytes."""
    length = declared_length(headers)
    if length is not None and length > limit:
        raise too_large(length, limit)


def check_encoding(headers: Headers) -> None:
    """Raise WrongContentType for a compressed body."""
    if (header(headers, b"content-encoding") or b"identity").lower() != b"identity":
        raise WrongContentType("compressed bodies are not read; send it without Content-Encoding")


def too_large(length: int | None, limit: int) -> TooLarge:
    """The error for a body over the limit."""
    has = f"the body has {length} bytes" if length else "the body is larger than allowed"
    return TooLarge(f"{has}; this service takes at most {limit}: send less, or raise max_body_bytes")


async def read(receive: Receive, headers: Headers, limit: int, seconds: float) -> bytes:
    """The whole body. Raises TooLarge (before more than `limit` bytes are held), BodyTooSlow, Disconnected."""
    check_length(headers, limit)
    message = await _next(receive, seconds)
    if not message.get("more_body", False):
        data: bytes = message.get("body", b"")
        if len(data) > limit:
            raise too_large(len(data), limit)
        return data
    parts = [message.get("body", b"")]
    size = len(parts[0])
    try:
        async with asyncio.timeout(seconds):
            while message.get("more_body", False):
                message = await _next(receive, None)
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > limit:
                    raise too_large(None, limit)
    except TimeoutError:
        raise _slow(seconds) from None
    return b"".join(parts)


async def _next(receive: Receive, seconds: float | None) -> Message:
    if seconds is None:
        message = await receive()
    else:
        try:
            async with asyncio.timeout(seconds):
                message = await receive()
        except TimeoutError:
            raise _slow(seconds) from None
    if message["type"] == "http.disconnect":
        raise Disconnected
    return message


def _slow(seconds: float) -> BodyTooSlow:
    return BodyTooSlow(f"the body did not arrive within {seconds:g} s; send it faster or in one piece")


def check_json_depth(data: bytes, limit: int) -> None:
    """Raise InvalidInput when JSON nests deeper than `limit`. Does not parse; fast on any input."""
    if data.count(b"[") + data.count(b"{") <= limit:
        return
    if b'"' in data:
        data = STRING.sub(b"", data)
    codes = np.frombuffer(data, np.uint8)
    steps = np.zeros(codes.shape, np.int32)
    for opener, closer in zip(OPENERS, CLOSERS, strict=True):
        steps[codes == opener[0]] = 1
        steps[codes == closer[0]] = -1
    if steps.size and int(np.cumsum(steps).max()) > limit:
        raise InvalidInput(f"the JSON nests deeper than {limit} levels; send it flatter")
