"""The other workers of one service, as operations see them. Knows what they are told and asked; never how it reaches them.

    a change through one worker -> tell(order) -> `obey` in every other -> it holds for all
    what one has has changed    -> say         -> `others` of every other

A service of one process is `Alone`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

import msgspec

from maasdam.errors import MaasdamError
from maasdam.serving.executions import Executions

if TYPE_CHECKING:
    from maasdam.operations.service import Service

FOLLOW_SECONDS = 5.0
"""A worker that has not done what takes no longer than a look into the database is not waited for; it is looked after."""
WORST_FIRST = ("loading", "failed", "unreachable", "stopping", "ready", "waking", "asleep")
"""A version is what it is in the worker where it is worst: a caller can't choose who answers. Asleep it is where no worker has
it: for the others it is up already when they are asked."""


class Follow(msgspec.Struct, frozen=True, tag=True):
    """The catalog has changed."""


class Settle(msgspec.Struct, frozen=True, tag=True):
    """The catalog has changed; answer once this model is up or has failed."""

    model: str
    seconds: float


class ForgetKeys(msgspec.Struct, frozen=True, tag=True):
    """A key was revoked."""


class SetLevel(msgspec.Struct, frozen=True, tag=True):
    """Log from this level on."""

    level: int


class Count(msgspec.Struct, frozen=True, tag=True):
    """Say how busy you are."""


Order = Follow | Settle | ForgetKeys | SetLevel | Count


class Busy(msgspec.Struct, frozen=True):
    """One version in one worker."""

    model: str
    version: int
    in_flight: int
    waiting: int
    executions: Executions | None
    """None where nobody can tell; see `Replica.executions`."""


class Standing(msgspec.Struct, frozen=True):
    """What one worker has, as far as the others must know to answer for all."""

    is_loaded: bool = False
    trouble: str | None = None
    versions: tuple[tuple[str, int, str, str | None, int], ...] = ()
    """Name, number, state, reason, replicas."""


class Fleet(Protocol):
    """What operations need of the other workers."""

    others: Sequence[Standing]
    """Of those that callers may reach."""

    @property
    def knows_us(self) -> bool:
        """Whether the others know that this worker has loaded everything: so they say of it what it says itself."""
        ...

    async def tell(self, order: Order, seconds: float = FOLLOW_SECONDS) -> list[Busy]:
        """Have it done by every other worker, and return what they answered; who hangs or dies is waited for no longer."""
        ...

    async def say(self, standing: Standing) -> None:
        """Let every other worker know; returns once it was passed on."""
        ...


class Alone:
    """There are no others."""

    others: Sequence[Standing] = ()
    knows_us = True

    async def tell(self, order: Order, seconds: float = FOLLOW_SECONDS) -> list[Busy]:
        """Nobody has to do anything."""
        return []

    async def say(self, standing: Standing) -> None:
        """Nobody hears."""


async def obey(service: Service, order: Order) -> list[Busy]:
    """Do what another worker asks. Raises MaasdamError where it can't be done now; it is once the catalog is looked at next."""
    if isinstance(order, Count):
        return busy(service)
    if isinstance(order, ForgetKeys):
        service.keys.forget()
    elif isinstance(order, SetLevel):
        logging.getLogger().setLevel(order.level)
    elif isinstance(order, Settle):
        with suppress(MaasdamError):  # whoever asked is told by what this worker says that it has
            await service.router.settled(order.model, order.seconds)
    else:
        await service.router.follow()
    await service.fleet.say(standing(service))
    return []


def standing(service: Service) -> Standing:
    """What this worker has."""
    versions = [(g.version.model, g.version.version, *g.standing, len(g.replicas)) for g in service.router.groups()]
    return Standing(service.router.is_ready, service.presence.reason, tuple(versions))


def worst(own: tuple[str, str | None, int], name: str, number: int, others: Sequence[Standing]) -> tuple[str, str | None, int]:
    """State, reason and replicas of a version, of all workers together: those of the worker where it is worst."""
    known = [own]
    for other in others:
        of_other = [
            (state, reason, replicas) for model, v, state, reason, replicas in other.versions if (model, v) == (name, number)
        ]
        known += of_other or [("loading", None, 0)]
    return min(known, key=lambda one: (WORST_FIRST.index(one[0]), one[2]))


def busy(service: Service) -> list[Busy]:
    """How busy this worker is."""
    return [
        Busy(
            group.version.model,
            group.version.version,
            sum(replica.in_flight for replica in group.replicas),
            sum(replica.waiting for replica in group.replicas),
            joined([replica.executions for replica in group.replicas]),
        )
        for group in service.router.groups()
    ]


def joined(runs: Sequence[Executions | None]) -> Executions | None:
    """What several engines have run together; None where none can tell."""
    known = [run for run in runs if run is not None]
    if not known:
        return None
    total = Executions()
    for run in known:
        total.join(run)
    return total
