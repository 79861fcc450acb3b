"""An error in the words of the door that was knocked at. Knows bodies and status codes; never how an answer is made.

    /v1/...            OpenAI              {"error": {"message", "type", "param", "code"}}
    …/classifications  RFC 9457            the same "error" beside its own members, for OpenAI's clients
    /v2/...            Open Inference      {"error": "..."}
    everything else    RFC 9457            application/problem+json

A caller's error shows its message. One of ours shows the request id; its message and traceback are in the log only,
save for those that say when to come back (503, 504), and what another server did (502). What is shown never tells where this
machine keeps its files.
"""

from __future__ import annotations

import logging
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal

import orjson

from maasdam.api.paths import CLASSIFIES
from maasdam.errors import CallerError, InvalidInput, MaasdamError, Overloaded
from maasdam.settings import load

log = logging.getLogger("maasdam.api")

Door = Literal["openai", "oip", "ours", "classifies"]
REFUSED = "maasdam.refused"
"""Where in a request's scope its refusal is noted."""
LONGEST = 2000
"""What is shown of a message that holds what a caller wrote, characters."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """One error, ready to be sent."""

    status: int
    message: str
    code: str
    param: str | None = None
    retry_after_seconds: float | None = None
    closes: bool = False
    """Whether the connection ends with it, so that the client's next try may go to another service."""


_OURS = frozenset({"v1", "v2", "admin", "health", "metrics", "docs", "console"})
"""What begins a route, not a path of the machine."""


def _tops() -> str:
    """The names at the root of this machine's files, as alternatives."""
    try:
        names = set(os.listdir("/")) - _OURS  # noqa: PTH208  names are all that is wanted
    except OSError:
        names = set()
    return "|".join(re.escape(name) for name in sorted(names | {"home", "tmp", "usr", "var"}, key=len, reverse=True))


_NAME = r"[^\s'\":;,()]"
_REST = rf"{_NAME}*(?: (?=[^\s'\":;,()/.]+(?:/|\.\w)){_NAME}+)*"
"""Of a path, also behind a space: a word with a slash inside, or a dot as in a file's name, is a part of it."""
_TOP = rf"/(?:{_tops()})/"
_DATABASE = r"(?:the database )?'?(?:sqlite|postgresql)(?:\+\w+)?:/+[^\s'\"]*'?"
_PLACES = re.compile(
    rf"(?P<database>{_DATABASE})|(?P<quote>['\"])(?:file:/*)?{_TOP}[^'\"]*(?P=quote)"
    rf"|\bfile:/+{_REST}|(?<![\w/.]){_TOP}{_REST}"
)


def without_places(text: str) -> str:
    """The text without paths of this machine's files and without its database's address."""
    for folder in _folders_with_spaces(os.environ.get("MAASDAM_HOME")):
        text = text.replace(folder, folder.replace(" ", "_"))
    return _PLACES.sub(lambda found: "the database" if found["database"] else "a file of the service", text)


def _home() -> Path:
    return load().home


@cache
def _folders_with_spaces(_set_home: str | None) -> list[str]:
    """Where this service keeps its files, as messages write it, if that has spaces: a pattern would take it for two words."""
    known: set[Path] = set()
    for where in (_home, Path.home, Path.cwd):
        with suppress(InvalidInput, OSError, RuntimeError):
            known |= {where(), where().resolve()}
    return sorted((str(path) for path in known if " " in str(path)), key=len, reverse=True)


OF_OTHERS = frozenset({"/rerank", "/v2/rerank", "/tokenize", "/detokenize"})
"""Paths that other services have, outside of /v1, and whose clients read OpenAI's errors."""


def door(path: str) -> Door:
    """Whose words a path speaks."""
    if path == "/v1" or path.startswith("/v1/") or path in OF_OTHERS:
        return "classifies" if path in CLASSIFIES else "openai"
    return "oip" if path == "/v2" or path.startswith("/v2/") else "ours"


def refusal(error: BaseException, request_id: str) -> Refusal:
    """What may be shown of an error. Errors of ours are logged here, with the traceback."""
    if isinstance(error, CallerError):
        param = None if error.param is None else _shown(error.param)
        return Refusal(error.http_status, _shown(without_places(str(error))), error.code, param, error.retry_after_seconds)
    if isinstance(error, MaasdamError) and error.http_status in (502, 503, 504):
        log.warning("request %s: %s: %s", request_id, type(error).__name__, error)
        told, closes = without_places(str(error)), isinstance(error, Overloaded)
        return Refusal(error.http_status, told, error.code, None, error.retry_after_seconds, closes)
    log.error("request %s failed", request_id, exc_info=error)
    code = error.code if isinstance(error, MaasdamError) else "internal_error"
    return Refusal(500, f"the service failed on this request; its log has the reason under request id {request_id}", code)


def body(refused: Refusal, kind: Door, path: str, request_id: str) -> tuple[bytes, bytes]:
    """The body and its content type."""
    if kind == "oip":
        return orjson.dumps({"error": refused.message}), b"application/json"
    if kind == "openai":
        return orjson.dumps({"error": openai_error(refused)}), b"application/json"
    problem: dict[str, Any] = {
        "type": f"urn:maasdam:error:{refused.code}",
        "title": HTTPStatus(refused.status).phrase if refused.status in set(HTTPStatus) else "Error",
        "status": refused.status,
        "detail": refused.message,
        "instance": _text(path),
        "request_id": request_id,
    }
    if kind == "classifies":
        problem["error"] = openai_error(refused)
    return orjson.dumps(problem), b"application/problem+json"


def openai_error(refused: Refusal) -> dict[str, str | None]:
    """The object under "error" in OpenAI's words; also an event in a stream."""
    if refused.status == 429:
        kind = "rate_limit_error"
    elif refused.status == 401:
        kind = "authentication_error"
    elif refused.status == 403:
        kind = "permission_error"
    else:
        kind = "invalid_request_error" if refused.status < 500 else "server_error"
    return {"message": refused.message, "type": kind, "param": refused.param, "code": refused.code}


def headers(refused: Refusal) -> list[tuple[bytes, bytes]]:
    """Headers that go with a refusal."""
    out: list[tuple[bytes, bytes]] = []
    if refused.status == 401:
        out.append((b"www-authenticate", b"Bearer"))
    if refused.status in (429, 503):
        out.append((b"retry-after", str(max(1, round(refused.retry_after_seconds or 1))).encode()))
    return out


def _shown(message: str) -> str:
    """A message that repeats what a caller wrote is cut, and made what UTF-8 can hold."""
    return _text(message if len(message) <= LONGEST else message[: LONGEST - 1] + "\u2026")


def _text(written: str) -> str:
    return written.encode("utf-8", "replace").decode()
