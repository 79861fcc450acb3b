"""A process that runs a user's own task: asked and answered in bytes, ended when it takes too long or too much.

Knows how prepare, finish and score are called and what may come of them. Refuses to know models and HTTP. Nothing that the code
says is believed: it travels as msgpack with a type, never as a pickle.

    CustomChild.call --[number, method, arguments]--> serve: the user's class
                     <--[number, arrays | answer | what went wrong]--
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import importlib
import json
import math
import multiprocessing
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from msgspec import Struct

from maasdam.children import Forked, resident_bytes
from maasdam.errors import Crashed, EngineFailure, InvalidPayload, LimitExceeded, MaasdamError
from maasdam.tasks.custom_code import unpacked

if TYPE_CHECKING:
    from maasdam.core import Tensors, type_array

MOST_PARTS = 1_024
"""Inputs that one payload may be prepared to."""
MOST_BYTES = 256 * 1024 * 1024
"""Of all tensors of one payload."""
MOST_ANSWER_BYTES = 32 * 1024 * 1024
"""Of one answer in JSON."""
MOST_FILE_BYTES = 64 * 1024 * 1024
"""Of a file that the code writes, in its own folder."""
LONGEST_WORDS = 500
DEEPEST = 200
"""Lists and objects in each other that an answer may have."""
FOLDERS = "maasdam-task-"
"""How the folders of processes begin, in the system's place for temporary ones."""
YOUNG_SECONDS = 60.0
"""A folder that nobody holds is left alone for so long: it may be being made."""
READY_SECONDS = 60.0
"""Importing what the code needs."""
LOOK_SECONDS = 0.1
_DTYPES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
)


