"""What became of one request: its row in the ledger and its lines in the log. Knows ids; never HTTP."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from maasdam.core import Entry
from maasdam.errors import NotFound
from maasdam.telemetry.logs import LogFile, lines_of

if TYPE_CHECKING:
    from maasdam.core import Caller
    from maasdam.operations.service import Service
    from maasdam.operations.workspace import Workspace
    from maasdam.settings import Settings

REQUEST_ID = re.compile(r"[A-Za-z0-9._~:@/+=-]{5,128}")
"""Ours, or one of the caller's that came back to it."""
REFUSAL_SECONDS = 1.0
"""So long a refusal waits for its row, which costs nothing and so need not be certain."""


def log_file(settings: Settings) -> LogFile | None:
    """Where the log is kept."""
    path = settings.resolved_log_file
    return None if path is None else LogFile(path, settings.log_file_bytes, settings.log_files)


def find_request(where: Workspace | Service, request_id: str) -> dict[str, Any]:
    """The row and the log lines of one request, by our id or by the caller's own: then of the newest that had it.

    Raises NotFound where there is neither. Reads files: it blocks.
    """
    if not REQUEST_ID.fullmatch(request_id):
        raise NotFound(f"'{request_id[:80]}' is no request id; send an answer's Maasdam-Request-Id or X-Request-Id")
    file = log_file(where.settings)
    lines = [] if file is None else lines_of(request_id, file)
    if lines and lines[-1]["request_id"] != request_id:
        return find_request(where, lines[-1]["request_id"])
    row = where.ledger.row(request_id)
    if row is None and not lines:
        kept = "the ledger" if file is None else "the ledger or the log, whose oldest lines are gone"
        raise NotFound(f"no request {request_id} in {kept}")
    if row is not None:
        row["at"] = row["at"].isoformat()
    return {"request_id": request_id, "ledger": row, "log": lines}


async def note_refusal(
    service: Service, request_id: str, caller: Caller, *, model: str, endpoint: str, status: int, code: str, seconds: float
) -> None:
    """Write the row of a request that a valid key sent and that was refused before any model was asked: it costs nothing."""
    if service.outbox.has_row(request_id):  # inference has written it
        return
    entry = Entry(
        request_id, datetime.now(UTC), caller.key_id, caller.name, model, endpoint, status, seconds, items=0, error_code=code
    )
    await service.inference.note(entry, time.monotonic() + REFUSAL_SECONDS)
