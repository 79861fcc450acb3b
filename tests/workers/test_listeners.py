"""Listeners of one address: each gets its part, and no other program does."""

from __future__ import annotations

import select
import socket

import pytest

from maasdam.api.listening import bound_socket
from maasdam.errors import InvalidInput
from maasdam.workers import listeners


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_connections_are_spread_and_another_program_gets_none(host: str) -> None:
    try:
        bound = bound_socket(host, 0, listens=False)
    except InvalidInput as error:
        pytest.skip(f"no such address here: {error}")
    spread = listeners.spread(bound, 3)
    port = bound.getsockname()[1]
    counts = [0, 0, 0]
    with socket.socket(bound.family) as foreign:
        foreign.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(OSError, match="in use"):
            foreign.bind((host, port))
    callers = [socket.create_connection((host, port)) for _ in range(90)]
    while sum(counts) < len(callers):
        for ready in select.select(spread, [], [], 10)[0]:
            counts[spread.index(ready)] += 1
            ready.accept()[0].close()
    assert min(counts) > 5, counts
    for one in (*spread, *callers):
        one.close()


def test_an_address_that_is_taken_is_refused_also_where_it_is_shared() -> None:
    spread = listeners.spread(bound_socket("127.0.0.1", 0, listens=False), 2)
    with pytest.raises(InvalidInput, match="in use"):
        bound_socket("127.0.0.1", spread[0].getsockname()[1], listens=False)
    for one in spread:
        one.close()


def test_an_address_that_is_held_is_no_other_programs_also_before_anybody_listens_there() -> None:
    held = bound_socket("127.0.0.1", 0, listens=False)
    port = held.getsockname()[1]
    with pytest.raises(InvalidInput, match="in use"):
        bound_socket("127.0.0.1", port)
    listeners.share(held)
    with pytest.raises(InvalidInput, match="in use"):
        bound_socket("127.0.0.1", port)
    with socket.socket() as ours:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        ours.bind(("127.0.0.1", port))
        ours.listen()
    held.close()


def test_a_service_begins_where_connections_of_the_one_before_are_not_over() -> None:
    before = bound_socket("127.0.0.1", 0)
    address = before.getsockname()
    caller = socket.create_connection(address)
    before.setblocking(True)
    before.accept()[0].close()  # the side that closes first waits a minute
    before.close()
    assert caller.recv(1) == b""
    caller.close()
    for one in listeners.spread(bound_socket(address[0], address[1], listens=False), 2):
        one.close()


def test_where_a_system_gives_all_to_one_several_workers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listeners.sys, "platform", "darwin")
    with pytest.raises(InvalidInput, match="darwin; start one"):
        listeners.check_spread()
