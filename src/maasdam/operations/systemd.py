"""What systemd gives a service and wants to hear of it. Knows its environment and one datagram; never what a service does.

    LISTEN_FDS, LISTEN_PID, LISTEN_FDNAMES -> `inherited`: sockets that listen already, by name   (sd_listen_fds(3))
    NOTIFY_SOCKET, WATCHDOG_USEC           -> `Notifier`: ready, stopping, alive               (sd_notify(3))

Without systemd there are no such variables, and nothing happens.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import MutableMapping
from contextlib import suppress

from maasdam.errors import InvalidInput

FIRST = 3
"""Descriptor of the first socket that is given."""
GRPC = "grpc"
"""FileDescriptorName= of a socket that is for gRPC; every other one is for HTTP."""
TELL_SECONDS = 1.0
"""How long systemd is waited for that has much to read: what is not told again must arrive."""


def inherited(environ: MutableMapping[str, str] = os.environ) -> list[tuple[str, socket.socket]]:
    """The sockets that this process was started with, with their names; the variables are taken out: they are no child's.

    Raises InvalidInput for one that is no listening stream socket.
    """
    pid, count, names = (environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    if pid != str(os.getpid()) or not count.isdigit():
        return []
    named = names.split(":") if names else []
    return [(named[i] if i < len(named) else "", _listener(FIRST + i)) for i in range(int(count))]


def is_given(environ: MutableMapping[str, str] = os.environ) -> bool:
    """Whether this process was started with sockets."""
    return environ.get("LISTEN_PID") == str(os.getpid())


def _listener(number: int) -> socket.socket:
    os.set_inheritable(number, False)
    try:
        one = socket.socket(fileno=number)
        is_listening = one.type == socket.SOCK_STREAM and one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise InvalidInput(f"systemd gave descriptor {number}, which is no socket: {error.strerror}") from error
    if not is_listening or one.family not in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
        raise InvalidInput(f"systemd gave descriptor {number}, which does not listen for streams; use ListenStream=, Accept=no")
    one.setblocking(False)
    return one


class Notifier:
    """Tells systemd how the service is. One that can't be told is no trouble of the service's."""

    def __init__(self, environ: MutableMapping[str, str] = os.environ) -> None:
        """Takes the variables out: they are no child's."""
        self._address = environ.pop("NOTIFY_SOCKET", "")
        usec, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
        is_watched = usec.isdigit() and pid in ("", str(os.getpid()))
        self._every: float | None = int(usec) / 2e6 if is_watched and int(usec) else None
        self._told_at = 0.0

    def ready(self, status: str) -> None:
        """Callers may come. `status` is one line for people."""
        self._tell(f"READY=1\nSTATUS={status}")

    def stopping(self) -> None:
        """What is in flight finishes, nothing new begins."""
        self._tell("STOPPING=1\nSTATUS=finishing what is in flight")

    def alive(self) -> None:
        """Call it often; it is told as often as systemd wants it."""
        if self._every is not None and time.monotonic() - self._told_at >= self._every:
            self._told_at = time.monotonic()
            self._tell("WATCHDOG=1", seconds=0.0)  # there are as many as fit

    def _tell(self, text: str, seconds: float = TELL_SECONDS) -> None:
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as one:
            one.settimeout(seconds)
            one.sendto(text.encode(), address)
