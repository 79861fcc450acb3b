"""`maasdam run` where the service of the home has the model: asked there, by its doors, with the answers of this process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.served import Process, add_starters, open_home, serving
from tests.service import maasdam

INPUTS: dict[str, tuple[str, ...]] = {
    "images": ("starters/images/samples/000.png", "starters/images/samples/001.png"),
    "speech": ("starters/speech/samples/000.wav", "starters/speech/samples/001.wav"),
    "text": ("ROMEO:", "What news?", "--max-tokens", "8", "--temperature", "0"),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, starters: Path) -> Path:
    path = tmp_path_factory.mktemp("home")
    workspace = open_home(path)
    add_starters(workspace, starters)
    workspace.close()
    return path


@pytest.fixture(scope="module")
def served(home: Path) -> Iterator[Process]:
    workspace = open_home(home)
    _, key = workspace.keys.create("test", ["admin"])
    workspace.close()
    with serving(home, key) as running:
        yield running


def rows(home: Path, name: str) -> int:
    """How many requests for a model the ledger has."""
    time.sleep(1.5)  # within which they are in
    return sum(row["requests"] for row in maasdam(home, "usage", "--by", "model")["usage"] if row["name"] == f"{name}:1")


@pytest.mark.parametrize("name", INPUTS)
def test_the_service_answers_what_this_process_would(home: Path, served: Process, repository: Path, name: str) -> None:
    words = [str(repository / word) if word.startswith("starters/") else word for word in INPUTS[name]]
    before = rows(home, name)
    there = maasdam(home, "run", name, *words)
    assert rows(home, name) >= before + 2
    here = maasdam(home, "run", name, *words, "--here")
    assert rounded(there) == rounded(here)


def test_what_is_wrong_is_said_in_the_services_words(home: Path, served: Process) -> None:
    assert "context" in maasdam(home, "run", "text", "zq " * 3000, expect=1)


def test_a_batch_goes_on_where_the_service_went_away(home: Path, starters: Path, tmp_path: Path) -> None:
    """The last of this file: it ends a service."""
    workspace = open_home(home)
    _, key = workspace.keys.create("test", ["admin"])
    workspace.close()
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"prompt": f"ROMEO {i}:"}) + "\n" for i in range(40)))
    out = tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "maasdam", "run", "text", str(tmp_path / "in.jsonl"), "--out", str(out)]
    command += ["--max-tokens", "8", "--temperature", "0"]
    with serving(home, key, "--uds", str(tmp_path / "s")) as running:
        run = subprocess.Popen(command, env=os.environ | {"MAASDAM_HOME": str(home)}, stderr=subprocess.PIPE, text=True)
        while run.poll() is None and (not out.exists() or out.read_bytes().count(b"\n") < 5):
            time.sleep(0.05)
        running.process.send_signal(signal.SIGKILL)
        _, said = run.communicate(timeout=60)
        assert run.returncode == 1 and "went away" in said, said
        had = len(out.read_text().splitlines())
        assert 5 <= had < 40
    counts = maasdam(home, *command[3:])
    assert (counts["had"], counts["answered"], counts["errors"]) == (had, 40 - had, 0)
    told = [json.loads(line)["input"] for line in out.read_text().splitlines()]
    assert told == [f"{tmp_path / 'in.jsonl'}:{i + 1}" for i in range(40)]


def rounded(document: Any) -> Any:
    """The same with numbers to six places."""
    if isinstance(document, dict):
        return {name: rounded(value) for name, value in document.items()}
    if isinstance(document, list):
        return [rounded(value) for value in document]
    return round(document, 5) if isinstance(document, float) else document
