"""Who leaves where memory is short. Knows sizes, pins and when a model was asked last; refuses to know processes.

a load of `needs` bytes -> fits, or the least recently used idle ones leave until it does
                        -> who could leave is at work: it is tried again in a moment
                        -> nobody may leave: NoRoom, saying who holds the room
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from maasdam.errors import NoRoom


@dataclass(frozen=True, slots=True)
class Resident:
    """One host, loaded or loading."""

    id: str
    name: str
    """NAME:VERSION."""
    bytes: int
    """Measured; of one that loads still, what it is expected to take."""
    last_used: float
    """Monotonic seconds."""
    is_busy: bool = False
    """It loads, or has a request in flight."""
    is_pinned: bool = False

    @property
    def may_leave(self) -> bool:
        """Whether it may go now."""
        return not (self.is_busy or self.is_pinned)


class Room:
    """The memory that hosts may take together."""

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes

    def missing(self, residents: Sequence[Resident], needs: int = 0) -> int:
        """How many bytes too many there are, with `needs` more; 0 where there is room."""
        return max(0, sum(one.bytes for one in residents) + needs - self.budget_bytes)

    def leaving(self, residents: Sequence[Resident], needs: int = 0) -> list[Resident] | None:
        """Who leaves so that there is room for `needs` more, the least recently used first; None: not before some are idle.

        Raises NoRoom where not even all that is not pinned would do.
        """
        missing = self.missing(residents, needs)
        leaving: list[Resident] = []
        for one in sorted((one for one in residents if one.may_leave), key=lambda one: one.last_used):
            if missing <= 0:
                break
            leaving.append(one)
            missing -= one.bytes
        if missing <= 0:
            return leaving
        if missing > sum(one.bytes for one in residents if one.is_busy and not one.is_pinned):
            raise NoRoom(self.told(residents, needs))
        return None

    def told(self, residents: Sequence[Resident], needs: int) -> str:
        """Who holds the room that `needs` bytes lack, as a sentence."""
        largest = sorted(residents, key=lambda one: -one.bytes)
        held = ", ".join(f"{one.name} {_mb(one.bytes)}{_why(one)}" for one in largest) or "nobody"
        return f"it needs {_mb(needs)} of the {_mb(self.budget_bytes)} that memory_budget allows, held by: {held}"


def _mb(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"


def _why(one: Resident) -> str:
    return " (pinned)" if one.is_pinned else " (at work)" if one.is_busy else ""
