"""What whoever serves needs of the one that keeps engine hosts. All of it is plain data: it may be asked across processes."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any, Protocol

from msgspec import Struct


class HostWork(Struct, frozen=True):
    """What a host is to run: one version."""

    model: str
    version: int
    digest: str
    engine: str
    """Of ENGINES: which libraries it needs."""
    options: dict[str, Any] = {}
    """What its deployment asks of the engine beyond what the artifact's settings say."""

    @property
    def kind(self) -> str:
        """What takes the same memory: the digest, and the options where there are any."""
        return f"{self.digest} {json.dumps(self.options, sort_keys=True)}" if self.options else self.digest

    @property
    def name(self) -> str:
        """NAME:VERSION."""
        return f"{self.model}:{self.version}"


class HostAddress(Struct, frozen=True):
    """Where a host answers."""

    id: str
    path: str
    """Of a Unix socket (SOCK_SEQPACKET) in a folder that is its user's alone."""
    pid: int
    is_new: bool = True
    """Whether it was started for whoever asked."""
    room_seconds: float = 0.0
    """That it took until there was room."""


class HostEnd(Struct, frozen=True):
    """How a host ended."""

    reason: str
    """A sentence: by which signal or limit, or that it was asked to."""
    is_crash: bool


class HostReading(Struct, frozen=True):
    """How a host is."""

    id: str
    work: HostWork
    pid: int
    memory_bytes: int
    """As measured from outside: what would come back if it ended."""


class Keeper(Protocol):
    """Starts, counts, limits and ends hosts. One for all processes of a service."""

    async def acquire(self, work: HostWork, held: Collection[str], may_push: bool = True) -> HostAddress:
        """A host of that version that is none of `held`, which the asker has already; it is started where there is none.

        It may be loading still: who connects hears when it is done. Others leave for it, where memory is short, only if it
        `may_push`. Raises ServiceError where no process can be started, NoRoom.
        """
        ...

    async def release(self, host_id: str) -> None:
        """The asker leaves a host. The last one to leave ends it. More than once does no harm."""
        ...

    async def ended(self, host_id: str) -> HostEnd:
        """Wait until a host, which was acquired and hung up, is gone; why. One that does not go is ended."""
        ...

    async def readings(self) -> list[HostReading]:
        """Of every host that runs."""
        ...
