"""Public clients, as their users write them, against a real service: what should work does, and nothing is a 5xx."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.served import Process, add_starters, open_home, serving


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, starters: Path, shared_data: Path) -> Iterator[Process]:
    home = tmp_path_factory.mktemp("served")
    workspace = open_home(home)
    add_starters(workspace, starters, {"images": "digits", "text": "bard", "speech": "spoken-digits"})  # as quickstart does
    _, key = workspace.keys.create("clients", ["infer", "deploy", "admin"])
    workspace.close()
    with serving(home, key) as running:
        yield running


SCRIPTS = {
    "openai_python.py": (
        "models.retrieve bard@prod",
        "chat stream include_usage",
        "chat penalties",
        "chat content parts",
        "completions list of ids",
        "completions stream",
        "seed reproducible",
        "transcriptions verbose_json",
        "async 8 + stream",
    ),
    "oip_http.py": (
        "infer binary",
        "infer gzip resp",
        "infer batch 4",
        "infer audio binary",
        "load digits again",
        "aio client",
    ),
    "strict.py": ("strict chat stream", "strict transcription verbose_json", "hf chat_completion"),
    "stream_equal.py": ("stream==whole {'max_tokens': 120, 'temperature': 0, 'stop': [' of', 'have']}",),
}
"""Clients as their users write them, and what must work for each of them; what is refused is refused with a 4xx."""


@pytest.mark.parametrize("script", SCRIPTS)
def test_clients_as_their_users_write_them(served: Process, repository: Path, shared_data: Path, script: str) -> None:
    folder = shared_data.parent / "cases" / "clients"
    if not (folder / script).is_file():
        pytest.skip("shared data is not here: no scripts of clients beside it")
    environment = os.environ | {"BASE": served.url, "KEY": served.key, "W": "2000"}
    environment["PYTHONPATH"] = os.pathsep.join([str(folder), environment.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, folder / script], capture_output=True, text=True, timeout=200, cwd=repository, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    worked = {line.removeprefix("[ok] ").partition(" (")[0] for line in lines if line.startswith("[ok]")}
    assert set(SCRIPTS[script]) <= worked
    broken = [
        line for line in lines if re.search(r"Error code: 5|\[5\d\d\]|ConnectionError", line) and "timeout=1us" not in line
    ]
    assert broken == []
