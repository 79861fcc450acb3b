"""JSON logs, one object a line, each with its request's id. Knows structlog; never what is logged."""

from __future__ import annotations

import faulthandler
import fcntl
import json
import logging
import logging.handlers
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, Processor

from maasdam.errors import StorageFailure

FOLLOW_SECONDS = 0.2
LONGEST_LINE = 64 * 1024
"""Of what a library writes, bytes; what is longer becomes several lines."""


REQUESTS = "maasdam.requests"
"""The logger whose records are finished lines, several in one."""
REQUEST = '{"event":"request",'
"""How each of them begins."""


@dataclass(frozen=True, slots=True)
class LogFile:
    """Where lines are kept: one file, and older ones beside it as NAME.1 (the newest), NAME.2, ..."""

    path: Path
    most_bytes: int
    """Of one file; 0 lets it grow."""
    older: int
    """How many older files are kept."""


def configure(
    level: str = "info", stream: TextIO | None = None, file: LogFile | None = None, worker: int | None = None
) -> None:
    """Send this process's logs, the libraries' too, to `stream` (default stderr) and to `file` as JSON lines.

    `worker`: which of several this process is; its lines say so. Raises StorageFailure when the file can't be written.
    """

    def of_worker(logger: object, name: str, event: EventDict) -> EventDict:
        return event if worker is None else {**event, "worker": worker}

    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        of_worker,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
    ]
    formatter = _Lines(
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, structlog.processors.JSONRenderer()],
        foreign_pre_chain=shared,
    )
    formatter.worker = worker
    handlers: list[logging.Handler] = [logging.StreamHandler(stream or sys.stderr)]
    if file is not None:
        handlers.append(_Kept(file.path, maxBytes=file.most_bytes, backupCount=file.older, encoding="utf-8"))
    for handler in handlers:
        handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers = handlers
    root.setLevel(level.upper())
    logging.getLogger("alembic").setLevel(logging.WARNING)  # how a fresh database is made is no news
    logging.captureWarnings(True)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


@contextmanager
def logging_to(level: str, file: LogFile | None, libraries: Path | None = None, worker: int | None = None) -> Iterator[None]:
    """Inside, logs go to stderr and to `file`; see `configure`.

    What libraries write past Python to file descriptor 2 becomes lines of the log too, as JSON, if `libraries` names a
    file for it: NAME.stderr becomes NAME.PID.*.stderr, as another service may be in the same folder. It is read five times
    a second: a pipe that nobody empties in time would stop a library that writes while it holds Python's lock, and a
    crash's last words would be lost with it. What a crash left there is told at the next start. The log itself goes on
    writing where it wrote before: `sys.stderr` is a copy of that.
    """
    before = logging.getLogger().handlers
    with ExitStack() as stack:
        if libraries is not None:
            between = _beside_stderr(libraries, stack)
        stack.callback(_close_handlers, before)
        configure(level, file=file, worker=worker)
        if libraries is not None:
            _tell_what_is_left(libraries)
            is_over = threading.Event()
            follower = threading.Thread(target=_follow, args=(between, is_over), name="stderr", daemon=True)
            follower.start()
            stack.callback(follower.join)
            stack.callback(is_over.set)
        yield


def _close_handlers(before: list[logging.Handler]) -> None:
    root = logging.getLogger()
    handlers, root.handlers = root.handlers, before
    for handler in handlers:
        if handler not in before:
            handler.close()


def _beside_stderr(path: Path, stack: ExitStack) -> int:
    """Let file descriptor 2 be the file at `path` and `sys.stderr` what 2 was, until `stack` ends."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        between, name = tempfile.mkstemp(path.suffix, f"{path.stem}.{os.getpid()}.", path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from error
    fcntl.flock(between, fcntl.LOCK_EX)  # until no process writes to it any more: children have it from us
    fcntl.fcntl(between, fcntl.F_SETFL, os.O_APPEND)
    stack.callback(Path(name).unlink, missing_ok=True)
    stack.callback(os.close, between)
    sys.stderr.flush()
    behind, before = os.dup(2), sys.stderr
    os.dup2(between, 2)
    sys.stderr = os.fdopen(os.dup(behind), "w", buffering=1, errors="backslashreplace")
    faulthandler.enable(sys.stderr)

    def back() -> None:
        os.dup2(behind, 2)
        os.close(behind)
        faulthandler.disable()
        sys.stderr = before

    stack.callback(back)
    return between


def _own_file(path: Path, how: int) -> int:
    """A file that only its owner reads. Raises StorageFailure."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.open(path, how, 0o600)
    except OSError as error:
        raise _cannot_write(path, error) from error


