"""The first answers of a process, asked for by several threads at once: OpenVINO's binding can stand still there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROCESSES = 5
ASK = """
import sys, threading
from pathlib import Path
import numpy as np
from maasdam.engines import open_engine
from tests.engines.networks import MLP, artifact

engine = open_engine(artifact(Path(sys.argv[1]), MLP, "onnx", "openvino"), threads=1)
start = threading.Barrier(8)

def ask():
    start.wait()
    engine.run(MLP.inputs)

sys.setswitchinterval(1e-6)
threads = [threading.Thread(target=ask) for _ in range(8)]
[t.start() for t in threads]
[t.join() for t in threads]
"""


def test_eight_first_answers_at_once_all_arrive(tmp_path: Path, repository: Path) -> None:
    """Without the tables made beforehand, about 4 of 10 such processes hang."""
    pytest.importorskip("onnx")
    for number in range(PROCESSES):
        (folder := tmp_path / str(number)).mkdir()
        done = subprocess.run(
            [sys.executable, "-c", ASK, str(folder)], cwd=repository, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr[-2000:]
