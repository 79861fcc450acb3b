"""What is forked has nobody else's threads: a lock that one of them holds at that moment stays locked in the child for ever."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import os, sys
from pathlib import Path
from maasdam.children import Forked
from maasdam.children.forked import LIBRARIES
from maasdam.serving.hosts.local import ENGINE_LIBRARIES

def threads():
    names = [task.name for task in Path(f"/proc/{os.getppid()}/task").iterdir()]
    print(len(names), *[name for name in LIBRARIES if name not in sys.modules], file=sys.stderr)

if __name__ == "__main__":
    sys.modules["what"] = sys.modules["__main__"]
    threads.__module__ = "what"
    libraries = {*LIBRARIES, *(name for names in ENGINE_LIBRARIES.values() for name in names)}
    started = Forked(threads, (), name="threads", libraries=sorted(libraries))
    print(started.end())
"""


def test_the_fork_server_has_one_thread(tmp_path: Path) -> None:
    """OpenBLAS's own ends before a fork; here it is told to have none, so that only those are counted that stay."""
    (tmp_path / "what.py").write_text(SCRIPT)
    environ = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    environ = {name: value for name, value in environ.items() if name not in ("ORT_DISABLE_TELEMETRY", "CI")}
    done = subprocess.run([sys.executable, "what.py"], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=120)
    assert done.stdout == "ended by itself with status 0\n", done.stderr
    assert done.stderr.splitlines()[-1] == "1"
