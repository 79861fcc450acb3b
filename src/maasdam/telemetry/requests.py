"""One line for every request, answered or refused. Knows facts of requests; never HTTP, and no file.

    add(facts) -> a list --ten times a second, as one record--> the log's handlers

A line written for each request by itself would cost 7 microseconds of it; in groups it is less than one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from typing import NamedTuple

import orjson

from maasdam.telemetry.logs import REQUEST, REQUESTS

GROUP_SECONDS = 0.1
HEAD = f'{REQUEST}"level":"info","logger":"{REQUESTS}","timestamp":"'
LONGEST = 200
"""What is kept of anything a caller wrote, characters."""


class Trace(NamedTuple):
    """The trace that a request is part of, as its caller's `traceparent` says."""

    id: str
    parent: str
    """The caller's span."""
    flags: str

    def response(self, request_id: str) -> str:
        """This request's own place in it, as a W3C traceparent: what is sent back, and on to whom it is passed."""
        return f"00-{self.id}-{span_of(request_id)}-{self.flags}"


def span_of(request_id: str) -> str:
    """The span that a request is: the last 16 digits of its id, which are of chance."""
    return request_id[-16:]


class Ended(NamedTuple):
    """What is known of a request at its end. None is unknown."""

    request_id: str
    trace: Trace | None
    method: str
    route: str
    """The route's pattern; the path where no route was found."""
    status: int
    seconds: float
    key_id: str | None
    model: str | None
    reason: str | None
    """The error's code, where the request was refused."""
    client_id: str | None = None
    """The caller's own id of the request, of letters that JSON holds as they are."""


class RequestLines:
    """The lines of one service's log. Belongs to one event loop."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._logger = logging.getLogger(REQUESTS)
        self._lines: list[str] = []
        self._timer: asyncio.TimerHandle | None = None
        self._second = (0, "")
        """The newest second that was written, and how lines begin in it."""

    def add(self, ended: Ended, status: int, model: str | None, version: int | None) -> None:
        """The line of a request that is over, as what it counts and which model it reached."""
        if not self._logger.isEnabledFor(logging.INFO):
            return
        trace = '"trace_id":null'
        if ended.trace is not None:
            own, (trace_id, parent, _) = span_of(ended.request_id), ended.trace
            trace = f'"trace_id":"{trace_id}","span_id":"{own}","parent_id":"{parent}"'
        if ended.client_id is not None:
            trace = f'"client_request_id":"{ended.client_id}",{trace}'
        at = self._clock()
        second = int(at)
        if second != self._second[0]:
            self._second = (second, HEAD + datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S."))
        route, model = ended.route[:LONGEST], model and model[:LONGEST]  # what is kept of a line is kept for long
        before, after = _alike(ended.method, route, status, ended.key_id, model, version, ended.reason)
        self._lines.append(
            f'{self._second[1]}{int((at - second) * 1000):03d}Z","request_id":"{ended.request_id}",{trace},'
            f'{before},"seconds":{ended.seconds:.6f},{after}'
        )
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(GROUP_SECONDS, self.flush)

    def flush(self) -> None:
        """Write what has gathered."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        lines, self._lines = self._lines, []
        if lines:
            self._logger.handle(self._logger.makeRecord(REQUESTS, logging.INFO, __file__, 0, "\n".join(lines), (), None))


@lru_cache(maxsize=4096)
def _alike(
    method: str, route: str, status: int, key_id: str | None, model: str | None, version: int | None, reason: str | None
) -> tuple[str, str]:
    """What stands in a line before its seconds and after them: of many requests the same."""
    tail = "" if reason is None else f',"reason":{_quoted(reason)}'
    return (
        f'"method":{_quoted(method)},"route":{_quoted(route)},"status":{status}',
        f'"key_id":{_quoted(key_id)},"model":{_quoted(model)},"version":{version or "null"}{tail}}}',
    )


def _quoted(written: str | None) -> str:
    """As JSON: what a caller wrote is cut, and made what UTF-8 can hold."""
    return "null" if written is None else orjson.dumps(written[:LONGEST].encode("utf-8", "replace").decode()).decode()
