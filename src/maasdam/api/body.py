"""Read a body within limits of bytes and seconds. Knows ASGI messages; never what a body means."""

from __future__ import annotations

import asyncio
import codecs
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from python_multipart.multipart import parse_options_header

from maasdam.api.encodings import coding_of, unpacked
from maasdam.api.paths import CLASSIFIES, CUSTOM_DOOR
from maasdam.errors import BodyTooSlow, InvalidInput, Overloaded, TooLarge, WrongContentType
from maasdam.tasks.features import PATH as EMBEDS

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Headers = list[tuple[bytes, bytes]]

HELD, IS_READ, IS_WHOLE = "maasdam.body_bytes", "maasdam.body_is_read", "maasdam.body_is_whole"
"""In a scope: bytes held; that the body was read; that its last byte was here before anybody asked."""

IN_THE_LOOP = 128 * 1024
"""What is up to this size, bytes, is read and written in the event loop: a hop to a thread would cost more."""


class Disconnected(Exception):
    """The client went away."""


def header(headers: Headers, name: bytes) -> bytes | None:
    """The value of a header; lower-case `name`."""
    for key, value in headers:
        if key == name:
            return value
    return None


def is_json(kind: bytes) -> bool:
    """Whether a Content-Type says JSON. One that was not sent (empty) does not."""
    main = kind.partition(b";")[0].strip().lower()
    return main == b"application/json" or (main.startswith(b"application/") and main.endswith(b"+json"))


def reads_as_json(kind: bytes | None, path: str) -> bool:
    """Whether a body of this Content-Type, or of none, is JSON. Clients of the Open Inference Protocol may say less of it."""
    says_little = kind is None or (
        path.startswith("/v2/") and kind.partition(b";")[0].strip().lower() in (b"text/plain", b"application/octet-stream")
    )
    return says_little or is_json(kind or b"")


def is_multipart(kind: bytes) -> bool:
    """Whether a Content-Type says a form that can hold files."""
    return kind.partition(b";")[0].strip().lower() == b"multipart/form-data"


def check_charset(kind: bytes) -> None:
    """Raise WrongContentType for a form in a charset that is more than bytes for characters: some make what is no text."""
    charset = parse_options_header(kind)[1].get(b"charset", b"utf-8").decode("latin-1")
    try:
        is_read = codecs.lookup(charset).name in ("utf-8", "ascii", "iso8859-1")
    except (LookupError, ValueError):
        is_read = False
    if not is_read:
        raise WrongContentType(f"a form in charset {charset!r:.40} is not read here; send UTF-8")


def is_urlencoded(kind: bytes) -> bool:
    """Whether a Content-Type says a form that can't."""
    return kind.partition(b";")[0].strip().lower() == b"application/x-www-form-urlencoded"


def takes_forms_only(path: str) -> bool:
    """Whether a route reads no JSON."""
    return path.startswith("/v1/audio/") and path not in CLASSIFIES


def declared_length(headers: Headers) -> int | None:
    """Content-Length, None where there is none. Raises InvalidInput when it is no number."""
    value = header(headers, b"content-length")
    if value is None:
        return None
    if not value.isdigit():
        raise InvalidInput("Content-Length is not a number")
    return int(value)


@dataclass(frozen=True, slots=True)
class Limit:
    """The most bytes of one body, and what to do about one that has more."""

    most: int
    advice: str

    def error(self, length: int | None = None) -> TooLarge:
        """The error for a body over the limit."""
        has = f"the body has {length} bytes" if length else "the body is larger than allowed"
        return TooLarge(f"{has}; this service takes at most {self.most} here: {self.advice}")


@dataclass(slots=True)
class BodyLimits:
    """What bodies may be, each and together. One for a service."""

    any: Limit
    """Of one body of any kind."""
    json: Limit
    """Of JSON."""
    json_media: Limit
    """Of JSON with pictures or sound in it."""
    json_tensors: Limit
    """Of the JSON of a tensor request."""
    seconds: float
    """Until one has arrived."""
    held_bytes: int
    """Of all bodies in memory at once."""
    held: int = 0

    def of_json(self, path: str) -> Limit:
        """What JSON may be at a path."""
        return self.json_media if path in CLASSIFIES or path in (EMBEDS, CUSTOM_DOOR) else self.json

    async def read(self, scope: MutableMapping[str, Any], receive: Receive, limit: Limit | None = None) -> bytes:
        """The whole body. Raises TooLarge (before more than allowed is held), BodyTooSlow, Overloaded, Disconnected.

        What it takes of the memory for bodies is noted in `scope`; `release` gives it back.
        """
        limit = limit or self.any
        length = declared_length(scope["headers"])
        if length is not None and length > limit.most:
            raise limit.error(length)
        if scope.get(IS_WHOLE):  # nothing to wait for
            parts = await self._parts(scope, receive, limit)
        else:
            try:
                async with asyncio.timeout(self.seconds):
                    parts = await self._parts(scope, receive, limit)
            except TimeoutError:
                slow = f"the body did not arrive within {self.seconds:g} s; send it faster or in one piece"
                raise BodyTooSlow(slow) from None
        scope[IS_READ] = True
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        coding = coding_of(header(scope["headers"], b"content-encoding"))
        return data if coding is None else await self._unpacked(scope, data, coding, limit)

    async def _unpacked(self, scope: MutableMapping[str, Any], data: bytes, coding: bytes, limit: Limit) -> bytes:
        whole = await asyncio.to_thread(unpacked, data, coding, limit.most)
        if whole is None:
            raise limit.error()
        self._add(scope, len(whole))
        return whole

    async def _parts(self, scope: MutableMapping[str, Any], receive: Receive, limit: Limit) -> list[bytes]:
        parts: list[bytes] = []
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Disconnected
            self._hold(scope, message, limit)
            parts.append(message.get("body", b""))
            if not message.get("more_body", False):
                return parts

    def release(self, scope: MutableMapping[str, Any]) -> None:
        """The request is answered: its body's memory is free."""
        self.held -= scope.pop(HELD, 0)

    def _hold(self, scope: MutableMapping[str, Any], message: Message, limit: Limit) -> None:
        size = len(message.get("body", b""))
        if scope.get(HELD, 0) + size > limit.most:
            raise limit.error()
        self._add(scope, size)

    def _add(self, scope: MutableMapping[str, Any], size: int) -> None:
        scope[HELD] = scope.get(HELD, 0) + size
        self.held += size
        if self.held > self.held_bytes:
            raise Overloaded(f"the service holds {self.held} bytes of requests already; send this again in a second")
