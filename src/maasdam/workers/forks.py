"""The fork server, as a fork of the supervisor itself. Knows multiprocessing's own; never what is forked.

Both need SQL and more: as a fork it has that already, and shares it with the supervisor. It is begun before the supervisor has
a thread, a database or a socket, and imports the rest while the supervisor opens those. Should it die, multiprocessing starts
another, as it does everywhere else.
"""

from __future__ import annotations

import gc
import importlib
import os
import signal
import socket
import threading
import traceback
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import connection, forkserver, util
from pathlib import Path
from typing import Any

PRELOADED = "maasdam.workers.preloaded"


class ForkServer:
    """Make it while this process has one thread; it is multiprocessing's from then on.

    Where there are more threads, multiprocessing starts its own, as after this one's death.
    """

    def __init__(self) -> None:
        self._writer: int | None = None
        if threading.active_count() > 1:  # one of them may hold a lock, which a fork would hold for ever
            return
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(connection.arbitrary_address("AF_UNIX"))  # type: ignore[attr-defined]  # as multiprocessing itself does
        listener.listen()
        reader, self._writer = os.pipe()
        alive_reader, alive_writer = os.pipe()
        gc.collect()
        gc.freeze()  # a collection writes to all that it walks through, which would be shared no more
        pid = os.fork()
        if pid == 0:
            _serve(listener, reader, alive_reader)
        for other in (reader, alive_reader):
            os.close(other)
        its: Any = forkserver._forkserver  # there is no other way to it
        its._forkserver_address, its._forkserver_alive_fd, its._forkserver_pid = listener.getsockname(), alive_writer, pid
        listener.close()

    def complete(self, libraries: Sequence[str]) -> None:
        """Have it import these too, and begin to fork. Once."""
        if self._writer is None:
            return
        with suppress(BrokenPipeError):  # it died: another imports them
            os.write(self._writer, "\n".join(libraries).encode())
        os.close(self._writer)


def _serve(listener: socket.socket, reader: int, alive: int) -> None:
    """In the fork; does not return."""
    try:
        for number in (signal.SIGINT, signal.SIGTERM):  # it ends with the last process that uses it
            signal.signal(number, signal.SIG_IGN)
        others = {int(path.name) for path in Path("/proc/self/fd").iterdir()} - {0, 1, 2, listener.fileno(), reader, alive}
        for other in others:  # also what systemd gave the supervisor
            with suppress(OSError):  # the one by which this was read
                os.close(other)
        util._close_stdin()  # type: ignore[attr-defined]  # as forkserver.main does, later
        importlib.import_module(PRELOADED)
        names = b""
        while read := os.read(reader, 4096):
            names += read
        os.close(reader)
        for name in names.decode().split():
            with suppress(ImportError):  # whoever needs it says so
                importlib.import_module(name)
        gc.collect()
        gc.freeze()
        forkserver.main(listener.detach(), alive, [])
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(0)
