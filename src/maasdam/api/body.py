"""Read a body within limits: bytes, seconds and depth. Knows ASGI messages; never what a body means."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from maasdam.api.errors import BodyTooSlow, WrongContentType
from maasdam.errors import InvalidInput, Overloaded, TooLarge

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Headers = list[tuple[bytes, bytes]]

STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"', re.DOTALL)
HELD = "maasdam.body_bytes"
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


@dataclass(slots=True)
class BodyLimits:
    """What bodies may be, each and together. One for a service."""

    body_bytes: int
    """Of one body."""
    seconds: float
    """Until one has arrived."""
    held_bytes: int
    """Of all bodies in memory at once."""
    held: int = 0

    async def read(self, scope: MutableMapping[str, Any], receive: Receive) -> bytes:
        """The whole body. Raises TooLarge (before more than allowed is held), BodyTooSlow, Overloaded, Disconnected.

        What it takes of the memory for bodies is noted in `scope`; `release` gives it back.
        """
        check_length(scope["headers"], self.body_bytes)
        try:
            async with asyncio.timeout(self.seconds):
                message = await _next(receive)
                self._hold(scope, message)
                if not message.get("more_body", False):
                    return bytes(message.get("body", b""))
                parts = [message.get("body", b"")]
                while message.get("more_body", False):
                    message = await _next(receive)
                    self._hold(scope, message)
                    parts.append(message.get("body", b""))
        except TimeoutError:
            raise BodyTooSlow(f"the body did not arrive within {self.seconds:g} s; send it faster or in one piece") from None
        return b"".join(parts)

    def release(self, scope: MutableMapping[str, Any]) -> None:
        """The request is answered: its body's memory is free."""
        self.held -= scope.pop(HELD, 0)

    def _hold(self, scope: MutableMapping[str, Any], message: Message) -> None:
        size = len(message.get("body", b""))
        scope[HELD] = scope.get(HELD, 0) + size
        self.held += size
        if scope[HELD] > self.body_bytes:
            raise too_large(None, self.body_bytes)
        if self.held > self.held_bytes:
            raise Overloaded(f"the service holds {self.held} bytes of requests already; send this again in a second")


async def _next(receive: Receive) -> Message:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise Disconnected
    return message


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
