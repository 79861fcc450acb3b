"""What workers and their supervisor say to each other. Knows shapes; never sockets.

worker     -> Tell, Say, Opened, Closing, Acquire, LetGo, AwaitEnd, ReadHosts    -> supervisor
supervisor -> Obey, Others, Open, Adopt, Release, Drain, Ping         -> worker
"""

from __future__ import annotations

import msgspec

from maasdam import errors
from maasdam.errors import MaasdamError, ServiceError, remade, words
from maasdam.operations.fleet import Busy, Order, Standing
from maasdam.serving.hosts.keeper import HostAddress, HostEnd, HostReading, HostWork


class Tell(msgspec.Struct, frozen=True, tag=True):
    """Have every other worker do this; answered with what they said."""

    order: Order
    seconds: float


class Say(msgspec.Struct, frozen=True, tag=True):
    """What this worker has now."""

    standing: Standing


class Opened(msgspec.Struct, frozen=True, tag=True):
    """This worker takes connections."""


class Closing(msgspec.Struct, frozen=True, tag=True):
    """This worker takes none any more, and ends once what it has is answered."""


class Acquire(msgspec.Struct, frozen=True, tag=True):
    """See `Keeper.acquire`."""

    work: HostWork
    held: frozenset[str]
    may_push: bool


class LetGo(msgspec.Struct, frozen=True, tag=True):
    """See `Keeper.release`."""

    host_id: str


class AwaitEnd(msgspec.Struct, frozen=True, tag=True):
    """See `Keeper.ended`."""

    host_id: str


class ReadHosts(msgspec.Struct, frozen=True, tag=True):
    """See `Keeper.readings`."""


class Obey(msgspec.Struct, frozen=True, tag=True):
    """Do what another worker asks."""

    order: Order


class Others(msgspec.Struct, frozen=True, tag=True):
    """What the other workers have that callers may reach."""

    standings: tuple[Standing, ...]


class Open(msgspec.Struct, frozen=True, tag=True):
    """Take connections now, whatever is loaded: nobody else does."""


class Adopt(msgspec.Struct, frozen=True, tag=True):
    """Take the connections of this seat too: nobody is there."""

    seat: int


class Release(msgspec.Struct, frozen=True, tag=True):
    """Somebody is there again."""

    seat: int


class Drain(msgspec.Struct, frozen=True, tag=True):
    """End, once what you have is answered."""


class Ping(msgspec.Struct, frozen=True, tag=True):
    """Answer."""


AboutHosts = Acquire | LetGo | AwaitEnd | ReadHosts
Message = Tell | Say | Opened | Closing | AboutHosts | Obey | Others | Open | Adopt | Release | Drain | Ping


class Told(msgspec.Struct, frozen=True, tag=True):
    """Done, and what was to be said."""

    busy: list[Busy] = []
    address: HostAddress | None = None
    end: HostEnd | None = None
    readings: list[HostReading] = []


class Refused(msgspec.Struct, frozen=True, tag=True):
    """It could not be done."""

    kind: str
    """Of `errors`."""
    reason: str

    @staticmethod
    def of(error: Exception) -> Refused:
        """As it travels."""
        if isinstance(error, MaasdamError):
            return Refused(type(error).__name__, words(error))
        return Refused(ServiceError.__name__, f"{type(error).__name__}: {words(error)}")

    @property
    def error(self) -> MaasdamError:
        """As it was."""
        kind = getattr(errors, self.kind)
        assert issubclass(kind, MaasdamError)
        return remade(kind, self.reason, {})


Answer = Told | Refused
