"""Processes of ours: work that may run for ever, take all memory or crash is in one that can be ended. Knows limits.

Refuses to know what the work is. What it is given and gives back must be picklable, its functions importable.

    run_limited(function, ...) -> child of the fork server, limits set -> ready -> progress ... -> result | error

The fork server (https://docs.python.org/3/library/multiprocessing.html) has imported what this process had, and has opened
no engine: nothing with an engine's threads is ever forked. A child that did its work well waits for the next, so that
libraries are imported once; one that failed, was ended or has grown is not used again.

Memory is limited twice: the system refuses a request for more than the limit (RLIMIT_DATA), and what is resident, and no
file's, is watched. Time is that since the work last said how far it is: long work tells, endless work does not.
"""

from __future__ import annotations

import atexit
import codecs
import contextlib
import ctypes
import importlib
import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
import types
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any, Literal, TypeVar, cast, get_args

from maasdam.errors import Crashed, LimitExceeded, MaasdamError, ServiceError

T = TypeVar("T")
Tell = Callable[[str, int, int | None], None]

READY_SECONDS = 60.0
"""A child that has not said by then that it is ready never will."""
LOOK_SECONDS = 0.1
"""How often time and memory are looked at."""
LIBRARIES = ("numpy", "onnx", "onnxruntime", "openvino", "nncf", "torch", "transformers")
"""What the fork server imports too, where this process has: importing them takes longer than most work."""
REUSED_BELOW = 0.25
"""A child that holds more than this part of its memory is not used again."""
_NO_MEMORY = re.compile(
    r"bad.?alloc|(un|not |n't )(be )?(able to )?allocate|failed to allocate|out of memory|RESOURCE_EXHAUSTED", re.I
)
"""How libraries say that they got no memory."""
_DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)


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

    def __init__(self, limits: ChildLimits) -> None:
        """Start it and wait until it is ready. Raises ServiceError."""
        self.limits = limits
        self._connection, theirs = multiprocessing.Pipe()
        reader, writer = multiprocessing.Pipe(duplex=False)
        context = multiprocessing.get_context("forkserver")
        with _without_main():
            context.set_forkserver_preload([name for name in LIBRARIES if name in sys.modules] + [__name__])
            self._process = context.Process(target=_serve, args=(theirs, writer, limits.memory_bytes), name="maasdam-child")
            self._process.start()
        theirs.close()
        writer.close()
        _living.add(self)
        self._repeating = threading.Thread(target=_repeat, args=(reader,), name="child-stderr", daemon=True)
        self._repeating.start()
        try:
            if not self._connection.poll(READY_SECONDS) or self._connection.recv() != _READY:
                raise EOFError
        except (EOFError, OSError) as error:
            self.kill()
            raise ServiceError("a process for limited work could not be started; is the machine out of memory?") from error

    @property
    def is_alive(self) -> bool:
        """Whether it can be called."""
        return self._process.is_alive()

    @property
    def resident_bytes(self) -> int:
        """Memory that it holds, files that it only reads left out."""
        return _resident(self._process.pid)

    def call(self, function: Callable[..., T], args: tuple[Any, ...], named: Mapping[str, Any], progress: Tell | None) -> T:
        """Run one function in it. See `run_limited`."""
        surroundings = (dict(os.environ), str(Path.cwd()), _umask())
        self._connection.send((function, args, dict(named), progress is not None, surroundings))
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
        pid = self._process.pid
        if pid is not None and self._process.is_alive():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
            self._process.kill()
        self._process.join(5)
        self._repeating.join(1)  # its last words
        self._connection.close()

    def _death(self, stage: str) -> MaasdamError:
        self._process.join(5)
        code = self._process.exitcode
        how = f"ended by itself with status {code}"
        if code is not None and code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
            how = (
                f"crashed with {name}" if name != "SIGKILL" else "was ended by the system (SIGKILL), as it does without memory"
            )
        limit = self.limits.memory_bytes
        room = "" if limit is None else f" (it might take {limit / 1e9:,.1f} GB: setting {self.limits.settings[2]})"
        return Crashed(f"the work {how}{stage}{room}; the model's files, or the library that opened them, are at fault")