def _cannot_write(path: Path, error: OSError) -> StorageFailure:
    return StorageFailure(f"can't write the log {path}: {error.strerror}; set log_file")


def lines_of(request_id: str, file: LogFile) -> list[dict[str, Any]]:
    """What the kept files say of one request, oldest first: by our id, or by the caller's, of which there may be several."""
    wanted = request_id.encode()
    found = []
    for path in [*(file.path.with_name(f"{file.path.name}.{i}") for i in range(file.older, 0, -1)), file.path]:
        try:
            with path.open("rb") as lines:
                found += [line for line in lines if wanted in line]
        except FileNotFoundError:
            continue
        except OSError as error:
            raise StorageFailure(f"can't read the log {path}: {error.strerror}") from error
    told = [_read(line) for line in found]
    own = [line for line in told if line.get("request_id") == request_id]
    return own or [line for line in told if line.get("client_request_id") == request_id]


def _tell_what_is_left(libraries: Path) -> None:
    """Log and remove what processes left that ended without doing so."""
    is_over = threading.Event()
    is_over.set()
    for path in sorted(libraries.parent.glob(f"{libraries.stem}.*{libraries.suffix}")):
        with suppress(OSError), path.open("r+b") as left:  # gone since, or somebody writes to it
            fcntl.flock(left, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _follow(left.fileno(), is_over)
            path.unlink()


def _follow(file: int, is_over: threading.Event) -> None:
    log = logging.getLogger("maasdam.libraries")
    place, rest, is_last = 0, b"", False
    while not is_last:
        is_last = is_over.wait(FOLLOW_SECONDS)
        while read := os.pread(file, LONGEST_LINE, place):
            place += len(read)
            *lines, rest = (rest + read).split(b"\n")
            if len(rest) > LONGEST_LINE or is_last:
                lines, rest = [*lines, rest], b""
            for line in lines:
                if text := line.decode("utf-8", "replace").strip():
                    log.warning("%s", text)
        if place:
            os.ftruncate(file, 0)
            place = 0


class _Lines(structlog.stdlib.ProcessorFormatter):
    """JSON of a record; records of REQUESTS are lines already."""

    worker: int | None = None

    def format(self, record: logging.LogRecord) -> str:
        if record.name != REQUESTS:
            return super().format(record)
        lines = str(record.msg)
        return lines if self.worker is None else lines.replace(REQUEST, f'{REQUEST}"worker":{self.worker},')


class _Kept(logging.handlers.RotatingFileHandler):
    """A file that only its owner reads, bounded, with older ones beside it. Several processes may write to one."""

    def emit(self, record: logging.LogRecord) -> None:
        if not self._is_in_place():
            self._open_anew()
        super().emit(record)

    def doRollover(self) -> None:
        """Begin a new file, unless another process has."""
        folder = os.open(Path(self.baseFilename).parent, os.O_RDONLY)
        try:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(folder, fcntl.LOCK_EX)
            if self._is_in_place():
                super().doRollover()
            else:
                self._open_anew()
        finally:
            os.close(folder)

    def _is_in_place(self) -> bool:
        if self.stream is None:
            return True
        try:
            there = os.stat(self.baseFilename)  # noqa: PTH116  a microsecond less, before every line
        except OSError:
            return False
        return os.path.samestat(there, os.fstat(self.stream.fileno()))

    def _open_anew(self) -> None:
        """Somebody moved or removed the file. Where none can be opened, go on with what there is."""
        with suppress(StorageFailure):
            new = self._open()
            if self.stream is not None:
                self.stream.close()
            self.stream = new

    def _open(self) -> TextIOWrapper:
        return os.fdopen(_own_file(Path(self.baseFilename), os.O_WRONLY | os.O_APPEND | os.O_CREAT), "a", encoding="utf-8")


def _read(line: bytes) -> dict[str, Any]:
    try:
        read = json.loads(line)
    except ValueError:
        return {}  # cut off by a kill
    return read if isinstance(read, dict) else {}
