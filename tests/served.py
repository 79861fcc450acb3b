"""A real service as its own process, on real small models; for tests and benchmarks."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import IO

import httpx
import psutil

from maasdam import settings
from maasdam.accounts.journal import Journal
from maasdam.accounts.outbox import Outbox
from maasdam.core import Artifact, Entry, Signature, TensorSpec
from maasdam.operations.address import Address, asked
from maasdam.operations.workspace import JOURNALS, Workspace
from maasdam.telemetry.metrics import Metrics
from tests.waiting import wait_until

MLP = Signature((TensorSpec("x", "float32", (None, 8)),), (TensorSpec("y", "float32", (None, 4)),))
WORKER = re.compile(r'"worker \d+ is process (\d+)"')
ADDRESS = re.compile(r"listens on ((?:https?://|unix:)\S+?),")


def open_home(home: Path) -> Workspace:
    """The workspace in `home`."""
    return Workspace.open(settings.load({"home": home}, environ={}))


def record(workspace: Workspace, *entries: Entry) -> None:
    """Rows as a service leaves them: priced, and in a journal of the home."""

    async def leave() -> None:
        outbox = Outbox(Journal(workspace.settings.home / JOURNALS), Metrics(), workspace.prices)
        told = [asyncio.get_running_loop().create_future() for _ in entries]
        for entry, future in zip(entries, told, strict=True):
            outbox.record(entry, future.set_result)
        assert set(await asyncio.gather(*told)) == {None}
        outbox.close()

    asyncio.run(leave())


def add_mlp(workspace: Workspace, name: str = "mlp", width: int = 64) -> None:
    """Register and deploy a multilayer perceptron of 8 numbers to 4, on ONNX Runtime; its weights are from seed 0."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    weights = [rng.normal(size=size).astype(np.float32) for size in ((8, width), (width, 4))]
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "w1"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])
    graph = helper.make_graph(nodes, "mlp", [x], [y], [numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights)])
    with workspace.store.workspace() as folder:
        files = folder / "files"
        files.mkdir()
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), files / "model.onnx")
        artifact = workspace.store.add(
            files, format="onnx", layout="onnx", task=None, engine="onnxruntime", signature=MLP, settings={"threads": 1}
        )
    report = {"passed": True, "failures": []}
    workspace.catalog.register(name, artifact, source="made by tests", recipe="none", report=report, passes=[])
    workspace.catalog.deploy(name)


@dataclass
class Process:
    """A running `maasdam serve`."""

    url: str
    key: str
    process: subprocess.Popen[str]
    log: Path

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    @property
    def workers(self) -> list[int]:
        """Process ids of its workers, as its log has them."""
        pids = (int(pid) for pid in WORKER.findall(self.log.read_text()))
        return sorted(pid for pid in pids if psutil.pid_exists(pid))

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers=self.headers, timeout=60)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.process.kill()
        self.process.wait()

    def stop(self, seconds: float = 20) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)


def start(home: Path, key: str, *flags: str, seconds: float = 60, until_ready: bool = True, trusts: str = "") -> Process:
    """Start the service on a free port and wait until every model is up or has failed; `trusts` is its certificate."""
    log = home / "serve.log"
    errors: IO[str]
    with log.open("a") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "maasdam", "serve", *([] if "--uds" in flags else ["--port", "0"]), *flags],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=os.environ | {"MAASDAM_HOME": str(home)},
        )
    assert process.stdout is not None
    line = process.stdout.readline()
    found = ADDRESS.search(line)
    if found is None:
        process.kill()
        raise AssertionError(f"no address in {line!r}; the log: {log.read_text()[-2000:]}")
    running = Process(found[1], key, process, log)
    try:
        wait_until(lambda: not until_ready or process.poll() is not None or _is_ready(running.url, trusts), seconds)
        assert process.poll() is None
    except AssertionError:
        process.kill()
        raise AssertionError(f"the service did not come up; the log: {log.read_text()[-2000:]}") from None
    return running


def _is_ready(url: str, trusts: str) -> bool:
    try:
        return asked(Address(url, 0, "", trusts), "/v2/health/ready", None, 5.0)[0] == 200
    except (OSError, HTTPException):
        return False


@contextmanager
def serving(home: Path, key: str, *flags: str) -> Iterator[Process]:
    """Start, and stop at the end."""
    running = start(home, key, *flags)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.process.terminate()
            try:
                running.process.wait(20)
            except subprocess.TimeoutExpired:
                running.kill()


def add(workspace: Workspace, name: str, artifact: Artifact, template: str | None = None) -> None:
    """Register and deploy a copy of an artifact, on one thread; `template`: with another chat template."""
    with workspace.store.workspace() as folder:
        shutil.copytree(artifact.path, folder / "files")
        if template is not None:
            (folder / "files" / "chat_template.jinja").write_text(template)
        kept = workspace.store.add(
            folder / "files",
            format=artifact.format,
            layout=artifact.layout,
            task=artifact.task,
            engine=artifact.engine,
            signature=artifact.signature,
            settings={"threads": 1},
        )
    report = {"passed": True, "failures": []}
    workspace.catalog.register(name, kept, source="made by tests", recipe="none", report=report, passes=[])
    workspace.catalog.deploy(name)


def add_starters(workspace: Workspace, starters: Path, names: Mapping[str, str] | None = None) -> None:
    """Register, promote and deploy the starter models as they are: "images", "text", "speech", or `names` of those."""
    from maasdam.sources import ingest

    tasks = {"images": "image-classification", "text": "text-generation", "speech": "automatic-speech-recognition"}
    for name, task in tasks.items():
        artifact = ingest(str(starters / name / "model"), workspace.store, task=task)
        report = {"passed": True, "failures": []}
        name = (names or {}).get(name, name)
        workspace.catalog.register(name, artifact, source="starter", recipe="none", report=report, passes=[])
        workspace.catalog.promote(name)
        workspace.catalog.deploy(name)
