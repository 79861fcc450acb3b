"""Who leaves where memory is short."""

from __future__ import annotations

import pytest

from maasdam.errors import NoRoom
from maasdam.serving.hosts.room import Resident, Room


def names(leaving: list[Resident] | None) -> list[str] | None:
    return None if leaving is None else [one.name for one in leaving]


def host(name: str, size: int, last_used: float, **how: bool) -> Resident:
    return Resident(f"host-{name}-{last_used}", name, size, last_used, **how)


def test_nobody_leaves_while_there_is_room() -> None:
    assert Room(100).leaving([host("a:1", 60, 1)], 40) == []
    assert Room(100).missing([host("a:1", 60, 1)], 40) == 0


def test_the_least_recently_used_leave_and_no_more_than_needed() -> None:
    here = [host("a:1", 30, 3), host("b:1", 30, 1), host("c:1", 30, 2)]
    assert names(Room(100).leaving(here, 30)) == ["b:1"]
    assert names(Room(100).leaving(here, 41)) == ["b:1", "c:1"]
    assert names(Room(100).leaving(here, 100)) == ["b:1", "c:1", "a:1"]


def test_what_is_pinned_never_leaves() -> None:
    here = [host("a:1", 50, 1, is_pinned=True), host("b:1", 50, 2)]
    assert names(Room(100).leaving(here, 50)) == ["b:1"]
    with pytest.raises(NoRoom, match=r"needs 0 MB .* a:1 0 MB \(pinned\)"):
        Room(100).leaving(here, 51)


def test_what_is_at_work_never_leaves_and_is_waited_for() -> None:
    here = [host("a:1", 50, 1, is_busy=True), host("b:1", 50, 2)]
    assert names(Room(100).leaving(here, 50)) == ["b:1"]
    assert Room(100).leaving(here, 51) is None


def test_what_is_pinned_and_at_work_is_not_waited_for() -> None:
    here = [host("a:1", 50, 1, is_busy=True, is_pinned=True), host("b:1", 50, 2)]
    with pytest.raises(NoRoom):
        Room(100).leaving(here, 51)


def test_a_budget_smaller_than_the_model_is_told() -> None:
    with pytest.raises(NoRoom, match="needs 3,000 MB of the 2,000 MB that memory_budget allows, held by: nobody"):
        Room(2_000_000_000).leaving([], 3_000_000_000)


def test_what_takes_more_than_was_expected_sends_others_away() -> None:
    here = [host("a:1", 50, 1), host("b:1", 80, 2, is_busy=True)]
    assert names(Room(100).leaving(here)) == ["a:1"]
    alone = [host("b:1", 180, 2, is_busy=True)]
    assert Room(100).leaving(alone) is None
