"""What was asked of each version in the service, and what its engines ran. Knows metrics and replicas; no protocol."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from maasdam.core import split_name
from maasdam.serving.scheduler import Executions

if TYPE_CHECKING:
    from maasdam.operations.service import Service
    from maasdam.serving.router import ReplicaSet

Sum = tuple[int, float]
"""How many, and their seconds."""


@dataclass(frozen=True, slots=True)
class VersionStatistics:
    """Of one version. Requests are counted since the service started, executions since the engine was opened."""

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
    asked = await asyncio.to_thread(service.metrics.asked)
    return [
        _of(group, asked.get((group.version.model, str(group.version.version)), {}))
        for group in service.router.groups()
        if (not name or group.version.model == model) and version in (None, group.version.version)
    ]


def _of(group: ReplicaSet, asked: dict[str, Sum]) -> VersionStatistics:
    failed = [counted for status, counted in asked.items() if status != "200"]
    runs = [replica.executions for replica in group.replicas if replica.executions is not None]
    total = Executions() if runs else None
    for run in runs:
        assert total is not None
        total.join(run)
    return VersionStatistics(
        group.version.model,
        group.version.version,
        asked.get("200", (0, 0.0)),
        (sum(count for count, _ in failed), sum(seconds for _, seconds in failed)),
        total,
    )
