"""Models that crash, never end or take all memory take down their engine host alone; hosts come back, and leave nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from tests.field.test_hanging import FOREVER, add_counter, count
from tests.served import Process, add_mlp, add_starters, open_home, serving
from tests.waiting import until, wait_until

from maasdam.children.usage import cpu_seconds
from maasdam.core import ANONYMOUS, Request, Sampling, Signature, TensorPayload, TensorSpec, TextPayload, TextPiece
from maasdam.errors import Crashed, EngineFailure, NotReady
from maasdam.operations.workspace import Workspace
from maasdam.serving.hosts.loading import HostLoader
from maasdam.serving.hosts.local import LocalKeeper
from maasdam.serving.replica import Gone

INPUT = {"inputs": [{"name": "x", "shape": [1, 8], "datatype": "FP32", "data": [1] * 8}]}


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    with open_home(tmp_path) as opened:
        yield opened


def add_graph(workspace: Workspace, name: str, nodes: list[Any], engine: str, signature: Signature) -> None:
    """Register a graph of one input and one output, as ONNX or as OpenVINO has it."""
    import onnx
    from onnx import TensorProto, helper

    kinds = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}
    ends = [
        [helper.make_tensor_value_info(spec.name, kinds[spec.dtype], ["n", *spec.shape[1:]]) for spec in specs]
        for specs in (signature.inputs, signature.outputs)
    ]
    model = helper.make_model(helper.make_graph(nodes, name, *ends), opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    with workspace.store.workspace() as folder:
        files = folder / "files"
        files.mkdir()
        if engine == "openvino":
            import openvino

            onnx.save(model, folder / "m.onnx")
            openvino.save_model(openvino.Core().read_model(folder / "m.onnx"), files / "model.xml", compress_to_fp16=False)
        else:
            onnx.save(model, files / "model.onnx")
        kind: Any = {"format": "openvino", "layout": "ir"} if engine == "openvino" else {"format": "onnx", "layout": "onnx"}
        artifact = workspace.store.add(files, **kind, task=None, engine=engine, signature=signature, settings={"threads": 1})
    workspace.catalog.register(name, artifact, source="made by tests", recipe="none", report={"passed": True}, passes=[])


def numbers(name: str, value: int) -> Request:
    return Request("r", "m", (TensorPayload({name: np.full((1, 1), value, np.int64)}),), ANONYMOUS)


async def test_a_model_that_segfaults_while_it_loads_has_crashed_by_its_signal(workspace: Workspace) -> None:
    from onnx import helper, numpy_helper

    far = numpy_helper.from_array(np.array([0, 1 << 33, 0, 1 << 33]), "far")
    nodes = [
        helper.make_node("Constant", [], ["p"], value=far),
        helper.make_node("Pad", ["x", "p"], ["z"]),
        helper.make_node("ReduceSum", ["z"], ["y"]),
    ]
    signature = Signature((TensorSpec("x", "float32", (None, 4)),), (TensorSpec("y", "float32", (1, 1)),))
    add_graph(workspace, "pads", nodes, "openvino", signature)
    keeper = LocalKeeper(workspace.settings, 3 * 10**9)
    with pytest.raises(Crashed, match="while pads:1 was loaded, its process crashed with SIG"):
        await HostLoader(keeper, workspace.settings)(workspace.catalog.resolve("pads"))
    assert await keeper.readings() == []
    await keeper.close()


async def test_what_never_ends_is_ended_and_others_go_on(workspace: Workspace) -> None:
    add_counter(workspace)
    add_mlp(workspace)
    settings = replace(workspace.settings, host_stall_seconds=1.0)
    keeper = LocalKeeper(settings, None)
    load = HostLoader(keeper, settings)
    counter, mlp = await load(workspace.catalog.resolve("counter")), await load(workspace.catalog.resolve("mlp"))
    gone: list[Gone] = []
    counter.when_gone = gone.append
    told: list[Any] = []
    counter.submit(numbers("n", FOREVER), told.append)
    counter.submit(numbers("n", 1), told.append)
    await until(lambda: bool(gone))
    assert [type(error) for error in told] == [NotReady] * 2
    assert gone[0].is_crash and "nothing came of its work for 1 s (setting host_stall_seconds)" in gone[0].reason
    asked = Request("r", "mlp", (TensorPayload({"x": np.ones((1, 8), np.float32)}),), ANONYMOUS)
    assert [chunk.is_last async for chunk in mlp.answer(asked)] == [True]
    for replica in (counter, mlp):
        await replica.leave()
    await keeper.close()


async def test_memory_is_refused_beyond_the_limit_and_what_has_more_is_ended(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onnx import helper

    nodes = [
        helper.make_node("Reshape", ["n", "one"], ["size"]),
        helper.make_node("ConstantOfShape", ["size"], ["zeros"]),
        helper.make_node("ReduceSum", ["zeros"], ["sum"], keepdims=0),
        helper.make_node("Cast", ["sum"], ["none"], to=7),
        helper.make_node("Add", ["n", "none"], ["y"]),
    ]
    nodes.insert(0, helper.make_node("Constant", [], ["one"], value_ints=[1]))
    add_graph(workspace, "grows", nodes, "onnxruntime", Signature(*((TensorSpec(n, "int64", (None, 1)),) for n in "ny")))
    keeper = LocalKeeper(workspace.settings, 600_000_000)
    replica = await HostLoader(keeper, workspace.settings)(workspace.catalog.resolve("grows"))
    gone: list[Gone] = []
    replica.when_gone = gone.append
    with pytest.raises(EngineFailure, match=r"memory|alloc"):
        _ = [chunk async for chunk in replica.answer(numbers("n", 10**9))]
    (chunk,) = [chunk async for chunk in replica.answer(numbers("n", 10))]
    assert chunk.value["y"].tolist() == [[10]] and not gone  # type: ignore[call-overload, index]  # tensors
    monkeypatch.setattr("maasdam.children.forked.resident_bytes", lambda pid: 700_000_000)
    await until(lambda: bool(gone))
    assert "it took more memory than its limit of 0.6 GB (setting host_memory_bytes)" in gone[0].reason
    await replica.leave()
    await keeper.close()


async def test_a_text_model_writes_in_a_host_what_it_writes_here_and_may_be_stopped(
    workspace: Workspace, starters: Path
) -> None:
    from maasdam.engines.batching_kept import Findings
    from maasdam.serving.loading import Loader
    from maasdam.telemetry.meter import CpuMeter

    add_starters(workspace, starters, {"text": "bard"})
    version = workspace.catalog.resolve("bard")
    settings = workspace.settings
    keeper = LocalKeeper(settings, None)
    hosted = await HostLoader(keeper, settings)(version)
    here = await Loader(workspace.store, settings, Findings(settings.home), meter=CpuMeter())(version)
    assert hosted.facts == here.facts and hosted.executions is None
    request = Request("r", "bard", (TextPayload("To be", sampling=Sampling(max_tokens=12, temperature=0)),), ANONYMOUS)
    written = []
    for replica in (here, hosted):
        chunks = [chunk async for chunk in replica.answer(request)]
        pieces = [chunk.value for chunk in chunks if isinstance(chunk.value, TextPiece)]
        assert chunks[-1].cost is not None and chunks[-1].cost.cpu_seconds > 0
        written.append(("".join(p.text for p in pieces), [t for p in pieces for t in p.token_ids], chunks[-1].units))
    assert written[0] == written[1] and written[0][2].completion_tokens == 12
    whole: list[Any] = []
    hosted.submit(request, whole.append)
    await until(lambda: bool(whole))
    assert whole[0][0].value.text == written[0][0]
    long = replace(request, payloads=(TextPayload("To be", sampling=Sampling(max_tokens=5000, ignore_eos=True)),))
    stopped: list[Any] = []
    cancel = hosted.submit(long, stopped.append)
    await until(lambda: hosted._asked != {})
    await asyncio.sleep(0)
    assert all(chunk.units.prompt_tokens for chunk in cancel())
    (reading,) = await keeper.readings()
    await until(lambda: keeper._hosts[reading.id].status.in_flight == 0)
    assert stopped == []
    await asyncio.to_thread(here.close)
    await hosted.leave()
    await keeper.close()


async def test_fifty_loads_and_unloads_leave_what_there_was(workspace: Workspace) -> None:
    add_mlp(workspace)
    version = workspace.catalog.resolve("mlp")
    keeper = LocalKeeper(workspace.settings, None)
    load = HostLoader(keeper, workspace.settings)

    def left() -> tuple[int, int, int]:
        handles = len(list(Path("/proc/self/fd").iterdir()))
        return handles, threading.active_count(), len(keeper._hosts) + len(keeper._over)

    async def once() -> None:
        replica = await load(version)
        await replica.leave()

    await once()
    before = left()
    for _ in range(50):
        await once()
    await until(lambda: all(now <= then for now, then in zip(left(), before, strict=True)))
    await keeper.close()


def test_a_stranger_who_speaks_to_a_host_is_hung_up_on(workspace: Workspace) -> None:
    add_mlp(workspace)

    async def main() -> None:
        keeper = LocalKeeper(workspace.settings, None)
        replica = await HostLoader(keeper, workspace.settings)(workspace.catalog.resolve("mlp"))
        path = next(iter(keeper._hosts.values())).path
        assert path.parent.stat().st_mode & 0o777 == 0o700
        for said in (b"x", os.urandom(2000), b"\0\0\0\5\xdd\xff\xff\xff\xff", b"\0\0\0\3\xdc\0\0" + bytes(60_000)):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger:
                stranger.connect(str(path))
                stranger.send(said)
        asked = Request("r", "mlp", (TensorPayload({"x": np.ones((1, 8), np.float32)}),), ANONYMOUS)
        assert [chunk.is_last async for chunk in replica.answer(asked)] == [True]
        await replica.leave()
        await keeper.close()

    asyncio.run(main())


def hosts_of(running: Process) -> list[int]:
    """Process ids of its engine hosts."""
    tree: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        tree.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    return [host for child in tree.get(running.process.pid, []) for host in tree.get(child, [])]


def test_a_host_killed_under_load_is_back_and_nobody_else_notices(tmp_path: Path) -> None:
    with open_home(tmp_path) as opened:
        add_mlp(opened)
        opened.catalog.deploy("mlp", isolate=True)
        add_mlp(opened, "other", 32)
        _, key = opened.keys.create("tests", ["infer", "admin", "deploy"])
    with serving(tmp_path, key) as running:
        (host,) = hosts_of(running)
        seen: Counter[tuple[str, int]] = Counter()
        is_over = threading.Event()

        def ask(name: str) -> None:
            with running.client() as client:
                while not is_over.is_set():
                    seen[name, client.post(f"/v2/models/{name}/infer", json=INPUT).status_code] += 1

        threads = [threading.Thread(target=ask, args=(name,)) for name in ("mlp", "mlp", "other")]
        for thread in threads:
            thread.start()
        wait_until(lambda: seen["mlp", 200] > 20)
        os.kill(host, signal.SIGKILL)
        wait_until(lambda: seen["mlp", 503] > 0)
        before = seen["mlp", 200]
        wait_until(lambda: seen["mlp", 200] > before + 20)
        is_over.set()
        for thread in threads:
            thread.join()
        assert {status for name, status in seen if name == "mlp"} == {200, 503}
        assert {status for name, status in seen if name == "other"} == {200}
        assert hosts_of(running) not in ([], [host])
        deployed = httpx.get(f"{running.url}/admin/deployments", headers=running.headers).json()["deployments"]
        assert {row["model"]: row["isolate"] for row in deployed} == {"mlp": True, "other": False}
        left = hosts_of(running)
        assert running.stop() == 0
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in left))


def ask_for_ever(running: Process) -> None:
    with contextlib.suppress(httpx.HTTPError):  # it ends with the service
        count(running, FOREVER)


@pytest.mark.parametrize("hangs", [False, True])
def test_hosts_whose_service_was_killed_end_by_themselves(tmp_path: Path, hangs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(tempfile.mkdtemp())  # whose path is short enough for a socket's
    monkeypatch.setenv("TMPDIR", str(folder))
    with open_home(tmp_path) as opened:
        add_counter(opened)
        opened.catalog.deploy("counter", isolate=True)
        _, key = opened.keys.create("tests", ["infer"])
    with serving(tmp_path, key) as running:
        (host,) = hosts_of(running)
        assert len(list(folder.glob("maasdam-hosts-*/*"))) == 1
        if hangs:
            before = cpu_seconds(host)
            asking = threading.Thread(target=ask_for_ever, args=(running,))
            asking.start()
            wait_until(lambda: cpu_seconds(host) > before + 0.3)
        running.kill()
        wait_until(lambda: not Path(f"/proc/{host}").exists())
        if hangs:
            asking.join()
    assert list(folder.glob("maasdam-hosts-*")) == []
    shutil.rmtree(folder)