class _Watch:
    """Time and memory of one call."""

    def __init__(self, pid: int | None, limits: ChildLimits) -> None:
        self._pid, self._limits = pid, limits
        self._looked = time.monotonic()
        self.begin_again()

    def begin_again(self) -> None:
        """The work said how far it is."""
        self._since = time.monotonic()
        self._cpu_before = _cpu_seconds(self._pid) if self._limits.cpu_seconds is not None else 0.0

    def look(self, stage: str) -> None:
        """Raise LimitExceeded where a limit is crossed, naming it and what the work was at."""
        limits, now = self._limits, time.monotonic()
        if now - self._looked < LOOK_SECONDS / 2:
            return
        self._looked = now
        if limits.memory_bytes is not None and _resident(self._pid) > limits.memory_bytes:
            raise _over_memory(limits)
        if limits.seconds is not None and now - self._since > limits.seconds:
            raise LimitExceeded(
                f"nothing came of the work{stage} for {limits.seconds:,.0f} s, its limit of time "
                f"(setting {limits.settings[0]}); it was ended"
            )
        if limits.cpu_seconds is not None and _cpu_seconds(self._pid) - self._cpu_before > limits.cpu_seconds:
            raise LimitExceeded(
                f"nothing came of the work{stage} for {limits.cpu_seconds:,.0f} s of computing, its limit (setting "
                f"{limits.settings[1]}); it was ended"
            )


def run_python(
    words: Sequence[str], *, seconds: float, environ: Mapping[str, str] | None = None, given: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    """A fresh interpreter with these words, which shares nothing with this process. One that takes too long is ended.

    Its status is 1 then, and the last line of its stderr says so.
    """
    command = [sys.executable, *words]
    try:
        env = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **(environ or {})}
        return subprocess.run(command, input=given, capture_output=True, timeout=seconds, env=env)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, b"", f"it took longer than {seconds:.0f} s".encode())


@contextmanager
def started(
    words: Sequence[str], out: IO[bytes], environ: Mapping[str, str], grace: float
) -> Iterator[subprocess.Popen[bytes]]:
    """An interpreter with these words beside this one, writing to `out`; ended afterwards, and killed after `grace` seconds."""
    process = subprocess.Popen([sys.executable, *words], stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **environ})
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=grace)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def last_line(written: bytes, otherwise: str) -> str:
    """The last line that a process wrote, as a reason."""
    return (written.decode(errors="replace").strip().splitlines() or [otherwise])[-1]


def _over_memory(limits: ChildLimits) -> LimitExceeded:
    assert limits.memory_bytes is not None
    return LimitExceeded(
        f"the work needs more memory than its limit of {limits.memory_bytes / 1e9:,.1f} GB (setting {limits.settings[2]}); "
        "it was ended"
    )


_living: weakref.WeakSet[Child] = weakref.WeakSet()
_idle: list[Child] = []
_idle_lock = threading.Lock()
_start_lock = threading.Lock()


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


@atexit.register
def _end_all() -> None:
    """Before multiprocessing waits for them, as it does at a process's end."""
    for child in list(_living):
        child.kill()


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


_Kind = Literal["ready", "progress", "done", "failed", "nothing"]
_READY, _PROGRESS, _DONE, _FAILED, _NOTHING = get_args(_Kind)


