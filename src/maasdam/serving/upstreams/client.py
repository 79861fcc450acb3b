"""Requests to one server over HTTP, and what may come back. Knows statuses, bounds and events; never what an answer says.

Nothing of an answer is believed: it is read up to a bound, never unpacked, and an address elsewhere is never followed. What is
told of an error holds no address and no key.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import orjson

from maasdam.errors import (
    ContextExceeded,
    DeadlineExceeded,
    InvalidField,
    InvalidInput,
    MaasdamError,
    Overloaded,
    TooLarge,
    TooManyRequests,
    UpstreamFailure,
    UpstreamGone,
    remade,
)
from maasdam.serving.upstreams.place import Upstream

CONNECT_SECONDS = 5.0
LOOK_SECONDS = 5.0
"""Longest that the list of its models may take."""
MOST_ERROR_BYTES = 64 * 1024
MOST_LIST_BYTES = 4 * 1024 * 1024
MOST_EVENT_BYTES = 1024 * 1024
LONGEST_MESSAGE = 500
MOST_RETRY_SECONDS = 24 * 3600.0
OUR_FIELDS = ("model", "stream", "stream_options")
"""What its refusal may be about that no caller has sent."""


class Client:
    """One server. All methods run in one event loop."""

    def __init__(
        self, place: Upstream, *, most_bytes: int, most_connections: int, answer_seconds: float, key: str | None = None
    ) -> None:
        """`key` is one that is in no variable. An answer is of at most `most_bytes`; of a stream each piece comes within
        `answer_seconds`."""
        self._place = place
        self._most_bytes = most_bytes
        self._own_key = key
        self._answer_seconds = answer_seconds
        limits = httpx.Limits(max_connections=most_connections, max_keepalive_connections=0)
        self._transport = httpx.AsyncHTTPTransport(verify=ssl.create_default_context(), trust_env=False, limits=limits)

    async def models(self) -> dict[str, Mapping[str, Any]]:
        """What it says of its models, by their names. Raises UpstreamFailure, UpstreamGone, DeadlineExceeded."""
        try:
            async with asyncio.timeout(LOOK_SECONDS), self._reply("GET", "/models", b"", {}) as reply:
                listed = parsed(await self._body(reply, MOST_LIST_BYTES))
        except TimeoutError as error:
            raise DeadlineExceeded("the upstream does not answer in time") from error
        data = listed.get("data") if isinstance(listed, dict) else None
        if not isinstance(data, list):
            raise UpstreamFailure("the upstream's /models is no list of models")
        return {one["id"]: one for one in data if isinstance(one, dict) and isinstance(one.get("id"), str)}

    async def whole(self, path: str, content: bytes, headers: Mapping[str, str]) -> Any:
        """A POST's JSON answer."""
        async with self._reply("POST", path, content, headers) as reply:
            return parsed(await self._body(reply, self._most_bytes))

    async def events(self, path: str, content: bytes, headers: Mapping[str, str]) -> AsyncGenerator[Any]:
        """A POST's server-sent events, as JSON, up to [DONE] or the end. Closing this closes the connection."""
        async with self._reply("POST", path, content, headers) as reply:
            kind = reply.headers.get("content-type", "")
            if not kind.startswith("text/event-stream"):
                raise UpstreamFailure(f"the upstream was asked for a stream and sent '{_clean(kind, self._key(), 50)}'")
            async for data in _events(self._pieces(reply), self._most_bytes):
                if data == b"[DONE]":
                    return
                yield parsed(data)

    def broken_off(self, said: Any) -> UpstreamFailure:
        """What an error says that stands inside an answer."""
        return UpstreamFailure(f"the upstream broke off: {_told(said, self._key())[0]}")

    async def close(self) -> None:
        """Close its connections; what is in flight fails."""
        await self._transport.aclose()

    def _key(self) -> str | None:
        try:
            return self._own_key or self._place.key()
        except InvalidInput as error:  # no caller's fault
            raise UpstreamFailure(str(error)) from error

    @asynccontextmanager
    async def _reply(self, method: str, path: str, content: bytes, headers: Mapping[str, str]) -> AsyncIterator[httpx.Response]:
        key = self._key()
        sent = {"accept-encoding": "identity", "accept": "application/json, text/event-stream", "user-agent": "maasdam"}
        sent |= {"connection": "close"}  # what comes behind an answer would be read as the next caller's
        sent |= {"content-type": "application/json"} if content else {}
        sent |= dict(headers) | ({} if key is None else {"authorization": f"Bearer {key}"})
        seconds = {"connect": CONNECT_SECONDS, "pool": CONNECT_SECONDS} | dict.fromkeys(("read", "write"), self._answer_seconds)
        request = httpx.Request(
            method, self._place.url + path, content=content or None, headers=sent, extensions={"timeout": seconds}
        )
        try:
            reply = await self._transport.handle_async_request(request)
            try:
                if reply.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
                    raise UpstreamFailure("the upstream sent a packed answer, which it was asked not to")
                if reply.status_code != 200:
                    raise await self._refusal(reply, key)
                yield reply
            finally:
                await reply.aclose()
        except (httpx.HTTPError, OSError) as error:
            raise _broken(error) from error

    async def _pieces(self, reply: httpx.Response) -> AsyncIterator[bytes]:
        """As they come, in the encoding that they have."""
        assert isinstance(reply.stream, httpx.AsyncByteStream)
        async for piece in reply.stream:
            yield piece

    async def _body(self, reply: httpx.Response, most: int) -> bytes:
        said = reply.headers.get("content-length", "")
        if said.isdigit() and int(said) > most:
            raise UpstreamFailure(f"the upstream's answer has more than {most:,} bytes")
        pieces, size = [], 0
        async for piece in self._pieces(reply):
            pieces.append(piece)
            size += len(piece)
            if size > most:
                raise UpstreamFailure(f"the upstream's answer has more than {most:,} bytes")
        return b"".join(pieces)

    async def _refusal(self, reply: httpx.Response, key: str | None) -> MaasdamError:
        """Another status than 200 as an error of ours."""
        status = reply.status_code
        if 300 <= status < 400:
            return UpstreamFailure(f"the upstream answered {status}, an address elsewhere, which is not followed")
        if status in (401, 403):
            return UpstreamFailure(f"the upstream did not accept this service's key ({status}); its operator has to look")
        after = _retry_after(reply.headers.get("retry-after"))
        if status not in (400, 413, 415, 422, 429, 503, 504):
            return UpstreamFailure(f"the upstream answered {status}")
        message, field, code = _told(_json_or_none(await self._start(reply)), key)
        if status in (429, 503):
            busy = (TooManyRequests if status == 429 else Overloaded)(f"the upstream takes no more now ({status}): {message}")
            busy.retry_after_seconds = busy.retry_after_seconds if after is None else after
            return busy
        if status == 504:
            return DeadlineExceeded("the upstream had no answer in time; try again when it is less busy")
        if field in OUR_FIELDS:
            return UpstreamFailure(f"the upstream refused '{field}', which this service had set")
        return _refused(status, message, field, code)

    async def _start(self, reply: httpx.Response) -> bytes:
        pieces, size = [], 0
        async for piece in self._pieces(reply):
            pieces.append(piece)
            size += len(piece)
            if size >= MOST_ERROR_BYTES:
                break
        return b"".join(pieces)