class CodeArray(Struct, array_like=True):
    """An array as it travels."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes | list[str]
    """A list of texts for dtype object."""


class CodeReply(Struct, array_like=True):
    """What came of a call."""

    number: int
    inputs: list[list[CodeArray]] = []
    json: str = ""
    score: float | None = None
    wrong: str = ""
    is_callers: bool = False
    """Whether the payload is to blame: the code raised ValueError in prepare."""


Method = Literal["prepare", "finish"]


class CustomChild:
    """One process. Calls run one after another, from any thread."""

    def __init__(self, archive: Path, seconds: float, memory_bytes: int) -> None:
        """Start it and make an object of the user's class. Raises EngineFailure, LimitExceeded, Crashed."""
        self._seconds, self._memory = seconds, memory_bytes
        _sweep()
        self._folder = tempfile.mkdtemp(prefix=FOLDERS)
        self._held = os.open(self._folder, os.O_RDONLY)
        fcntl.flock(self._held, fcntl.LOCK_EX)  # until this process ends, in whatever way: see `_sweep`
        self._number = 0
        self._is_late = False
        try:
            module, kind = unpacked(archive, Path(self._folder))
            self._connection, theirs = multiprocessing.Pipe()
            given = (theirs, self._folder, module, kind)
            self._process = Forked(serve, given, name="maasdam-task", memory_bytes=memory_bytes, libraries=("numpy",))
            theirs.close()
        except BaseException:
            self._remove_folder()
            raise
        try:
            self._answer(READY_SECONDS, "when it was imported")
        except BaseException:
            self.kill()
            raise

    @property
    def is_alive(self) -> bool:
        """Whether it can be called."""
        return self._process.is_alive

    def prepare(self, data: bytes, is_file: bool) -> list[dict[str, type_array]]:
        """What the code makes of a payload. Raises InvalidPayload, EngineFailure, LimitExceeded, Crashed."""
        return [_arrays(each) for each in self._call("prepare", data, is_file).inputs]

    def finish(self, outputs: Sequence[Tensors], data: bytes, is_file: bool, truth: str | None) -> tuple[str, float | None]:
        """Its answer in JSON, and how right that is. Raises as `prepare` does, but for InvalidPayload."""
        said = self._call("finish", [_named(each) for each in outputs], data, is_file, truth)
        return said.json, said.score

    def kill(self) -> None:
        """End it and all that it started."""
        self._process.kill()
        self._connection.close()
        self._remove_folder()

    def _remove_folder(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        held, self._held = self._held, -1
        if held >= 0:
            os.close(held)

    def _call(self, method: Method, *given: Any) -> CodeReply:
        self._number += 1
        message = msgspec.msgpack.encode((self._number, method, given))
        return self._answer(self._seconds, f"in its {method}", message)

    def _answer(self, seconds: float, at: str, message: bytes = b"") -> CodeReply:
        """What it says next, within so many seconds; a call that waits to be read counts too."""
        self._is_late = False
        timer = threading.Timer(seconds, self._strike)
        timer.daemon = True
        timer.start()
        try:
            if message:
                self._connection.send_bytes(message)
            while not self._connection.poll(LOOK_SECONDS):
                if resident_bytes(self._process.pid) > self._memory:
                    raise self._too_large(at)
            said = msgspec.msgpack.decode(self._connection.recv_bytes(2 * MOST_BYTES), type=CodeReply)
            if said.number != self._number:
                raise EngineFailure(f"the task's code {at} answered what nobody had asked")
        except (EOFError, OSError):
            error = self._death(seconds, at)
            self.kill()
            raise error from None
        except msgspec.MsgspecError as error:
            self.kill()
            raise EngineFailure(f"the task's code {at} answered what is no answer: {error}") from error
        except MaasdamError:
            self.kill()
            raise
        finally:
            timer.cancel()
        if said.wrong.startswith("MemoryError"):
            self.kill()
            raise self._too_large(at)
        if said.wrong:
            raise InvalidPayload(said.wrong) if said.is_callers else EngineFailure(f"the task's code {at}: {said.wrong}")
        return said

    def _strike(self) -> None:
        self._is_late = True
        with contextlib.suppress(ValueError):
            self._process.strike()

    def _death(self, seconds: float, at: str) -> MaasdamError:
        how = self._process.end()
        if self._is_late:
            return LimitExceeded(
                f"the task's code took longer than {seconds:g} s {at} (setting custom_seconds); its process was ended"
            )
        return Crashed(
            f"the process of the task's code {how} {at} (it may take {self._memory / 1e9:,.1f} GB: setting custom_memory_bytes)"
        )

    def _too_large(self, at: str) -> LimitExceeded:
        return LimitExceeded(
            f"the task's code {at} takes more memory than its limit of {self._memory / 1e9:,.1f} GB (setting "
            "custom_memory_bytes); its process was ended"
        )


def _sweep() -> None:
    """Remove what processes that were ended on the spot left behind: the system freed their locks."""
    for folder in Path(tempfile.gettempdir()).glob(FOLDERS + "*"):
        with contextlib.suppress(OSError):  # another's, in use, or gone
            held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                state = os.fstat(held)
                if state.st_uid == os.geteuid() and time.time() - state.st_mtime > YOUNG_SECONDS:
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(held)


def _named(tensors: Tensors) -> list[CodeArray]:
    out = []
    for name, array in tensors.items():
        kind = array.dtype.name
        if kind == "object":
            words = [each.decode(errors="replace") if isinstance(each, bytes) else str(each) for each in array.ravel()]
            out.append(CodeArray(name, kind, array.shape, words))
            continue
        if kind not in _DTYPES:  # bfloat16, which numpy has no word for
            array, kind = array.astype("float32"), "float32"
        out.append(CodeArray(name, kind, array.shape, array.tobytes()))
    return out


def _arrays(named: Sequence[CodeArray]) -> dict[str, type_array]:
    import numpy as np

    out: dict[str, type_array] = {}
    for one in named:
        try:
            if isinstance(one.data, list):
                words = np.empty(len(one.data), object)
                words[:] = one.data
                out[one.name] = words.reshape(one.shape)
            elif one.dtype in _DTYPES:
                out[one.name] = np.frombuffer(one.data, one.dtype).reshape(one.shape)
            else:
                raise ValueError(f"of no dtype that there is: {one.dtype:.40}")
        except ValueError as error:
            raise EngineFailure(f"the task's code prepared '{one.name:.60}', which is no array: {error}") from error
    return out


# In the process -------------------------------------------------------------------------------------------------------------


def serve(connection: Connection, folder: str, module: str, kind: str) -> None:
    """Make an object of the class and do what is asked of it until nobody asks."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (MOST_FILE_BYTES, MOST_FILE_BYTES))
    os.chdir(folder)
    os.environ["TMPDIR"] = tempfile.tempdir = folder
    os.register_at_fork(after_in_child=connection.close)  # a copy of this process speaks to nobody
    sys.dont_write_bytecode = True
    sys.path.insert(0, folder)
    _write_nowhere_but(folder)
    try:
        task = _made(module, kind)
    except BaseException as error:
        _say(connection, CodeReply(0, wrong=_words(error)))
        return
    _say(connection, CodeReply(0))
    while True:
        try:
            number, method, given = msgspec.msgpack.decode(connection.recv_bytes())
        except (EOFError, OSError):
            return
        try:
            said = _prepared(task, number, *given) if method == "prepare" else _finished(task, number, *given)
        except BaseException as error:
            blames = method == "prepare" and isinstance(error, ValueError) and not isinstance(error, _Unfit)
            said = CodeReply(number, wrong=_words(error), is_callers=blames)
        _say(connection, said)
        del said


class _Unfit(ValueError):
    """What the code gave is not what it has to give."""


def _made(module: str, kind: str) -> Any:
    found = getattr(importlib.import_module(module), kind, None)
    if not isinstance(found, type):
        raise _Unfit(f"{module} has no class '{kind}'")
    task = found()
    for method in ("prepare", "finish"):
        if not callable(getattr(task, method, None)):
            raise _Unfit(f"class {kind} has no method '{method}'")
    return task


def _payload(data: bytes, is_file: bool) -> Any:
    return data if is_file else json.loads(data)


def _prepared(task: Any, number: int, data: bytes, is_file: bool) -> CodeReply:
    import numpy as np

    given = task.prepare(_payload(data, is_file))
    if isinstance(given, Mapping):
        given = [given]
    if not isinstance(given, list | tuple) or not 1 <= len(given) <= MOST_PARTS:
        raise _Unfit(f"prepare gave {_shown(given)}; it gives a list of 1 to {MOST_PARTS:,} dicts of named arrays")
    parts, size = [], 0
    for each in given:
        if not isinstance(each, Mapping) or not all(isinstance(name, str) for name in each):
            raise _Unfit(f"prepare gave a list of {_shown(each)}; it gives a list of dicts of named arrays")
        for name, array in each.items():
            if not isinstance(array, np.ndarray):
                raise _Unfit(f"prepare gave {_shown(array)} for '{name:.60}'; it gives numpy arrays")
            size += array.nbytes
        if size > MOST_BYTES:
            raise _Unfit(f"prepare gave more than {MOST_BYTES // 1024**2} MiB of arrays")
        parts.append(_named(each))
    return CodeReply(number, parts)


def _finished(task: Any, number: int, outputs: Any, data: bytes, is_file: bool, truth: str | None) -> CodeReply:
    arrays = [_arrays(msgspec.convert(each, list[CodeArray])) for each in outputs]
    answer = task.finish(arrays, _payload(data, is_file))
    text = _json(answer)
    score = None
    if truth is not None and callable(getattr(task, "score", None)):
        score = float(task.score(json.loads(text), json.loads(truth)))
        if not math.isfinite(score):
            raise _Unfit(f"score gave {score}; it gives a finite number, more is better")
    return CodeReply(number, json=text, score=score)


def _json(answer: Any) -> str:
    """An answer's JSON, numpy's numbers among Python's. Raises _Unfit."""
    try:
        text = json.dumps(_plain(answer), allow_nan=False, ensure_ascii=False)
        size = len(text.encode())
    except UnicodeEncodeError:
        raise _Unfit("finish gave half of a character (a lone surrogate), which is no JSON") from None
    except ValueError as error:
        if isinstance(error, _Unfit):
            raise
        raise _Unfit("finish gave NaN or infinity, which is no JSON") from None
    if size > MOST_ANSWER_BYTES:
        raise _Unfit(f"finish gave an answer of {size:,} bytes; at most {MOST_ANSWER_BYTES:,} are taken")
    return text


def _plain(value: Any, depth: int = 0) -> Any:
    import numpy as np

    if depth > DEEPEST:
        raise _Unfit(f"finish gave lists or objects more than {DEEPEST} deep, or one that holds itself")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic | np.ndarray) and value.dtype.kind in "biufU":
        return value.tolist()
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _plain(each, depth + 1) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each, depth + 1) for each in value]
    raise _Unfit(f"finish gave {_shown(value)}; it gives what JSON can hold")


