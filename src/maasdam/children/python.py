"""Interpreters of their own. Knows commands and time; never what they run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO


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