def _repeat(reader: Connection) -> None:
    """What libraries in the child print, on this process's stderr: no name of a model's making drives a terminal."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    with contextlib.suppress(OSError, ValueError):  # until the child, and what it started, are gone, or stderr is
        while data := os.read(reader.fileno(), 65536):
            text = decoder.decode(data)
            sys.stderr.write("".join(c if c.isprintable() or c in "\n\t" else "" if c == "\r" else "\ufffd" for c in text))
            sys.stderr.flush()
    reader.close()


def _serve(connection: Connection, writer: Connection, memory_bytes: int | None) -> None:
    """In the child: do what comes until nothing comes."""
    import resource

    os.setsid()  # Ctrl-C is the parent's to hear, and what is started here can be ended with it
    if sys.platform == "linux":
        # The fork server ends with the process that uses it, unless a child still holds the pipe by which it tells
        os.close(forkserver._forkserver._forkserver_alive_fd)  # type: ignore[attr-defined]  # there is no other way to it
        ctypes.CDLL(None).prctl(_DIES_WITH_PARENT, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    for standard in (1, 2):  # stdout is for the parent's answer alone
        os.dup2(writer.fileno(), standard)
    writer.close()
    multiprocessing.set_start_method(None, force=True)  # as libraries have it elsewhere: what they share needs no tracker then
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory_bytes is not None:
        with contextlib.suppress(ValueError, OSError):  # a lower limit is set from outside already
            resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    connection.send(_READY)
    while True:
        try:
            function, args, named, tells, surroundings = connection.recv()
        except (EOFError, OSError):
            break
        except BaseException as error:
            connection.send((_FAILED, _packed(error)))
            continue
        _surround(*surroundings)
        if tells:
            named["progress"] = _teller(connection)
        try:
            answer = (_DONE, function(*args, **named))
        except BaseException as error:
            answer = (_FAILED, _packed(error))
        try:
            connection.send(answer)
        except (pickle.PicklingError, TypeError, AttributeError, MemoryError) as error:
            connection.send((_FAILED, _packed(error)))
        except (BrokenPipeError, OSError):
            break
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
    os._exit(0)  # not by the interpreter's end, which waits for engines' threads


def _surround(environ: Mapping[str, str], folder: str, umask: int) -> None:
    """Environment, working folder and mask of the parent as they are now: the fork server has those of its start."""
    if dict(os.environ) != environ:
        os.environ.clear()
        os.environ.update(environ)
    with contextlib.suppress(OSError):
        os.chdir(folder)
    os.umask(umask)


def _teller(connection: Connection) -> Tell:
    lock = threading.Lock()

    def tell(stage: str, done: int = 0, total: int | None = None) -> None:
        with lock:
            connection.send((_PROGRESS, (stage, done, total)))

    return tell


@dataclass(frozen=True, slots=True)
class _Packed:
    """An exception on its way through the pipe."""

    error: bytes | None
    """Pickled, where that can be undone."""
    module: str
    name: str
    text: str
    facts: dict[str, Any]
    trace: str
    is_memory: bool


def _packed(error: BaseException) -> _Packed:
    trace = "".join(traceback.format_exception(error))
    facts = {}
    for key, value in vars(error).items():
        with contextlib.suppress(Exception):
            pickle.dumps(value)
            facts[key] = value
    pickled: bytes | None = None
    with contextlib.suppress(Exception):
        pickled = pickle.dumps(error)
        pickle.loads(pickled)
    kind = type(error)
    return _Packed(pickled, kind.__module__, kind.__qualname__, str(error), facts, trace, _is_out_of_memory(error))


def _unpacked(packed: _Packed, limits: ChildLimits) -> BaseException:
    """The exception as it was, with what the child's traceback said as its cause."""
    if packed.is_memory and limits.memory_bytes is not None and packed.name != LimitExceeded.__name__:
        error: BaseException = _over_memory(limits)
    else:
        error = _again(packed)
    error.__cause__ = ServiceError(f"in a child process:\n{packed.trace}")
    return error


def _again(packed: _Packed) -> BaseException:
    try:
        kind = getattr(importlib.import_module(packed.module), packed.name)
        if issubclass(kind, MaasdamError):  # not by its own __init__, which may take other things
            error = cast(BaseException, kind.__new__(kind))
            error.args = (packed.text,)
            vars(error).update(packed.facts)
            return error
        if packed.error is not None:
            return cast(BaseException, pickle.loads(packed.error))
    except Exception:
        pass
    return ServiceError(f"{packed.name}: {packed.text}")


def _is_out_of_memory(error: BaseException) -> bool:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError) or _NO_MEMORY.search(str(cause)[:2000]):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _resident(pid: int | None) -> int:
    """Bytes in memory that are no file's; 0 where the system does not tell."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return sum(int(kb) * 1024 for kb in re.findall(r"^Rss(?:Anon|Shmem):\s+(\d+) kB", text, re.M))


def _cpu_seconds(pid: int | None) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
