"""What keeper and host say to each other. Plain messages; a host that lies here harms itself alone."""

from __future__ import annotations

from msgspec import Struct

from maasdam.serving.hosts.wire import Amount, Count, Text


class End(Struct, array_like=True, tag="end"):
    """Nobody holds the host any more: finish what is in flight, and end."""


class Depart(Struct, array_like=True, tag="depart"):
    """Ask everybody to let go: the host's room is wanted, or it was idle for long."""

    reason: Text


class Status(Struct, array_like=True, tag="status"):
    """How the host is, told twice a second."""

    in_flight: Count = 0
    """Requests, of everybody."""
    idle_seconds: Amount = 0.0
    """Since the last request, or since it has loaded."""
    stuck_seconds: Amount = 0.0
    """That it has worked without anything coming of it, or one batch has taken so far."""
    is_ready: bool = False


ToHost = End | Depart
FromHost = Status
