"""The tutorial works: every block is run, in order, on a local copy of the model it names."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.waiting import wait_until

BLOCK = re.compile(r"^```(bash|toml)( [\w.]+)?\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture
def place(tmp_path: Path, shared_data: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    (tmp_path / "photos").symlink_to(shared_data / "imagenet-sample")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    env = os.environ | {
        "MAASDAM_HOME": str(tmp_path / "home"),
        "PORT": str(port),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    yield tmp_path, env


def _wait_until_ready(port: str, service: subprocess.Popen[bytes]) -> None:
    def is_ready() -> bool:
        assert service.poll() is None, "the service stopped"
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=5):
                return True
        except (urllib.error.URLError, ConnectionError):
            return False

    wait_until(is_ready, 60, "the service was not ready within a minute")


@pytest.mark.timeout(900)
def test_every_block_of_the_tutorial_runs(repository: Path, shared_data: Path, place: tuple[Path, dict[str, str]]) -> None:
    folder, env = place
    text = (repository / "docs" / "tutorial.md").read_text()
    text = text.replace("hf:google/mobilenet_v2_1.0_224", str(shared_data / "mobilenet-v2-1001"))
    service: subprocess.Popen[bytes] | None = None
    said = ""
    try:
        for kind, name, body in BLOCK.findall(text):
            if kind == "toml":
                (folder / name.strip()).write_text(body)
                continue
            for command in body.strip().splitlines():
                if name.strip() == "service":
                    service = subprocess.Popen(["bash", "-c", f"exec {command}"], cwd=folder, env=env)
                    _wait_until_ready(env["PORT"], service)
                    continue
                done = subprocess.run(["bash", "-c", command], cwd=folder, env=env, capture_output=True, text=True)
                assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
                said += done.stdout
                if command.startswith("maasdam keys create"):
                    env["KEY"] = json.loads(done.stdout)["secret"]
        assert "great white shark" in said
        assert 'maasdam_requests_total{model="photos"' in said
        assert (folder / "photos-onnx" / "certificate.json").is_file()
    finally:
        if service is not None:
            service.terminate()
            service.wait(timeout=30)
