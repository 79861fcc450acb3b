"""Where a real service listens: TLS, a Unix socket, systemd's sockets; and what clients, `status` and systemd see of it."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from tests.api.test_tls import pair
from tests.served import add_mlp, open_home, start
from tests.service import free_port, maasdam
from tests.waiting import wait_until

from maasdam.api import oip_proto

ASKED = {"inputs": [{"name": "x", "shape": [1, 8], "datatype": "FP32", "data": [1.0] * 8}]}
AS_SYSTEMD = """
import os, sys
numbers = [int(word) for word in sys.argv[1].split(",")]
for i, number in enumerate(numbers):
    os.dup2(number, 3 + i)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(numbers)), "LISTEN_FDNAMES": sys.argv[2]}
os.execv(sys.executable, [sys.executable, "-m", "maasdam", "serve", *sys.argv[3:]])
"""


@pytest.fixture
def home(tmp_path: Path) -> tuple[Path, str]:
    """A home with a model, and a key."""
    folder = tmp_path / "home"
    workspace = open_home(folder)
    add_mlp(workspace)
    _, key = workspace.keys.create("doors", ["infer", "deploy"])
    workspace.close()
    return folder, key


def infer(channel: grpc.Channel, key: str) -> int:
    """How many bytes the answer of a gRPC request has."""
    asked = oip_proto.message("ModelInferRequest")(model_name="mlp", raw_input_contents=[np.ones(8, np.float32).tobytes()])
    asked.inputs.add(name="x", datatype="FP32", shape=[1, 8])
    call = channel.unary_unary(f"/{oip_proto.SERVICE}/ModelInfer")
    return len(call(asked.SerializeToString(), metadata=(("authorization", f"Bearer {key}"),), timeout=20, wait_for_ready=True))


def serve(home: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """`serve` that does not begin."""
    words = [sys.executable, "-m", "maasdam", "serve", *flags]
    return subprocess.run(words, capture_output=True, text=True, timeout=60, env=os.environ | {"MAASDAM_HOME": str(home)})


def told(home: Path) -> Any:
    """What `status` says of the service."""
    service = maasdam(home, "status")["service"]
    return {name: service[name] for name in ("url", "state", "hint")}


@pytest.mark.parametrize("flags", [(), ("--workers", "2")], ids=["alone", "workers"])
def test_tls_for_both_protocols_and_their_clients(home: tuple[Path, str], tmp_path: Path, flags: tuple[str, ...]) -> None:
    import openai
    import tritonclient.http

    folder, key = home
    certificate, private = pair(tmp_path / "tls")
    port = free_port()
    running = start(
        folder,
        key,
        "--tls-cert",
        str(certificate),
        "--tls-key",
        str(private),
        "--grpc-port",
        str(port),
        *flags,
        trusts=str(certificate),
    )
    try:
        assert running.url.startswith("https://127.0.0.1:")
        verify = ssl.create_default_context(cafile=str(certificate))
        with httpx.Client(base_url=running.url, headers=running.headers, verify=verify) as client:
            assert client.post("/v2/models/mlp/infer", json=ASKED).status_code == 200
            models = openai.OpenAI(base_url=f"{running.url}/v1", api_key=key, http_client=client).models.list()
            assert [one.id for one in models.data] == ["mlp"]
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(f"{running.url}/health")
        triton = tritonclient.http.InferenceServerClient(
            running.url.removeprefix("https://"), ssl=True, ssl_options={"ca_certs": str(certificate)}
        )
        assert triton.is_server_ready() and triton.is_model_ready("mlp", headers=running.headers)
        with grpc.secure_channel(f"127.0.0.1:{port}", grpc.ssl_channel_credentials(certificate.read_bytes())) as channel:
            assert infer(channel, key) > 16
        assert "use https://" in httpx.get(running.url.replace("https", "http")).text
        assert told(folder) == {"url": running.url, "state": "running", "hint": None}
    finally:
        assert running.stop() == 0


def test_a_pair_that_does_not_fit_is_one_clear_sentence(tmp_path: Path) -> None:
    certificate, _ = pair(tmp_path / "tls")
    _, other = pair(tmp_path / "tls", "other")
    done = serve(tmp_path / "home", "--port", "0", "--tls-cert", str(certificate), "--tls-key", str(other))
    assert done.returncode == 1 and "is not that of the certificate" in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_unix_socket_is_its_owners_alone_is_replaced_when_dead_and_refused_in_use(
    home: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAASDAM_GRPC_PORT", "8081")
    folder, key = home
    path = folder / "s.sock"
    first = start(folder, key, "--uds", str(path))
    first.kill()
    assert path.is_socket(), "it is left behind"
    running = start(folder, key, "--uds", str(path))
    try:
        assert running.url == f"unix:{path}"
        for one in (path, Path(f"{path}.grpc")):
            assert stat.S_IMODE(one.stat().st_mode) == 0o600
        transport = httpx.HTTPTransport(uds=str(path))
        with httpx.Client(transport=transport, base_url="http://localhost", headers=running.headers) as client:
            assert client.post("/v2/models/mlp/infer", json=ASKED).status_code == 200
        curl = ["curl", "-sS", "--unix-socket", str(path), "http://localhost/v2/health/live", "-o", "-", "-w", "%{http_code}"]
        assert subprocess.run(curl, capture_output=True, text=True, check=True).stdout.endswith("200")
        with grpc.insecure_channel(f"unix:{path}.grpc") as channel:
            assert infer(channel, key) > 16
        assert told(folder) == {"url": f"unix:{path}", "state": "running", "hint": None}
        for words, says in (
            (["--uds", str(path)], "another service listens on"),
            (["--uds", str(folder / "maasdam.db")], "is no socket"),
            (["--uds", str(folder / ("x" * 120))], "at most 107 bytes"),
        ):
            done = serve(folder, *words)
            assert done.returncode == 1 and says in done.stderr and len(done.stderr.splitlines()) == 1
    finally:
        assert running.stop() == 0
    assert not path.exists() and not Path(f"{path}.grpc").exists()


@contextmanager
def as_systemd(home: Path, sockets: list[socket.socket], names: str, *flags: str) -> Iterator[tuple[Any, socket.socket]]:
    """A service that systemd starts, and where it tells how it is."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        path = home / "notify"
        path.unlink(missing_ok=True)
        heard.bind(str(path))
        heard.settimeout(60)
        environment = os.environ | {"MAASDAM_HOME": str(home), "NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "400000"}
        numbers = [one.fileno() for one in sockets]
        words = [sys.executable, "-c", AS_SYSTEMD, ",".join(map(str, numbers)), names, *flags]
        with (home / "out").open("w") as out:
            process = subprocess.Popen(words, pass_fds=numbers, env=environment, stdout=out, stderr=subprocess.STDOUT)
        try:
            yield process, heard
        finally:
            process.kill()
            process.wait()


@pytest.mark.parametrize("flags", [(), ("--workers", "2")], ids=["alone", "workers"])
def test_systemd_gives_sockets_and_hears_of_life(home: tuple[Path, str], flags: tuple[str, ...]) -> None:
    folder, key = home
    with (
        socket.create_server(("127.0.0.1", 0)) as web,
        socket.create_server(("127.0.0.1", 0)) as second,
        socket.socket(socket.AF_UNIX) as local,
    ):
        local.bind(str(folder / "local"))
        local.listen()
        port, grpc_port = web.getsockname()[1], second.getsockname()[1]
        early = socket.create_connection(("127.0.0.1", port))  # nobody is there yet, and it is answered
        early.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        with as_systemd(folder, [web, second, local], "http:grpc:local", *flags) as (process, heard):
            said = []
            while not said or not said[-1].startswith(b"READY=1"):
                said.append(heard.recv(999))
            assert b"STATUS=1 models" in said[-1]
            early.settimeout(20)
            assert early.recv(999).startswith(b"HTTP/1.1 200")
            headers = {"Authorization": f"Bearer {key}"}
            assert httpx.post(f"http://127.0.0.1:{port}/v2/models/mlp/infer", json=ASKED, headers=headers).status_code == 200
            with httpx.Client(transport=httpx.HTTPTransport(uds=str(folder / "local"))) as client:
                assert client.get("http://localhost/v2/health/ready").status_code == 200
            with grpc.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
                assert infer(channel, key) > 16
            assert told(folder)["url"] == f"http://127.0.0.1:{port}"
            wait_until(lambda: heard.recv(999) == b"WATCHDOG=1")
            process.send_signal(signal.SIGTERM)
            while not (last := heard.recv(999)).startswith(b"STOPPING=1"):
                assert last == b"WATCHDOG=1"
            assert process.wait(30) == 0
            with socket.create_connection(("127.0.0.1", port), timeout=5):
                pass  # the socket is systemd's, and goes on
        early.close()


def test_systemd_without_a_socket_for_http_is_one_clear_sentence(home: tuple[Path, str]) -> None:
    folder, _ = home
    with socket.create_server(("127.0.0.1", 0)) as one, as_systemd(folder, [one], "grpc") as (process, _):
        assert process.wait(60) == 1
        assert "systemd gave 0 sockets for HTTP and 1 for gRPC" in (folder / "out").read_text()
