"""What the hop to an engine host costs: CPU of both processes a request, less that of the same engine in this process.

    python -m benchmarks.host_hop [--seconds 2]

One model gives its input back, so that the bytes are the same both ways. `depth` requests are in flight at a time.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from maasdam import settings
from maasdam.artifacts.store import Store
from maasdam.core import ANONYMOUS, Request, Signature, TensorPayload, TensorSpec
from maasdam.engines.batching_kept import Findings
from maasdam.operations.workspace import Workspace
from maasdam.serving.hosts.loading import HostLoader
from maasdam.serving.hosts.local import LocalKeeper
from maasdam.serving.loading import Loader
from maasdam.telemetry.meter import CpuMeter

WIDTH = 256
"""Numbers of float32: a row is 1 KB."""
SIZES = {"1 KB": 1, "16 KB": 16, "64 KB": 64, "600 KB": 600}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each figure")
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory() as home, Workspace.open(settings.load({"home": Path(home)}, environ={})) as workspace:
        version = _register(workspace)
        try:
            import uvloop

            run: Callable[[Any], Any] = uvloop.run
        except ImportError:
            run = asyncio.run
        run(_measure(workspace, version, seconds))


async def _measure(workspace: Workspace, version: Any, seconds: float) -> None:
    chosen = workspace.settings
    meter = CpuMeter()
    meter.exclude_this_thread()
    keeper = LocalKeeper(chosen, None)
    here = await Loader(Store(chosen.home / "artifacts"), chosen, Findings(chosen.home), meter=meter)(version)
    hosted = await HostLoader(keeper, chosen)(version)
    (host,) = [reading.pid for reading in await keeper.readings()]
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n")
    print("bytes     depth   here us   with a host us (parent + host)   hop us   requests/s")
    for name, rows in SIZES.items():
        for depth in (1, 64):
            own, _, _ = await _run(here, rows, depth, seconds / 2, lambda: 0.0)
            both, parent, rate = await _run(hosted, rows, depth, seconds, partial(_cpu_seconds, host))
            split = f"{parent:.0f} + {both - parent:.0f}"
            print(f"{name:8}  {depth:5}   {own:7.1f}   {both:8.1f} ({split})   {both - own:10.1f}   {rate:10,.0f}")
    await hosted.leave()
    await keeper.close()
    here.close()


async def _run(replica: Any, rows: int, depth: int, seconds: float, of_host: Callable[[], float]) -> tuple[float, float, float]:
    """CPU us a request of both, and of this process; requests a second."""
    request = Request("r", "m", (TensorPayload({"x": np.ones((rows, WIDTH), np.float32)}),), ANONYMOUS)
    loop = asyncio.get_running_loop()
    for is_warm in (False, True):
        over = loop.create_future()
        until = time.perf_counter() + (seconds if is_warm else 0.2)
        count = left = 0

        def done(outcome: Any) -> None:
            nonlocal count, left
            if isinstance(outcome, BaseException):
                raise outcome
            count += 1
            if time.perf_counter() < until:  # noqa: B023 - it is of this round
                loop.call_soon(ask)
            else:
                left -= 1
                if not left:
                    over.set_result(None)  # noqa: B023 - likewise

        def ask() -> None:
            replica.submit(request, done)

        began, parent, host = time.perf_counter(), time.process_time(), of_host()
        left = depth
        for _ in range(depth):
            ask()
        await over
        parent, host = time.process_time() - parent, of_host() - host
    return (parent + host) / count * 1e6, parent / count * 1e6, count / (time.perf_counter() - began)


def _cpu_seconds(pid: int) -> float:
    """Of all threads of a process, to the nanosecond."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def _register(workspace: Workspace) -> Any:
    import onnx
    from onnx import TensorProto, helper

    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", WIDTH])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", WIDTH])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "same", [x], [y])
    signature = Signature((TensorSpec("x", "float32", (None, WIDTH)),), (TensorSpec("y", "float32", (None, WIDTH)),))
    with workspace.store.workspace() as folder:
        files = folder / "files"
        files.mkdir()
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), files / "model.onnx")
        how: dict[str, Any] = {"format": "onnx", "layout": "onnx", "task": None, "engine": "onnxruntime"}
        artifact = workspace.store.add(files, **how, signature=signature, settings={"threads": 1})
    report = {"passed": True, "failures": []}
    return workspace.catalog.register("same", artifact, source="benchmark", recipe="none", report=report)


if __name__ == "__main__":
    main()
