"""Work that may run for ever, take all memory or crash, in a process that can be ended. Knows limits.

Refuses to know what the work is. What it is given and gives back must be picklable, its functions importable.

    run_limited(function, ...) -> child of the fork server, limits set -> ready -> progress ... -> result | error

A child that did its work well waits for the next, so that libraries are imported once; one that failed, was ended or has
grown is not used again.

Memory is limited twice: the system refuses a request for more than the limit (RLIMIT_DATA), and what is resident, and no
file's, is watched. Time is that since the work last said how far it is: long work tells, endless work does not.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import pickle
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Literal, TypeVar, cast, get_args

from maasdam.children.failures import PackedError, packed, unpacked
from maasdam.children.forked import Forked, surround, surroundings
from maasdam.children.usage import cpu_seconds, resident_bytes
from maasdam.errors import Crashed, LimitExceeded, MaasdamError, ServiceError

T = TypeVar("T")
Tell = Callable[[str, int, int | None], None]

READY_SECONDS = 60.0
"""A child that has not said by then that it is ready never will."""
LOOK_SECONDS = 0.1
"""How often time and memory are looked at."""
REUSED_BELOW = 0.25
"""A child that holds more than this part of its memory is not used again."""


@dataclass(frozen=True, slots=True)
class ChildLimits:
    """What work may take. None is unlimited."""

    seconds: float | None = None
    """Since it last said how far it is."""
    cpu_seconds: float | None = None
    """The same, of all its threads together."""
    memory_bytes: int | None = None
    settings: tuple[str, str, str] = ("step_seconds", "step_cpu_seconds", "step_memory_bytes")
    """The settings that these come from, for messages."""


def run_limited(function: Callable[..., T], *args: Any, limits: ChildLimits, progress: Tell | None = None, **named: Any) -> T:
    """What `function(*args, **named)` gives, run in a child. With `progress` the function gets one too, as `progress`.

    Raises what the function raises, with its type; LimitExceeded, which names the limit; Crashed, which names the signal.
    An exception here (Ctrl-C, a `progress` that raises) ends the child.
    """
    child = _take(limits)
    try:
        given = child.call(function, args, named, progress)
    except BaseException:
        child.kill()
        raise
    _give_back(child)
    return given


class Child:
    """One limited process. Calls run one after another; `kill` may come from any thread."""

    def __init__(self, limits: ChildLimits, libraries: Sequence[str] | None = None) -> None:
        """Start it and wait until it is ready. `libraries`: see `Forked`. Raises ServiceError."""
        self.limits = limits
        self._connection, theirs = multiprocessing.Pipe()
        self._process = Forked(_serve, (theirs,), name="maasdam-child", memory_bytes=limits.memory_bytes, libraries=libraries)
        theirs.close()
        try:
            if not self._connection.poll(READY_SECONDS) or self._connection.recv() != _READY:
                raise EOFError
        except (EOFError, OSError) as error:
            self.kill()
            raise ServiceError("a process for limited work could not be started; is the machine out of memory?") from error

    @property
    def is_alive(self) -> bool:
        """Whether it can be called."""
        return self._process.is_alive

    @property
    def resident_bytes(self) -> int:
        """Memory that it holds, files that it only reads left out."""
        return self._process.resident_bytes

    def call(self, function: Callable[..., T], args: tuple[Any, ...], named: Mapping[str, Any], progress: Tell | None) -> T:
        """Run one function in it. See `run_limited`."""
        self._connection.send((function, args, dict(named), progress is not None, surroundings()))
        watch = _Watch(self._process.pid, self.limits)
        stage = ""
        while True:
            try:
                message = self._connection.recv() if self._connection.poll(LOOK_SECONDS) else (_NOTHING, None)
            except (EOFError, OSError):
                raise self._death(stage) from None
            kind: _Kind = message[0]
            value: Any = message[1]
            if kind == _PROGRESS and progress is not None:
                watch.begin_again()
                stage = f" at '{value[0]}'"
                progress(*value)
            elif kind == _DONE:
                return cast(T, value)
            elif kind == _FAILED:
                raise _unpacked(value, self.limits)
            watch.look(stage)

    def kill(self) -> None:
        """End it and all that it started, whatever it does."""
        self._process.kill()
        self._connection.close()

    def strike(self) -> None:
        """The same from another thread, while it is being called: the call raises Crashed."""
        with contextlib.suppress(ValueError):  # it has just ended
            if self._process.is_alive:
                self._process.strike()

    def _death(self, stage: str) -> MaasdamError:
        how = self._process.end()
        limit = self.limits.memory_bytes
        room = "" if limit is None else f" (it might take {limit / 1e9:,.1f} GB: setting {self.limits.settings[2]})"
        return Crashed(f"the work {how}{stage}{room}; the model's files, or the library that opened them, are at fault")


class _Watch:
    """Time and memory of one call."""

    def __init__(self, pid: int, limits: ChildLimits) -> None:
        self._pid, self._limits = pid, limits
        self._looked = time.monotonic()
        self.begin_again()

    def begin_again(self) -> None:
        """The work said how far it is."""
        self._since = time.monotonic()
        self._cpu_before = cpu_seconds(self._pid) if self._limits.cpu_seconds is not None else 0.0

    def look(self, stage: str) -> None:
        """Raise LimitExceeded where a limit is crossed, naming it and what the work was at."""
        limits, now = self._limits, time.monotonic()
        if now - self._looked < LOOK_SECONDS / 2:
            return
        self._looked = now
        if limits.memory_bytes is not None and resident_bytes(self._pid) > limits.memory_bytes:
            raise _over_memory(limits)
        if limits.seconds is not None and now - self._since > limits.seconds:
            raise LimitExceeded(
                f"nothing came of the work{stage} for {limits.seconds:,.0f} s, its limit of time "
                f"(setting {limits.settings[0]}); it was ended"
            )
        if limits.cpu_seconds is not None and cpu_seconds(self._pid) - self._cpu_before > limits.cpu_seconds:
            raise LimitExceeded(
                f"nothing came of the work{stage} for {limits.cpu_seconds:,.0f} s of computing, its limit (setting "
                f"{limits.settings[1]}); it was ended"
            )


def _over_memory(limits: ChildLimits) -> LimitExceeded:
    assert limits.memory_bytes is not None
    return LimitExceeded(
        f"the work needs more memory than its limit of {limits.memory_bytes / 1e9:,.1f} GB (setting {limits.settings[2]}); "
        "it was ended"
    )


_idle: list[Child] = []
_idle_lock = threading.Lock()


def _take(limits: ChildLimits) -> Child:
    with _idle_lock:
        child = _idle.pop() if _idle else None
    if child is not None:
        if child.is_alive and child.limits.memory_bytes == limits.memory_bytes:
            child.limits = limits
            return child
        child.kill()
    return Child(limits)


def _give_back(child: Child) -> None:
    limit = child.limits.memory_bytes
    if limit is None or child.resident_bytes < limit * REUSED_BELOW:
        with _idle_lock:
            if not _idle:
                _idle.append(child)
                return
    child.kill()


_Kind = Literal["ready", "progress", "done", "failed", "nothing"]
_READY, _PROGRESS, _DONE, _FAILED, _NOTHING = get_args(_Kind)


def _unpacked(failure: PackedError, limits: ChildLimits) -> BaseException:
    """The exception as it was, with what the child's traceback said as its cause."""
    if failure.is_memory and limits.memory_bytes is not None and failure.name != LimitExceeded.__name__:
        error: BaseException = _over_memory(limits)
    else:
        error = unpacked(failure)
    error.__cause__ = ServiceError(f"in a child process:\n{failure.trace}")
    return error


def _serve(connection: Connection) -> None:
    """In the child: do what comes until nothing comes."""
    connection.send(_READY)
    while True:
        try:
            function, args, named, tells, around = connection.recv()
        except (EOFError, OSError):
            break
        except BaseException as error:
            connection.send((_FAILED, packed(error)))
            continue
        surround(*around)
        if tells:
            named["progress"] = _teller(connection)
        try:
            answer = (_DONE, function(*args, **named))
        except BaseException as error:
            answer = (_FAILED, packed(error))
        try:
            connection.send(answer)
        except (pickle.PicklingError, TypeError, AttributeError, MemoryError) as error:
            connection.send((_FAILED, packed(error)))
        except (BrokenPipeError, OSError):
            break
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()


def _teller(connection: Connection) -> Tell:
    lock = threading.Lock()

    def tell(stage: str, done: int = 0, total: int | None = None) -> None:
        with lock:
            connection.send((_PROGRESS, (stage, done, total)))

    return tell
