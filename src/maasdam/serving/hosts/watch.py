"""A thread that tells how its host is, and ends it once nobody is left. Knows sockets and time; works while the loop hangs."""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterable

from maasdam.children.usage import share_bytes
from maasdam.serving.hosts.channel import packed
from maasdam.serving.hosts.control import Status

LOOK_SECONDS = 0.5
LOOKS_A_MEASURE = 10
"""Memory is measured every so many looks: it takes a millisecond."""


class HostWatch:
    """Of one host process, started at once."""

    def __init__(
        self,
        control: socket.socket,
        status: Callable[[float], Status],
        callers: Callable[[], Iterable[int]],
        tidy_up: Callable[[], None],
    ) -> None:
        """`control` leads to the keeper; `status` is given the seconds since it was asked last; `callers` are descriptors.

        `tidy_up` is called before the process is ended here.
        """
        self._tidy_up = tidy_up
        self._control = control
        self._status = status
        self._callers = callers
        self.memory_bytes: int | None = None
        threading.Thread(target=self._look, name="watch", daemon=True).start()

    def measure(self) -> int:
        """What this process holds now."""
        self.memory_bytes = share_bytes(os.getpid())
        return self.memory_bytes

    def _look(self) -> None:
        strikes = looks = 0
        before = time.monotonic()
        while True:
            time.sleep(LOOK_SECONDS)
            now = time.monotonic()
            self._tell(self._status(now - before))
            before = now
            looks += 1
            if looks % LOOKS_A_MEASURE == 0:
                self.measure()
            is_alone = _is_gone(self._control.fileno()) and all(map(_is_gone, list(self._callers())))
            strikes = strikes + 1 if is_alone else 0
            if strikes > 1:
                self._tidy_up()
                os._exit(0)

    def _tell(self, status: Status) -> None:
        try:
            self._control.send(packed(status), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError:  # it is gone, or does not read
            return


def _is_gone(handle: int) -> bool:
    if handle < 0:
        return True
    poll = select.poll()
    poll.register(handle, select.POLLRDHUP)
    return any(event & (select.POLLHUP | select.POLLRDHUP | select.POLLERR | select.POLLNVAL) for _, event in poll.poll(0))
