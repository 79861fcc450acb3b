"""Servers that `benchmarks.serving` compares: how each is installed, started and asked. Knows programs; measures nothing.

Each peer has an environment of its own, made at its first use, with the versions written here.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent / "peers"
COMMON = ("numpy==2.4.6", "onnxruntime==1.32.0")
START_SECONDS = 90


@dataclass(frozen=True, slots=True)
class Model:
    """What is served: an ONNX file of one input and one output, rows of `shape`."""

    name: str
    file: Path
    shape: tuple[int, ...]
    input: str
    output: str

    @property
    def is_small(self) -> bool:
        """Whether its rows travel as JSON."""
        return len(self.shape) == 1

    def row(self) -> np.ndarray:
        """The row that everyone is asked about."""
        return np.random.default_rng(1).random((1, *self.shape), dtype=np.float32)


Body = tuple[bytes, dict[str, str]]
"""What is sent, and its headers."""


def oip(model: Model, input: str = "input", output: str = "output", may_be_binary: bool = True) -> Body:
    """The Open Inference Protocol: JSON for small rows, binary data for large ones."""
    row = model.row()
    tensor = {"name": input, "shape": list(row.shape), "datatype": "FP32"}
    if model.is_small or not may_be_binary:
        data = [round(float(number), 6) for number in row.ravel()]
        return json.dumps({"inputs": [tensor | {"data": data}]}).encode(), {"Content-Type": "application/json"}
    asked = {
        "inputs": [tensor | {"parameters": {"binary_data_size": row.nbytes}}],
        "outputs": [{"name": output, "parameters": {"binary_data": True}}],
    }
    head = json.dumps(asked).encode()
    head += b" " * (-len(head) % 4)
    kind = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    return head + row.tobytes(), kind


def plain(model: Model) -> Body:
    """A JSON list, or bytes."""
    if model.is_small:
        return json.dumps({"input": model.row().ravel().tolist()}).encode(), {"Content-Type": "application/json"}
    return model.row().tobytes(), {"Content-Type": "application/octet-stream"}


def _lit(model: Model) -> Body:
    if model.is_small:
        return plain(model)
    return json.dumps({"b64": base64.b64encode(model.row().tobytes()).decode()}).encode(), {"Content-Type": "application/json"}


def _bento(model: Model) -> Body:
    return json.dumps({"input": model.row().tolist()}).encode(), {"Content-Type": "application/json"}


@dataclass(frozen=True, slots=True)
class Peer:
    """One other server."""

    name: str
    packages: tuple[str, ...]
    command: Callable[[Path, int, Path], list[str]]
    """Of its environment, the port and a folder of its own."""
    path: str
    """Of its route; {} is the model's name."""
    body: Callable[[Model], Body] = plain
    prepare: Callable[[Model, int, Path], None] = lambda model, port, folder: None
    environ: Callable[[Path], dict[str, str]] = field(default=lambda env: {})

    def install(self, folder: Path) -> Path:
        """Its environment below `folder`, made where there is none."""
        env = folder / f"p-{self.name}"
        if not (env / "installed").exists():
            subprocess.run([sys.executable, "-m", "venv", str(env)], check=True)
            pip = [str(env / "bin/python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
            subprocess.run([*pip, *self.packages], check=True)
            (env / "installed").touch()
        return env

    @contextmanager
    def running(self, folder: Path, model: Model, port: int, cores: str) -> Iterator[subprocess.Popen[bytes]]:
        """The server on these cores, with its log in `folder`; everything it started is ended afterwards."""
        env, own = self.install(folder), folder / f"run-{self.name}"
        own.mkdir(exist_ok=True)
        self.prepare(model, port, own)
        environ = os.environ | {
            "MODEL": model.name,
            "MODEL_FILE": str(model.file),
            "MODEL_SHAPE": json.dumps(model.shape),
            "PEERS_FOLDER": str(HERE),
            "PYTHONPATH": str(HERE),
            "PATH": f"{env / 'bin'}:{os.environ['PATH']}",
        }
        command = ["taskset", "-c", cores, *self.command(env, port, own)]
        with (own / "log").open("wb") as log:
            process = subprocess.Popen(command, cwd=own, env=environ | self.environ(env), stdout=log, stderr=log)
            try:
                yield process
            finally:
                _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    import psutil

    try:
        others = psutil.Process(process.pid).children(recursive=True)
    except psutil.Error:
        others = []
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for other in others:
        try:
            other.kill()
        except psutil.Error:
            continue


def _mlserver(model: Model, port: int, folder: Path) -> None:
    ports = {"http_port": port, "grpc_port": port + 1, "metrics_port": port + 2, "host": "127.0.0.1"}
    (folder / "settings.json").write_text(json.dumps(ports | {"debug": False, "metrics_endpoint": None}))
    most = {"max_batch_size": 64 if model.is_small else 8, "max_batch_time": 0.002}
    (folder / "model-settings.json").write_text(
        json.dumps({"name": model.name, "implementation": "mlserver_runtime.Inference"} | most)
    )


def _triton(model: Model, port: int, folder: Path) -> None:
    version = folder / "models" / model.name / "1"
    version.mkdir(parents=True, exist_ok=True)
    (version / "model.py").write_text((HERE / "triton_model.py").read_text())
    dims, most = list(model.shape), 64 if model.is_small else 8
    outputs = list(np.asarray(_outputs(model))[0].shape)
    (version.parent / "config.pbtxt").write_text(
        f'backend: "python"\nmax_batch_size: {most}\n'
        f'input [{{name:"input" data_type:TYPE_FP32 dims:{dims}}}]\n'
        f'output [{{name:"output" data_type:TYPE_FP32 dims:{outputs}}}]\n'
        "dynamic_batching { max_queue_delay_microseconds: 100 }\ninstance_group [{kind:KIND_CPU count:1}]\n"
    )


def _outputs(model: Model) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(model.file), providers=["CPUExecutionProvider"])
    given: np.ndarray = session.run([model.output], {model.input: model.row()})[0]
    return given


def _packages(env: Path) -> Path:
    return env / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"


def _triton_command(env: Path, port: int, folder: Path) -> list[str]:
    """pytriton brings Triton's server and its Python backend, whose stub for this Python lies beside."""
    brought = _packages(env) / "pytriton" / "tritonserver"
    backend = folder / "backends" / "python"
    if not backend.is_dir():
        import shutil

        shutil.copytree(brought / "backends" / "python", backend)
        for stub in (brought / "python_backend_stubs" / f"{sys.version_info.major}.{sys.version_info.minor}").glob("*"):
            shutil.copy(stub, backend)
    return [
        str(brought / "bin" / "tritonserver"),
        f"--model-repository={folder / 'models'}",
        f"--backend-directory={folder / 'backends'}",
        f"--http-port={port}",
        f"--grpc-port={port + 1}",
        f"--metrics-port={port + 2}",
        "--http-address=127.0.0.1",
        "--log-info=false",
    ]


def _triton_environ(env: Path) -> dict[str, str]:
    packages = _packages(env)
    libraries = f"{sysconfig.get_config_var('LIBDIR')}:{packages / 'nvidia_pytriton.libs'}"
    return {"PYTHONPATH": str(packages), "TRITON_PACKAGES": str(packages), "LD_LIBRARY_PATH": libraries}


def _python(program: str, *words: str) -> Callable[[Path, int, Path], list[str]]:
    def command(env: Path, port: int, folder: Path) -> list[str]:
        return [str(env / "bin/python"), str(HERE / program), *(word.format(port=port) for word in words)]

    return command


PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            "mosec",
            ("mosec==0.9.8", *COMMON),
            _python("mosec_server.py", "--port", "{port}", "--address", "127.0.0.1", "--timeout", "120000"),
            "/inference",
        ),
        Peer(
            "pytriton",
            ("nvidia-pytriton==0.7.0", "numpy==1.26.4", "onnxruntime==1.32.0"),
            _triton_command,
            "/v2/models/{}/infer",
            oip,
            _triton,
            _triton_environ,
        ),
        Peer("litserve", ("litserve==0.2.19", *COMMON), _python("litserve_server.py", "{port}"), "/predict", _lit),
        Peer(
            "kserve",
            ("kserve==0.21.0", *COMMON),
            _python("kserve_server.py", "{port}", "--enable_latency_logging", "false"),
            "/v2/models/{}/infer",
            oip,
        ),
        Peer(
            "bentoml",
            ("bentoml==1.4.39", *COMMON),
            lambda env, port, folder: [
                str(env / "bin/bentoml"), "serve", "bentoml_service:Inference", "--host", "127.0.0.1", "--port", str(port)
            ],
            "/predict",
            _bento,
            environ=lambda env: {"BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(env / "home")},
        ),
        Peer(
            "mlserver",
            ("mlserver==1.7.1", *COMMON),
            lambda env, port, folder: [str(env / "bin/mlserver"), "start", "."],
            "/v2/models/{}/infer",
            lambda model: oip(model, may_be_binary=False),
            _mlserver,
            environ=lambda env: {"MLSERVER_PARALLEL_WORKERS": "0"},
        ),
    )
}  # fmt: skip
