"""Serving needs neither torch nor tensorflow: a service in whose process both are missing answers all three starters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from tests.service import maasdam, service

WITHOUT = '''
import sys


class Missing:
    """An import system in which torch and tensorflow are not installed."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "tensorflow", "nncf", "keras"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


sys.meta_path.insert(0, Missing())
'''


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, starters: Path) -> Path:
    """The three starters built, promoted and deployed, with everything installed."""
    home = tmp_path_factory.mktemp("home")
    for name, folder in (("digits", "images"), ("bard", "text"), ("spoken-digits", "speech")):
        source = starters / folder
        words = ["build", source / "model", "--name", name, "--recipe", source / "recipe.toml", "--data", source / "samples"]
        maasdam(home, *words, *(["--calibrate", source / "calibrate"] if (source / "calibrate").is_dir() else []))
        maasdam(home, "models", "promote", f"{name}:1")
        maasdam(home, "deploy", name)
    return home


@pytest.fixture
def light(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Subprocesses of this test find no torch and no tensorflow."""
    (tmp_path / "sitecustomize.py").write_text(WITHOUT)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    blocked = subprocess.run([sys.executable, "-c", "import torch"], capture_output=True, env=dict(os.environ))
    assert blocked.returncode == 1 and b"No module named 'torch'" in blocked.stderr


@pytest.mark.timeout(900)
def test_the_service_answers_image_text_and_speech_without_torch_or_tensorflow(home: Path, starters: Path, light: None) -> None:
    image = maasdam(home, "run", "digits", starters / "images" / "samples" / "000.png")
    assert image
    with service(home, "digits", "bard", "spoken-digits") as running:
        body = json.dumps({"model": "bard", "prompt": "To be", "max_tokens": 8}).encode()
        headers = {"Authorization": f"Bearer {running.key}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{running.address}/v1/completions", body, headers)
        with urllib.request.urlopen(request, timeout=60) as reply:
            answer = json.load(reply)
        assert answer["usage"]["completion_tokens"] == 8
