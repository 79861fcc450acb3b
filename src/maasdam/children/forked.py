"""A process that the fork server made. Knows signals, memory's limit and stderr; never what the process is for.

The fork server (https://docs.python.org/3/library/multiprocessing.html) has imported libraries, and has opened no engine:
nothing with an engine's threads is ever forked, and what libraries import starts none (`maasdam/__init__.py`; OpenBLAS's end
before a fork). What a process of it is given must be picklable, its function importable.
"""

from __future__ import annotations

import atexit
import codecs
import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import traceback
import types
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from maasdam.children.usage import resident_bytes

LIBRARIES = ("numpy", "onnx", "onnxruntime", "openvino", "nncf", "torch", "transformers")
"""What the fork server imports, where nobody says what: importing them takes longer than most work."""
Surroundings = tuple[Mapping[str, str], str, int]
"""Environment, working folder and umask."""
_DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)


class Forked:
    """One process. `kill` may come from any thread."""

    def __init__(
        self,
        work: Callable[..., None],
        args: tuple[Any, ...],
        *,
        name: str,
        memory_bytes: int | None = None,
        outlives: bool = False,
        libraries: Sequence[str] | None = None,
    ) -> None:
        """Start it: it runs `work(*args)` and ends. Blocks until it is forked; raises OSError, EOFError where it can't be.

        `memory_bytes`: the system refuses it more. `outlives`: it is not killed when this process ends in whatever way.
        `libraries`: what the fork server imports if it is not running yet; None: those of LIBRARIES that this process has.
        """
        self.memory_bytes = memory_bytes
        reader, writer = multiprocessing.Pipe(duplex=False)
        context = multiprocessing.get_context("forkserver")
        with _without_main():
            if libraries is None:
                libraries = [library for library in LIBRARIES if library in sys.modules]
            context.set_forkserver_preload([__name__, *libraries])  # ours first: it settles what libraries do when imported
            given = (writer, memory_bytes, outlives, surroundings(), work, args)
            self._process = context.Process(target=_begin, args=given, name=name)
            self._process.start()
        writer.close()
        assert self._process.pid is not None
        self.pid = self._process.pid
        self._status: int | None = None
        _living.add(self)
        self._repeating = threading.Thread(target=_repeat, args=(reader,), name="child-stderr", daemon=True)
        self._repeating.start()

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended."""
        return self._status is None and self._process.is_alive()

    @property
    def sentinel(self) -> int:
        """A descriptor that can be read from once it has ended."""
        return self._process.sentinel

    @property
    def resident_bytes(self) -> int:
        """Memory that it holds, files that it only reads left out."""
        return resident_bytes(self.pid)

    def kill(self) -> None:
        """End it and all that it started, whatever it does."""
        if self.is_alive:
            self.strike()
        self._joined()
        self._repeating.join(1)  # its last words

    def strike(self) -> None:
        """The same, without waiting until it has ended: it must be known not to have."""
        for kill in (os.killpg, os.kill):  # it may not have made its group yet
            with contextlib.suppress(ProcessLookupError, PermissionError):
                kill(self.pid, signal.SIGKILL)

    def _joined(self) -> int | None:
        """Its status, once it has one; its descriptors are closed then."""
        if self._status is None:
            self._process.join(5)
            self._status = self._process.exitcode
            if self._status is not None:
                self._process.close()
        return self._status

    def end(self) -> str:
        """How it ended, in words; waits a moment for it to."""
        code = self._joined()
        if code is None or code >= 0:
            return f"ended by itself with status {code}"
        if -code == signal.SIGKILL:
            return "was ended by the system (SIGKILL), as it does without memory"
        return f"crashed with {signal.Signals(-code).name if -code in set(signal.Signals) else f'signal {-code}'}"


def surroundings() -> Surroundings:
    """Of this process, as they are now: the fork server has those of its start."""
    mask = os.umask(0o077)
    os.umask(mask)
    return dict(os.environ), str(Path.cwd()), mask


def surround(environ: Mapping[str, str], folder: str, umask: int) -> None:
    """Take over another process's surroundings."""
    if dict(os.environ) != environ:
        os.environ.clear()
        os.environ.update(environ)
    with contextlib.suppress(OSError):
        os.chdir(folder)
    os.umask(umask)


_living: weakref.WeakSet[Forked] = weakref.WeakSet()
_start_lock = threading.Lock()


@atexit.register
def _end_all() -> None:
    """Before multiprocessing waits for them, as it does at a process's end."""
    for process in list(_living):
        process.kill()


@contextmanager
def _without_main() -> Iterator[None]:
    """Children would run this process's main script again, to find functions in it. None of ours are there."""
    with _start_lock:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = types.ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main


def _repeat(reader: Connection) -> None:
    """What libraries in the child print, on this process's stderr: no name of a model's making drives a terminal."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    with contextlib.suppress(OSError, ValueError):  # until the child, and what it started, are gone, or stderr is
        while data := os.read(reader.fileno(), 65536):
            text = decoder.decode(data)
            sys.stderr.write("".join(c if c.isprintable() or c in "\n\t" else "" if c == "\r" else "\ufffd" for c in text))
            sys.stderr.flush()
    reader.close()


def _begin(
    writer: Connection,
    memory_bytes: int | None,
    outlives: bool,
    around: Surroundings,
    work: Callable[..., None],
    args: tuple[Any, ...],
) -> None:
    """In the process."""
    import resource

    os.setsid()  # Ctrl-C is the parent's to hear, and what is started here can be ended with it
    if sys.platform == "linux":
        # The fork server ends with the process that uses it, unless a child still holds the pipe by which it tells
        os.close(forkserver._forkserver._forkserver_alive_fd)  # type: ignore[attr-defined]  # there is no other way to it
        if not outlives:
            ctypes.CDLL(None).prctl(_DIES_WITH_PARENT, signal.SIGKILL)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    for standard in (1, 2):  # stdout is for the parent's answer alone
        os.dup2(writer.fileno(), standard)
    writer.close()
    multiprocessing.set_start_method(None, force=True)  # as libraries have it elsewhere: what they share needs no tracker then
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory_bytes is not None:
        with contextlib.suppress(ValueError, OSError):  # a lower limit is set from outside already
            resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    surround(*around)
    status = 0
    try:
        work(*args)
    except BaseException:
        traceback.print_exc()
        status = 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(status)  # not by the interpreter's end, which waits for engines' threads
