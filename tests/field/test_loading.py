"""Loading in a service: what never ends fails alone, what killed the service is not tried again, answers have a size."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tests.fakes import FakeEngine, FakeSequenceEngine
from tests.served import add_mlp, open_home
from tests.waiting import until

from maasdam.core import ANONYMOUS, Artifact, Request, Signature, TensorPayload, TensorSpec
from maasdam.engines import open_engine
from maasdam.errors import InvalidModel, TooLarge
from maasdam.operations.service import Service, open_service
from maasdam.operations.workspace import Workspace
from maasdam.serving.attempts import LoadAttempts
from maasdam.serving.replica import TensorReplica
from maasdam.telemetry.meter import CpuMeter


@pytest.fixture
def workspace(tmp_path: Path):
    with open_home(tmp_path) as made:
        add_mlp(made, "endless", 32)
        add_mlp(made, "good", 16)
        yield made


async def states_of(service: Service, condition: Callable[[dict[str, str]], bool]) -> dict[str, Any]:
    """The replica sets by model, once their states fulfil the condition."""
    await until(lambda: condition({group.version.model: group.state for group in service.router.groups()}))
    return {group.version.model: group for group in service.router.groups()}


@pytest.mark.parametrize("where", ["open", "warm"])
async def test_a_model_that_loads_for_ever_fails_and_no_other_waits_for_it(workspace: Workspace, where: str) -> None:
    digest = workspace.catalog.resolve("endless").digest
    gate = threading.Event()

    def opener(artifact: Artifact, **options: Any) -> Any:
        if artifact.digest != digest:
            return open_engine(artifact, **options)
        if where == "open":
            gate.wait(60)
        engine = FakeEngine(signature=artifact.signature)
        engine.gate = gate
        return engine

    limited = replace(workspace, settings=replace(workspace.settings, load_seconds=2.0))
    service = open_service(limited, open_engine=opener)
    await service.start()
    copies = await states_of(service, lambda states: states.get("good") == "ready")
    assert copies["endless"].state == "loading"
    copies = await states_of(service, lambda states: states["endless"] == "failed")
    assert "2 s (setting load_seconds)" in copies["endless"].reason and service.is_ready
    gate.set()
    await service.stop()


async def test_what_failed_to_load_is_tried_again_only_when_it_is_deployed_again(workspace: Workspace) -> None:
    digest, tries = workspace.catalog.resolve("endless").digest, 0

    def opener(artifact: Artifact, **options: Any) -> Any:
        nonlocal tries
        if artifact.digest == digest:
            tries += 1
            raise InvalidModel("not today")
        return open_engine(artifact, **options)

    service = open_service(workspace, open_engine=opener)
    await service.start()
    await states_of(service, lambda states: states == {"endless": "failed", "good": "ready"})
    workspace.catalog.undeploy("good")
    workspace.catalog.deploy("good")
    assert (await service.router.settled("good", 30)).state == "ready" and service.is_ready and tries == 1
    workspace.catalog.deploy("endless")  # as POST /v2/repository/models/endless/load does
    assert (await service.router.settled("endless", 30)).state == "failed" and tries == 2
    await service.stop()


async def test_an_engine_that_no_replica_can_be_made_of_is_closed(workspace: Workspace) -> None:
    """A sequence engine without a task: nothing can be prepared for it."""
    opened: list[FakeSequenceEngine] = []

    def opener(artifact: Artifact, **options: Any) -> Any:
        opened.append(FakeSequenceEngine())
        return opened[-1]

    service = open_service(workspace, open_engine=opener)
    await service.start()
    found = await states_of(service, lambda states: states == {"endless": "failed", "good": "failed"})
    assert all("names no task" in group.reason for group in found.values())
    await until(lambda: all(engine.is_closed for engine in opened))
    await service.stop()


DIES = """
import asyncio, os, sys
from tests.served import open_home
from maasdam.engines import open_engine
from maasdam.operations.service import open_service

