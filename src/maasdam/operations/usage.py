"""What was used. Knows dates as people write them; the sums are the ledger's."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from maasdam.accounts.ledger import By
from maasdam.errors import InvalidInput

if TYPE_CHECKING:
    from maasdam.operations.service import Service
    from maasdam.operations.workspace import Workspace

UNITS = {"h": "hours", "d": "days", "w": "weeks"}


def usage(where: Workspace | Service, by: By = "model", since: str | None = None) -> list[dict[str, Any]]:
    """Sums of the ledger by key, model or day. `since` is 2026-01-31, 2026-01-31T12:00 (UTC), or 24h, 7d, 2w ago."""
    if by not in ("key", "model", "day"):
        raise InvalidInput(f"--by is '{by}'; it takes: key, model, day")
    return [asdict(row) for row in where.ledger.usage(by, None if since is None else moment(since))]


def bytes_behind(where: Workspace | Service) -> int:
    """How much of what was answered could not be brought into the database yet, as far as `usage` has found."""
    return where.ledger.bytes_behind


def moment(text: str, now: datetime | None = None) -> datetime:
    """A date, a time or an age as a moment in UTC. Raises InvalidInput."""
    try:
        if text[-1:] in UNITS and text[:-1].isascii() and text[:-1].isdigit():
            return (now or datetime.now(UTC)) - timedelta(**{UNITS[text[-1]]: int(text[:-1])})
        parsed = datetime.fromisoformat(text)
        return parsed.replace(tzinfo=UTC) if parsed.tzinfo is None else parsed.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise InvalidInput(
            f"'{text[:100]}' is no time; write 2026-01-31, 2026-01-31T12:00, or an age such as 24h or 7d"
        ) from error
