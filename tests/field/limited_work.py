"""What the tests of limited work run in a child: it has to be importable there."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path
from typing import Any

from maasdam.errors import ContextExceeded


def add(a: int, b: int) -> int:
    return a + b


def surroundings() -> tuple[str, str | None, int]:
    mask = os.umask(0o077)
    os.umask(mask)
    return str(Path.cwd()), os.environ.get("MAASDAM_TEST_WORD"), mask


def pid() -> int:
    return os.getpid()


def tell(steps: int, seconds: float = 0.0, progress: Any = None) -> int:
    for step in range(steps):
        time.sleep(seconds)
        progress("step", step, steps)
    return steps


def loops() -> None:
    while True:
        pass


def native_loop() -> None:
    re.match(r"(a+)+$", "a" * 60 + "b")  # holds Python's lock for years


def allocates() -> int:
    return len(bytearray(8_000_000_000))


def grows() -> None:
    kept = []
    while True:
        kept.append(os.urandom(10_000_000))


def prints(text: str) -> None:
    os.write(1, text.encode("utf-8", "surrogateescape"))
    os.write(2, text.encode("utf-8", "surrogateescape"))


def segfaults() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def exits() -> None:
    os._exit(3)


def raises_ours() -> None:
    raise ContextExceeded(12, 10)


def raises_key() -> None:
    raise KeyError("there is none")


def notes_and_loops(path: str) -> None:
    Path(path).write_text(str(os.getpid()))
    loops()


def starts_another_and_loops(path: str) -> None:
    import subprocess
    import sys

    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(path).write_text(str(other.pid))
    loops()


def makes_a_lock() -> str:
    """As tqdm does; a lock with a name is one that somebody must remember to remove."""
    import multiprocessing

    kept.append(multiprocessing.RLock())
    return multiprocessing.get_start_method()


kept: list[Any] = []
