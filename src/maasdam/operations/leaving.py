"""End the process in time, whatever hangs. Knows signals, threads and clocks; never what the service does.

    signal -> requests finish -> what is left is cancelled -> replicas close -> ledger closes -> the process ends
                                                                 \\- something hangs: at the end of the grace the ledger is
                                                                    closed and the process left, since threads can't be ended

A second signal does so at once. Who has finished leaves hard too: Python's own end waits for what libraries' threads do.
What holds Python's lock for ever is ended a little later, by a clock that needs no lock.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable

log = logging.getLogger("maasdam.leaving")

RESERVE_SECONDS = 1.0
"""Of the grace, what is kept for cancelling and closing; of a short grace, a quarter."""
CLOSE_SECONDS = 2.0
"""How long closing the ledger may take when the process is left hard."""
SIGNALS = frozenset([int(signal.SIGTERM), int(signal.SIGINT)])


class Leaving:
    """Counts down from the first signal. One for a process; `begin` and `at_once` may be called from anywhere, often."""

    def __init__(self, grace_seconds: float, close: Callable[[], None], end: Callable[[int], object] = os._exit) -> None:
        """`close` makes durable what must be; `end` leaves the process."""
        self._grace_seconds = grace_seconds
        self._close = close
        self._end = end
        self._lock = threading.Lock()
        self._has_begun = False
        self._is_told = threading.Event()
        """Set by the second signal."""
        self._is_closed = threading.Event()

    @property
    def finish_seconds(self) -> float:
        """How long after the signal requests in flight may take."""
        return self._grace_seconds - min(RESERVE_SECONDS, self._grace_seconds / 4)

    def begin(self) -> None:
        """The service was told to stop: from now on the time runs."""
        with self._lock:
            if self._has_begun:
                return
            self._has_begun = True
        with contextlib.suppress(Exception):  # no stderr to write to
            faulthandler.dump_traceback_later(self._grace_seconds + 2 * CLOSE_SECONDS, exit=True)
        threading.Thread(target=self._count_down, name="leaving", daemon=True).start()

    def at_once(self) -> None:
        """The service was told again: it is left now."""
        self.begin()
        self._is_told.set()

    def watch_signals(self) -> None:
        """Hear of signals also while the main thread hangs. Call it there, within the event loop."""
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        watch = threading.Thread(target=self._hear, args=(ours, theirs, before), name="signals", daemon=True)
        watch.start()

    def _hear(self, ours: socket.socket, theirs: socket.socket, before: int) -> None:
        count = 0
        while numbers := ours.recv(64):
            if before >= 0:
                with contextlib.suppress(OSError):  # the event loop has ended: nobody else listens
                    os.write(before, numbers)  # the event loop waits for it there
            for number in numbers:
                count += number in SIGNALS
            if count:
                self.begin()
            if count > 1:
                self.at_once()

    def _count_down(self) -> None:
        is_told = self._is_told.wait(self._grace_seconds)
        others = sorted({t.name for t in threading.enumerate() if t is not threading.current_thread() and t.is_alive()})
        if not is_told:
            log.error(
                "the service did not stop within %g s: leaving it; threads left: %s", self._grace_seconds, ", ".join(others)
            )
        closing = threading.Thread(target=self._close_records, name="closing", daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)
        if not self._is_closed.is_set():
            log.error("the ledger could not be closed within %g s", CLOSE_SECONDS)
        leave(0 if self._is_closed.is_set() else 1, self._end)

    def _close_records(self) -> None:
        try:
            self._close()
            self._is_closed.set()
        except Exception:
            log.exception("the ledger did not close")


def leave(status: int = 0, end: Callable[[int], object] = os._exit) -> None:
    """End the process here and now. What must be durable is closed already."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    end(status)
