"""`maasdam serve`: what it refuses, and how it says so."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from tests.served import open_home, serving
from tests.waiting import wait_until

from maasdam.api.listening import grpc_socket, is_loopback
from maasdam.errors import InvalidInput
from maasdam.settings import Settings


def serve(home: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"MAASDAM_HOME": str(home)}
    words = [sys.executable, "-m", "maasdam", "serve", *flags]
    return subprocess.run(words, capture_output=True, text=True, env=environment, timeout=60)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--workers", "0"], "--workers"),
        (["--grpc-port", "70000"], "65535"),
        (["--no-auth", "--host", "0.0.0.0"], "only on a loopback address"),
        (["--no-auth", "--host", "192.0.2.1"], "only on a loopback address"),
        (["--port", "70000"], "65535"),
        (["--prot", "1"], "--prot"),
    ],
)
def test_misuse_exits_2_with_a_sentence(tmp_path: Path, flags: list[str], says: str) -> None:
    done = serve(tmp_path, *flags)
    assert done.returncode == 2 and says in done.stderr and "Traceback" not in done.stderr


def test_a_port_in_use_is_one_clear_sentence(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = serve(tmp_path, "--port", str(port))
    assert done.returncode == 1 and f"port {port}" in done.stderr and "--port" in done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_grpc_port_in_use_is_one_clear_sentence(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = serve(tmp_path, "--port", "0", "--grpc-port", str(port))
    assert done.returncode == 1 and f"port {port}" in done.stderr and "another --grpc-port" in done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) == 1


def test_where_another_has_the_grpc_port_that_nobody_chose_there_is_http(tmp_path: Path) -> None:
    told: list[str] = []
    resolved = Settings(host="127.0.0.1")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        there = Settings(grpc_port=taken.getsockname()[1])
        with pytest.raises(InvalidInput, match="another --grpc-port"):
            grpc_socket(there, False, told.append)
    assert grpc_socket(Settings(grpc_port=0), False, told.append) is None
    one = grpc_socket(resolved, False, told.append)
    assert grpc_socket(resolved, False, told.append) is None and "No gRPC" in told[-1]
    if one is not None:
        one.close()


def test_a_host_that_is_not_ours_is_one_clear_sentence(tmp_path: Path) -> None:
    done = serve(tmp_path, "--host", "192.0.2.1")
    assert done.returncode == 1 and "192.0.2.1" in done.stderr and "Traceback" not in done.stderr


def test_the_settings_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "other.toml"
    file.write_text("prot = 5\n")
    done = serve(tmp_path, "--config", str(file))
    assert done.returncode == 1 and "no setting 'prot'" in done.stderr


def test_it_follows_what_is_deployed_and_stops_cleanly(tmp_path: Path) -> None:
    import time

    from tests.served import add_mlp

    workspace = open_home(tmp_path)
    _, key = workspace.keys.create("tests", ["infer"])
    with serving(tmp_path, key, "--no-auth") as running:
        assert httpx.get(f"{running.url}/v1/models").json()["data"] == []
        add_mlp(workspace)
        wait_until(lambda: httpx.get(f"{running.url}/v2/models/mlp/ready").status_code == 200)
        workspace.catalog.undeploy("mlp")
        began = time.monotonic()
        wait_until(lambda: httpx.get(f"{running.url}/v2/models/mlp").status_code == 404)
        assert time.monotonic() - began < 1.0
        assert running.stop() == 0
        assert running.process.stdout is not None
        assert "No model is deployed yet" in running.process.stdout.read()
    workspace.close()


def test_loopback_is_known() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "192.0.2.1", "host", ""))
