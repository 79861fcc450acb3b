"""What was asked of each version in the service, and what its engines ran. Knows metrics and replicas; no protocol."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from maasdam.core import split_name
from maasdam.operations.fleet import Busy, Count, busy, joined
from maasdam.serving.executions import Executions

if TYPE_CHECKING:
    from maasdam.operations.service import Service

Sum = tuple[int, float]
"""How many, and their seconds."""


@dataclass(frozen=True, slots=True)
class VersionStatistics:
    """Of one version, in all workers. Requests are counted since the service started, executions since an engine was opened."""

    model: str
    version: int
    answered: Sum
    failed: Sum
    """Requests that ended otherwise, those whose callers went away too."""
    executions: Executions | None = field(default=None)
    """Of all its engines together; None where they put requests together by themselves, and nobody can tell."""


async def statistics(service: Service, name: str = "") -> list[VersionStatistics]:
    """Those of what NAME or NAME:VERSION means, or of every version for "". Raises NotFound, NotReady."""
    model, version, _ = split_name(name)
    if name:
        service.router.find(name)
    others = await service.fleet.tell(Count())
    asked = await asyncio.to_thread(service.metrics.asked)
    return [
        _of(one, others, asked.get((one.model, str(one.version)), {}))
        for one in busy(service)
        if (not name or one.model == model) and version in (None, one.version)
    ]


def _of(own: Busy, others: list[Busy], asked: dict[str, Sum]) -> VersionStatistics:
    failed = [counted for status, counted in asked.items() if status != "200"]
    runs = [one.executions for one in others if (one.model, one.version) == (own.model, own.version)]
    return VersionStatistics(
        own.model,
        own.version,
        asked.get("200", (0, 0.0)),
        (sum(count for count, _ in failed), sum(seconds for _, seconds in failed)),
        joined([own.executions, *runs]),
    )
