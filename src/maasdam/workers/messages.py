"""What workers and their supervisor say to each other. Knows shapes; never sockets.

worker     -> Tell, Say, Opened, Closing             -> supervisor
supervisor -> Obey, Others, Open, Adopt, Release, Drain, Ping -> worker
"""

from __future__ import annotations

import msgspec

from maasdam.operations.fleet import Busy, Order, Standing


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


Message = Tell | Say | Opened | Closing | Obey | Others | Open | Adopt | Release | Drain | Ping


class Told(msgspec.Struct, frozen=True, tag=True):
    """Done, and what was to be said."""

    busy: list[Busy] = []


class Refused(msgspec.Struct, frozen=True, tag=True):
    """It could not be done."""

    reason: str


Answer = Told | Refused