def _shown(value: Any) -> str:
    return f"a {type(value).__name__}" + (f" of {len(value)}" if isinstance(value, list | tuple | dict) else "")


def _words(error: BaseException) -> str:
    """Only the first are kept: whoever raises may say what it likes."""
    try:
        says = " ".join(str(error).split())[:LONGEST_WORDS]
    except BaseException:
        says = "its message can't be read"
    says = "".join(c if c.isprintable() else "\ufffd" for c in says)
    return says if isinstance(error, _Unfit) else f"{type(error).__name__}: {says}"


def _say(connection: Connection, said: CodeReply) -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    connection.send_bytes(msgspec.msgpack.encode(said))


_LANDLOCK = (444, 445, 446)
"""Numbers of landlock_create_ruleset, _add_rule and _restrict_self, the same on every architecture."""
_WRITES = sum(1 << bit for bit in (1, 4, 5, 6, 7, 8, 9, 10, 11, 12))
"""Writing to files, and making and removing them, of Landlock's first version."""


def _write_nowhere_but(folder: str) -> None:
    """From now on this process and what it starts may write to this folder and to /dev/null, and read what it could
    (https://docs.kernel.org/userspace-api/landlock.html). Where the system has no Landlock nothing stands in the way."""
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    handled = ctypes.c_uint64(_WRITES)
    rules = libc.syscall(_LANDLOCK[0], ctypes.byref(handled), ctypes.c_size_t(8), 0)
    if rules < 0:
        return
    for place, allowed in ((folder, _WRITES), ("/dev/null", 1 << 1), ("/dev/shm", _WRITES)):
        with contextlib.suppress(OSError), _opened(place) as handle:
            rule = allowed.to_bytes(8, sys.byteorder) + handle.to_bytes(4, sys.byteorder)
            libc.syscall(_LANDLOCK[1], rules, 1, rule, 0)
    libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS, without which nobody may be restricted
    libc.syscall(_LANDLOCK[2], rules, 0)
    os.close(rules)


@contextmanager
def _opened(place: str) -> Iterator[int]:
    handle = os.open(place, os.O_PATH)
    try:
        yield handle
    finally:
        os.close(handle)
