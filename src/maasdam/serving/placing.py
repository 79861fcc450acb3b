"""Where a version's replicas run: in this process, or each in an engine host. Knows why; never how either is done."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from maasdam.artifacts.names import UNVERIFIED
from maasdam.core import SPEECH_RECOGNITION, TEXT_GENERATION
from maasdam.serving.attempts import LoadAttempts
from maasdam.serving.replica import Replica
from maasdam.serving.upstreams.place import ELSEWHERE

if TYPE_CHECKING:
    from maasdam.artifacts.catalog import Version
    from maasdam.serving.router import Desired

SHARED_TASKS = frozenset((TEXT_GENERATION, SPEECH_RECOGNITION))
"""What several workers share: an engine that serves many at once, and has much memory of its own for it."""
HOLDS_THE_LOCK = frozenset(("openvino-genai",))
"""Engines whose library holds Python's lock while it computes a step: measured with 16 streams, whatever else the process was
asked for waited 0.2 s at the median and 1.7 s at p99, where it takes 2 and 16 ms beside a host."""


class Placing:
    """A router's `load`."""

    def __init__(
        self,
        here: Callable[[Version, Mapping[str, Any]], Awaitable[Replica]],
        in_host: Callable[[Version, Mapping[str, Any], bool], Awaitable[Replica]],
        attempts: LoadAttempts,
        *,
        elsewhere: Callable[[Version], Awaitable[Replica]],
        is_one_of_many: bool = False,
        has_budget: bool = False,
        has_loaded: Callable[[Version], bool] = lambda version: False,
    ) -> None:
        """`elsewhere` is for what another server runs, and llama.cpp's. `is_one_of_many`: other workers serve the same;
        `has_budget`: memory is measured, which takes processes.

        `has_loaded`: whether a version was loaded on this machine before; it may block.
        """
        self._has_loaded = has_loaded
        self._here = here
        self._elsewhere = elsewhere
        self._in_host = in_host
        self._attempts = attempts
        self._shares = is_one_of_many
        self._has_budget = has_budget

    async def __call__(self, version: Version, desired: Desired, may_push: bool) -> Replica:
        """A warm replica. Raises what loading it raises."""
        if version.engine in ELSEWHERE:
            return await self._elsewhere(version)
        options = desired.options
        if not self._is_apart(version, desired):
            if not self._shares or await asyncio.to_thread(self._has_loaded, version):
                return await self._here(version, options)
            async with self._attempts.turn(version.model, version.version):  # or all workers could die of it at once
                if not self._attempts.were_fatal(version.model, version.version):
                    return await self._here(version, options)
        replica = await self._in_host(version, options, may_push)
        self._attempts.forgive(version.model, version.version)
        return replica

    def _is_apart(self, version: Version, desired: Desired) -> bool:
        is_unverified = version.passed is None or version.imported == UNVERIFIED
        return (
            desired.is_apart
            or self._has_budget
            or is_unverified
            or version.engine in HOLDS_THE_LOCK
            or (self._shares and version.task in SHARED_TASKS)
            or self._attempts.were_fatal(version.model, version.version)
        )
