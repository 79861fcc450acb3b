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


def builds(what: str, *args: Any, **named: Any) -> Any:
    """A build in which ONNX Runtime's quantiser ends the process or takes all memory, or in which opening OpenVINO ends it."""
    import dataclasses

    import pytest

    from maasdam.operations import build
    from maasdam.pipeline import optimize, verify
    from maasdam.pipeline.quantize import onnx_models

    def quantises(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGSEGV) if what == "quantiser" else bytearray(1 << 50)

    def chooses(rivals: Any, settings: Any, context: Any, open_engine: Any) -> Any:
        def opens(artifact: Any, **how: Any) -> Any:
            if artifact.engine == "openvino":
                os.kill(os.getpid(), signal.SIGKILL)
            return open_engine(artifact, **how)

        return chose(rivals, settings, context, opens)

    def verifies(*given: Any) -> Any:
        quick = {"measure_seconds": 0.1, "measures_memory": False}
        return verified(*given[:-1], dataclasses.replace(given[-1], **quick))

    chose, verified = optimize.choose, verify.verify
    with pytest.MonkeyPatch.context() as patch:  # this process may be used again
        patch.setattr(verify, "verify", verifies)
        patch.setattr(optimize, "SHARE", 0.01)
        if what == "engine":
            patch.setattr(optimize, "choose", chooses)
        else:
            patch.setattr(onnx_models, "static_int8", quantises)
        return build._make(*args, **named)


kept: list[Any] = []