async def main():
    workspace = open_home(__import__("pathlib").Path(sys.argv[1]))
    bad = workspace.catalog.resolve("endless").digest
    def opener(artifact, **options):
        if artifact.digest == bad:
            os.abort()
        return open_engine(artifact, **options)
    service = open_service(workspace, open_engine=opener)
    await service.start()
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_what_was_loading_when_the_service_died_is_loaded_in_a_process_of_its_own(
    workspace: Workspace,
) -> None:
    home = workspace.settings.home
    workspace.catalog.undeploy("good")  # the other may not be loading at the same time
    died = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", DIES, str(home)], capture_output=True, timeout=60)
    assert died.returncode < 0, died.stderr
    workspace.catalog.deploy("good")
    assert len(list((home / "loading").iterdir())) == 1
    for is_apart in (True, False):  # it loads there, so it was not to blame
        service = open_service(workspace)
        await service.start()
        copies = await states_of(service, lambda states: set(states.values()) == {"ready"})
        assert [name for name, copy in copies.items() if copy.replicas[0].memory_bytes] == ["endless"] * is_apart
        await service.stop()
        assert list((home / "loading").iterdir()) == []


DIES_LOADING = """
import os, signal, sys
from pathlib import Path
from maasdam.serving.attempts import LoadAttempts
with LoadAttempts(Path(sys.argv[1])).noted("acme/photos", 3):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_note_that_a_living_process_holds_is_no_crash_and_one_that_was_left_is_seen_by_all_that_live(tmp_path: Path) -> None:
    folder = tmp_path / "loading"
    mine, other = LoadAttempts(folder), LoadAttempts(folder)
    with mine.noted("acme/photos", 3), other.noted("acme/photos", 3):
        assert not mine.were_fatal("acme/photos", 3) and not other.were_fatal("acme/photos", 3)
        died = subprocess.run([sys.executable, "-c", DIES_LOADING, str(folder)], capture_output=True, timeout=60)
        assert died.returncode < 0
        assert mine.were_fatal("acme/photos", 3) and other.were_fatal("acme/photos", 3)
    assert mine.were_fatal("acme/photos", 3), "who loads it all the same takes no other's note away"
    assert not mine.were_fatal("acme/photos", 30) and not mine.were_fatal("acme/photo", 3)
    other.forgive("acme/photos", 3)
    assert not mine.were_fatal("acme/photos", 3) and list(folder.iterdir()) == []


async def test_two_processes_load_a_version_in_turns_and_one_that_dies_leaves_its_turn(tmp_path: Path) -> None:
    folder = tmp_path / "loading"
    code = DIES_LOADING.replace("noted(", "turn(").replace("with Load", "async def main():\n  async with Load")
    code += "import asyncio; asyncio.run(main())"
    seen = []

    async def second() -> None:
        async with LoadAttempts(folder).turn("acme/photos", 3):
            seen.append("second")

    async with LoadAttempts(folder).turn("acme/photos", 3), LoadAttempts(folder).turn("acme/photos", 4):
        waiting = asyncio.create_task(second())
        await asyncio.sleep(0.05)
        assert seen == []
    await waiting
    assert seen == ["second"]
    died = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", code, str(folder)], capture_output=True, timeout=60)
    assert died.returncode == -9, died.stderr
    await second()


async def test_turns_are_taken_one_at_a_time_whoever_gives_up_and_however_many_come(tmp_path: Path) -> None:
    attempts, inside = LoadAttempts(tmp_path), 0

    async def enters(times: int) -> None:
        nonlocal inside
        for _ in range(times):
            async with attempts.turn("one", 1):
                inside += 1
                try:
                    assert inside == 1
                    await asyncio.sleep(0.001)
                finally:
                    inside -= 1

    comers = [asyncio.create_task(enters(3)) for _ in range(8)]
    given_up = [asyncio.create_task(enters(99)) for _ in range(4)]
    await until(lambda: sum(comer.done() for comer in comers) > 1)
    for one in given_up:
        one.cancel()
    await asyncio.gather(*comers)
    await asyncio.wait(given_up)
    assert all(one.cancelled() for one in given_up)


class Counting(FakeEngine):
    """Counts its runs, and gives a row of a million numbers for each of its input."""

    signature = Signature((TensorSpec("x", "float32", (None, 2)),), (TensorSpec("y", "float32", (None, 1_000_000)),))

    def __init__(self) -> None:
        super().__init__(signature=self.signature)

    def run(self, batch: Any) -> dict[str, Any]:
        self.batches.append(1)
        return {"y": np.zeros((len(batch["x"]), 1_000_000), np.float32)}


async def test_an_answer_too_large_is_refused_before_it_is_made_where_shapes_tell() -> None:
    from concurrent.futures import ThreadPoolExecutor

    engine = Counting()
    with ThreadPoolExecutor(1) as pool:
        replica = TensorReplica(engine, None, pool=pool, meter=CpuMeter(), queue_size=8, max_answer_bytes=10_000_000)
        chunk = await anext(replica.answer(Request("r", "m", (TensorPayload({"x": np.zeros((2, 2), np.float32)}),), ANONYMOUS)))
        assert chunk.value["y"].nbytes == 8_000_000 and len(engine.batches) == 1
        with pytest.raises(TooLarge, match="12,000,000"):
            await anext(replica.answer(Request("r", "m", (TensorPayload({"x": np.zeros((3, 2), np.float32)}),), ANONYMOUS)))
        assert len(engine.batches) == 1
        replica.close()


def repeater(folder: Path) -> Artifact:
    """As often as it is told: only the value of an input says how large the answer is."""
    graph = helper.make_graph(
        [helper.make_node("Tile", ["x", "times"], ["y"])],
        "repeater",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"]),
            helper.make_tensor_value_info("times", TensorProto.INT64, [1]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["m"])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), folder / "model.onnx")
    signature = Signature(
        (TensorSpec("x", "float32", (None,)), TensorSpec("times", "int64", (1,))), (TensorSpec("y", "float32", (None,)),)
    )
    return Artifact("sha256:repeater", folder, "onnx", "onnx", None, "onnxruntime", signature, 1)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_memory_comes_back_after_a_large_answer(tmp_path: Path, engine: str) -> None:
    opened = open_engine(replace(repeater(tmp_path), engine=engine))
    few, many = ({"x": np.ones(1000, np.float32), "times": np.array([n], np.int64)} for n in (1, 90_000))
    opened.run(few)
    before = resident()
    for _ in range(2):
        assert opened.run(many)["y"].nbytes == 360_000_000
        assert opened.run(few)["y"].nbytes == 4000
    assert resident() - before < 100_000_000
    opened.close()


async def test_an_answer_too_large_that_no_shape_told_is_refused(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        engine: Any = open_engine(repeater(tmp_path))
        replica = TensorReplica(engine, None, pool=pool, meter=CpuMeter(), queue_size=8, max_answer_bytes=1_000_000)
        with pytest.raises(TooLarge, match="max_answer_bytes"):
            await anext(
                replica.answer(
                    Request("r", "m", (TensorPayload({"x": np.ones(1000, np.float32), "times": np.array([1000])}),), ANONYMOUS)
                )
            )
        replica.close()


async def test_nobody_keeps_an_answer_that_was_refused() -> None:
    from concurrent.futures import ThreadPoolExecutor

    class Large(Counting):
        def run(self, batch: Any) -> dict[str, Any]:
            made = np.zeros(1_000_000, np.float32)
            self.made = weakref.ref(made)
            return {"y": made}

    engine = Large()
    engine.signature = Signature(engine.signature.inputs, (TensorSpec("y", "float32", (None,)),))
    gc.disable()
    try:
        with ThreadPoolExecutor(1) as pool:
            replica = TensorReplica(engine, None, pool=pool, meter=CpuMeter(), queue_size=8, max_answer_bytes=1_000_000)
            with pytest.raises(TooLarge) as caught:
                await anext(replica.answer(Request("r", "m", (TensorPayload({"x": np.zeros((2, 2), np.float32)}),), ANONYMOUS)))
            await until(lambda: engine.made() is None)  # its thread is about to let it go
            assert caught.value.http_status == 413
            replica.close()
    finally:
        gc.enable()


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
