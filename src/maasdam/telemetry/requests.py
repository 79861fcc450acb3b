"""One line and one count for every request, answered or refused. Knows facts of requests; never HTTP, and no file.

    ended(facts) -> a list --ten times a second, as one record--> the log's handlers

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

from maasdam.telemetry.logs import REQUESTS
from maasdam.telemetry.metrics import Measured, Metrics

GROUP_SECONDS = 0.1
HEAD = f'{{"event":"request","level":"info","logger":"{REQUESTS}","timestamp":"'
LONGEST = 200
"""What is kept of anything a caller wrote, characters."""


class Ended(NamedTuple):
    """What is known of a request at its end. None is unknown."""

    request_id: str
    trace_id: str | None
    """Of the caller's `traceparent`."""
    method: str
    route: str
    """The route's pattern; the path where no route was found."""
    status: int
    seconds: float
    key_id: str | None
    model: str | None
    reason: str | None
    """The error's code, where the request was refused."""


class RequestLog:
    """The lines and counts of one service. Belongs to one event loop."""

    def __init__(self, metrics: Metrics, clock: Callable[[], float] = time.time) -> None:
        self._metrics = metrics
        self._clock = clock
        self._logger = logging.getLogger(REQUESTS)
        self._answered: dict[str, tuple[str, int | None, int]] = {}
        """Requests that inference has counted and that have not ended: model, version, status."""
        self._lines: list[str] = []
        self._timer: asyncio.TimerHandle | None = None
        self._second = (0, "")
        """The newest second that was written, and how lines begin in it."""

    def answered(self, entry: Measured, status: int) -> None:
        """Inference is done with a request, and its row in the ledger is made."""
        self._answered[entry.request_id] = (entry.model, entry.version, status)
        self._metrics.answered(entry, status)

    def first_chunk(self, entry: Measured, seconds: float) -> None:
        """The first piece of a streamed answer left."""
        self._metrics.first_chunk(entry, seconds)

    def has_row(self, request_id: str) -> bool:
        """Whether inference has made this request's row."""
        return request_id in self._answered

    def ended(self, ended: Ended) -> None:
        """A request is over: count it, unless inference has, and write its line."""
        answered = self._answered.pop(ended.request_id, None)
        reason, status, model, version = ended.reason, ended.status, ended.model, None
        if answered is None:
            self._metrics.passed(status)
        else:  # as inference knows it: the model that was found, and how it ended, unless the caller was told another end
            model, version = answered[:2]
            status = answered[2] if reason is None else status
        if reason is not None:
            self._metrics.refused(reason, status)
        if not self._logger.isEnabledFor(logging.INFO):
            return
        trace = f'"trace_id":"{ended.trace_id}"' if ended.trace_id else '"trace_id":null'
        at = self._clock()
        second = int(at)
        if second != self._second[0]:
            self._second = (second, HEAD + datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S."))
        before, after = _alike(ended.method, ended.route, status, ended.key_id, model, version, reason)
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
