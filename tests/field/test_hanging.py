"""What hangs holds up itself alone, and never the end of the service."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.served import Process, open_home, serving
from tests.waiting import wait_until

from maasdam.core import Signature, TensorSpec
from maasdam.operations.workspace import Workspace

COUNTS = Signature((TensorSpec("n", "int64", (None, 1)),), (TensorSpec("y", "int64", (None, 1)),))
FOREVER = 1 << 60


def add_counter(workspace: Workspace, name: str = "counter") -> None:
    """A model that counts to the largest of its numbers, and gives them back."""
    import onnx
    from onnx import TensorProto, helper

    body = helper.make_graph(
        [helper.make_node("Identity", ["go_on"], ["goes_on"]), helper.make_node("Identity", ["kept"], ["keeps"])],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("kept", TensorProto.INT64, None),
        ],
        [
            helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("keeps", TensorProto.INT64, None),
        ],
    )
    nodes = [
        helper.make_node("ReduceMax", ["n"], ["most"], keepdims=0),
        helper.make_node("Loop", ["most", "", "n"], ["y"], body=body),
    ]
    n = helper.make_tensor_value_info("n", TensorProto.INT64, ["batch", 1])
    y = helper.make_tensor_value_info("y", TensorProto.INT64, ["batch", 1])
    with workspace.store.workspace() as folder:
        files = folder / "files"
        files.mkdir()
        graph = helper.make_graph(nodes, "counter", [n], [y])
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), files / "model.onnx")
        artifact = workspace.store.add(
            files, format="onnx", layout="onnx", task=None, engine="onnxruntime", signature=COUNTS, settings={"threads": 1}
        )
    workspace.catalog.register(name, artifact, source="made by tests", recipe="none", report={"passed": True}, passes=[])
    workspace.catalog.deploy(name)


def count(running: Process, to: int, seconds: float = 60) -> httpx.Response:
    body = {"inputs": [{"name": "n", "shape": [1, 1], "datatype": "INT64", "data": [to]}]}
    return httpx.post(f"{running.url}/v2/models/counter/infer", json=body, headers=running.headers, timeout=seconds)


def hang(running: Process) -> None:
    """Ask for what never ends, and wait until the service is at it."""

    def ask() -> None:
        try:
            count(running, FOREVER)
        except httpx.HTTPError:
            return  # it ends with the service

    threading.Thread(target=ask, daemon=True).start()
    wait_until(lambda: is_deaf(running))


def is_deaf(running: Process) -> bool:
    """A model as small as this one runs in the event loop: nobody is answered."""
    try:
        httpx.get(f"{running.url}/health", timeout=1)
    except httpx.TimeoutException:
        return True
    return False


def has_heard(running: Process) -> bool:
    """Each signal was taken: none is pending, which a second one would be one with."""
    status = Path(f"/proc/{running.process.pid}/status").read_text().splitlines()
    return all(int(line.split()[1], 16) == 0 for line in status if line.startswith(("SigPnd", "ShdPnd")))


@pytest.mark.parametrize("times", [1, 2])
def test_a_service_whose_engine_hangs_ends_within_the_grace_and_at_once_when_told_twice(
    tmp_path: Path, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAASDAM_SHUTDOWN_GRACE_SECONDS", "3" if times == 1 else "100")
    workspace = open_home(tmp_path)
    add_counter(workspace)
    _, key = workspace.keys.create("tests", ["infer"])
    workspace.close()
    with serving(tmp_path, key) as running:
        answer = count(running, 3)
        assert answer.json()["outputs"][0]["data"] == [3]
        hang(running)
        for _ in range(times):
            running.process.send_signal(signal.SIGTERM)
            wait_until(lambda: has_heard(running))
        assert running.process.wait(20) == 0
    assert ("did not stop within 3 s" in running.log.read_text()) == (times == 1)
    workspace = open_home(tmp_path)
    usage: list[Any] = workspace.ledger.usage("model")
    workspace.close()
    assert usage[0].requests >= 1
