"""One line and one count for every request, answered or refused. Knows facts of requests; never HTTP, and no file.

    ended(facts) -> a list --ten times a second, as one record--> the log's handlers

A line written for each request by itself would cost 7 microseconds of it; in groups it is less than one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import orjson

from maasdam.telemetry.logs import REQUESTS
from maasdam.telemetry.metrics import Measured, Metrics

GROUP_SECONDS = 0.1
LONGEST = 200
"""What is kept of anything a caller wrote, characters."""


@dataclass(frozen=True, slots=True)
class Ended:
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

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._logger = logging.getLogger(REQUESTS)
        self._answered: dict[str, tuple[str, int | None, int]] = {}
        """Requests that inference has counted and that have not ended: model, version, status."""
        self._lines: list[tuple[float, Ended, int | None]] = []
        self._timer: asyncio.TimerHandle | None = None

    def answered(self, receipt: Measured, status: int) -> None:
        """Inference is done with a request, and its row in the ledger is made."""
        self._answered[receipt.request_id] = (receipt.model, receipt.version, status)
        self._metrics.answered(receipt, status)

    def first_chunk(self, receipt: Measured, seconds: float) -> None:
        """The first piece of a streamed answer left."""
        self._metrics.first_chunk(receipt, seconds)

    def has_row(self, request_id: str) -> bool:
        """Whether inference has made this request's row."""
        return request_id in self._answered

    def ended(self, ended: Ended) -> None:
        """A request is over: count it, unless inference has, and write its line."""
        answered = self._answered.pop(ended.request_id, None)
        version = None
        if answered is None:
            self._metrics.passed(ended.status)
        else:
            version = answered[1]
        if ended.reason is not None:
            self._metrics.refused(ended.reason, ended.status)
        if not self._logger.isEnabledFor(logging.INFO):
            return
        if answered is not None:
            ended = _with(ended, *answered)
        self._lines.append((time.time(), ended, version))
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(GROUP_SECONDS, self.flush)

    def flush(self) -> None:
        """Write what has gathered."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        lines, self._lines = self._lines, []
        if lines:
            text = b"\n".join([orjson.dumps(_line(*line)) for line in lines]).decode()
            self._logger.handle(self._logger.makeRecord(REQUESTS, logging.INFO, __file__, 0, text, (), None))


def _with(ended: Ended, model: str, version: int | None, status: int) -> Ended:
    """As inference knows it: the model that was found, and how it ended, unless that was told to the caller after."""
    return replace(ended, model=model, status=status if ended.reason is None else ended.status)


def _line(at: float, ended: Ended, version: int | None) -> dict[str, Any]:
    line = {
        "event": "request",
        "level": "info",
        "logger": REQUESTS,
        "timestamp": datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "request_id": ended.request_id,
        "trace_id": ended.trace_id,
        "method": ended.method,
        "route": _text(ended.route),
        "status": ended.status,
        "seconds": round(ended.seconds, 6),
        "key_id": ended.key_id,
        "model": None if ended.model is None else _text(ended.model),
        "version": version,
    }
    if ended.reason is not None:
        line["reason"] = ended.reason
    return line


def _text(written: str) -> str:
    """What a caller wrote, short, and as UTF-8 can hold it."""
    return written[:LONGEST].encode("utf-8", "replace").decode()
