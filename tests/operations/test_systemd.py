"""Sockets and messages of systemd's: taken once, and sent as its manual says."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from maasdam.operations.systemd import Notifier, inherited, is_given

TOLD = """
import os, sys
os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": sys.argv[3], "LISTEN_FDNAMES": "web:grpc"}
from maasdam.errors import InvalidInput
from maasdam.operations.systemd import inherited
try:
    print([(name, one.getsockname()[1], one.get_inheritable()) for name, one in inherited()], "LISTEN_FDS" in os.environ)
except InvalidInput as error:
    print(error)
"""


def test_sockets_come_with_their_names_and_once(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as web, socket.create_server(("127.0.0.1", 0)) as grpc, socket.socket() as none:

        def told(second: socket.socket, count: int = 2) -> str:
            numbers = (web.fileno(), second.fileno())
            words = [sys.executable, "-c", TOLD, *map(str, (*numbers, count))]
            return subprocess.run(words, pass_fds=numbers, capture_output=True, text=True, check=True).stdout.strip()

        ports = [one.getsockname()[1] for one in (web, grpc)]
        assert told(grpc) == f"[('web', {ports[0]}, False), ('grpc', {ports[1]}, False)] False"
        assert told(grpc, 1) == f"[('web', {ports[0]}, False)] False"
        assert "descriptor 4, which does not listen" in told(none)


def test_what_is_another_process_is_not_taken() -> None:
    environ = {"LISTEN_PID": "1", "LISTEN_FDS": "1"}
    assert not is_given(environ) and inherited(environ) == [] and environ == {}
    assert inherited({}) == []


@pytest.fixture(params=["path", "abstract"])
def heard(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    name = str(tmp_path / "notify") if request.param == "path" else f"@maasdam-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
        one.bind(name.replace("@", "\0", 1) if request.param == "abstract" else name)
        one.settimeout(5)
        yield name, one


def test_messages_are_as_the_manual_says(heard: tuple[str, socket.socket]) -> None:
    name, one = heard
    environ = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": str(os.getpid())}
    notifier = Notifier(environ)
    assert environ == {}, "a child is not to speak for the service"
    notifier.ready("2 models answer")
    assert one.recv(999) == b"READY=1\nSTATUS=2 models answer"
    for _ in range(5):
        notifier.alive()
    assert one.recv(999) == b"WATCHDOG=1"
    notifier.stopping()
    assert one.recv(999).startswith(b"STOPPING=1\n"), "it is told of life as often as it asks, not more"


def test_who_reads_late_still_hears_that_it_is_ready(heard: tuple[str, socket.socket]) -> None:
    name, one = heard
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as others, contextlib.suppress(BlockingIOError):
        others.setblocking(False)
        for _ in range(10_000):
            others.sendto(b"of others", name.replace("@", "\0", 1))
        raise AssertionError("its queue has no end")
    notifier, told = Notifier({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "1000000"}), list[bytes]()
    notifier.alive()
    reading = threading.Timer(0.2, lambda: told.extend(iter(partial(one.recv, 999), b"READY=1\nSTATUS=")))
    reading.start()
    notifier.ready("")
    reading.join()
    assert set(told) == {b"of others"}, "what is told often waits for nobody"


def test_nobody_to_tell_is_no_trouble(tmp_path: Path) -> None:
    for environ in ({}, {"NOTIFY_SOCKET": str(tmp_path / "gone")}, {"WATCHDOG_USEC": "5", "WATCHDOG_PID": "1"}):
        notifier = Notifier(environ)
        notifier.ready("")
        notifier.alive()
        notifier.stopping()