def parsed(data: bytes) -> Any:
    """JSON. Raises UpstreamFailure."""
    try:
        return orjson.loads(data)
    except (ValueError, RecursionError) as error:
        raise UpstreamFailure("the upstream sent what is no JSON") from error


def _json_or_none(data: bytes) -> Any:
    try:
        return orjson.loads(data)
    except (ValueError, RecursionError):
        return None


async def _events(pieces: AsyncIterator[bytes], most: int) -> AsyncIterator[bytes]:
    """The data of each event of a stream of at most so many bytes; one of them has at most MOST_EVENT_BYTES."""
    begun: list[bytes] = []
    data: list[bytes] = []  # joined once, too
    size = waiting = held = 0
    async for piece in pieces:
        size += len(piece)
        waiting += len(piece)
        if b"\n" not in piece:  # joined once: a line may come byte by byte
            begun.append(piece)
        else:
            *lines, last = b"".join((*begun, piece)).split(b"\n")
            begun = [last]
            for line in lines:
                line = line.removesuffix(b"\r")
                if line.startswith(b"data:"):
                    data.append(line[5:].removeprefix(b" "))
                    held += len(line)
                elif not line and data:
                    yield b"\n".join(data)
                    data, held = [], 0
            waiting = held + len(last)
        if size > most or waiting > MOST_EVENT_BYTES:
            raise UpstreamFailure("the upstream's stream has more bytes than an answer may have")
    line = b"".join(begun).removesuffix(b"\r")
    if data or line.startswith(b"data:"):  # a server that ends without an empty line
        yield b"\n".join(data) or line[5:].strip()


def _told(said: Any, key: str | None) -> tuple[str, str | None, str | None]:
    """Message, field and code of an error in OpenAI's words, or FastAPI's, as far as they may be shown."""
    error = said.get("error", said) if isinstance(said, dict) else None
    error = {"message": error} if isinstance(error, str) else error if isinstance(error, dict) else {}
    message = error.get("message", error.get("detail"))
    field, code = (value if isinstance(value := error.get(name), str) else None for name in ("param", "code"))
    code = error["type"] if code is None and error.get("type") == "exceed_context_size_error" else code  # llama.cpp's
    return (
        _clean(message, key, LONGEST_MESSAGE) if isinstance(message, str) and message else "it does not say why",
        None if field is None else _clean(field, key, 100),
        None if code is None else _clean(code, key, 64),
    )


def _clean(text: str, key: str | None, most: int) -> str:
    text = text if key is None else text.replace(key, "(key)")
    text = " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * most]).split())
    return text if len(text) <= most else text[: most - 1] + "\u2026"


def _refused(status: int, message: str, field: str | None, code: str | None) -> MaasdamError:
    """What a caller can mend, with the field that it is about."""
    if status == 413:
        return TooLarge(f"the upstream refused it: {message}")
    if code in (ContextExceeded.code, "exceed_context_size_error"):
        return remade(ContextExceeded, message, {})  # its own words, which clients look for
    return InvalidField(f"the upstream refused it: {message}", field, code or "invalid_value")


def _retry_after(text: str | None) -> float | None:
    """Seconds, of a number or a date."""
    if text is None:
        return None
    try:
        seconds = float(text) if text.strip().isdigit() else (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError, OverflowError):
        return None
    return min(max(seconds, 0.0), MOST_RETRY_SECONDS)


def _broken(error: Exception) -> MaasdamError:
    """What went wrong on the way."""
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        if "certificate" in str(error).lower() or "ssl" in str(error).lower():
            return UpstreamFailure("the upstream's certificate can't be trusted; its operator has to look")
        return UpstreamGone("the upstream can't be reached; try again in a moment")
    if isinstance(error, httpx.PoolTimeout):
        return Overloaded("too many requests are with the upstream; try again in a second")
    if isinstance(error, httpx.TimeoutException | TimeoutError):
        return DeadlineExceeded("the upstream said nothing for too long; try again when it is less busy")
    return UpstreamFailure("the connection to the upstream broke off")
