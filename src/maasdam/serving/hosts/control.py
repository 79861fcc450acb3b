"""What keeper and host say to each other. Plain messages; a host that lies here harms itself alone."""

from __future__ import annotations

from msgspec import Struct

from maasdam.serving.hosts.wire import Amount, Count, Text


class End(Struct, array_like=True, tag="end"):
    """Nobody holds the host any more: finish what is in flight, and end."""


class Depart(Struct, array_like=True, tag="depart"):
    """Ask everybody to let go, unless there is a request: the host's room is wanted, or it was idle for long.

    Answered with how the host is, which says whether it leaves.
    """

    reason: Text


class Look(Struct, array_like=True, tag="look"):
    """Say how you are."""


class Status(Struct, array_like=True, tag="status"):
    """How the host is, told twice a second and when it is asked."""

    in_flight: Count = 0
    """Requests, of everybody."""
    idle_seconds: Amount = 0.0
    """Since the last request, or since it has loaded."""
    stuck_seconds: Amount = 0.0
    """That it has worked without anything coming of it, or one batch has taken so far."""
    is_ready: bool = False
    is_used: bool = False
    """Whether there was a request since it has loaded."""
    is_leaving: bool = False
    is_answer: bool = False
    """To a question: from the event loop, which does not hang then."""
    loaded_bytes: Count = 0
    """What its process held once it had loaded; 0: it has not."""


ToHost = End | Depart | Look
FromHost = Status
