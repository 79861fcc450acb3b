"""Many models under one memory budget, asked at random: errors, hits, and what a load takes, by phase.

    python -m benchmarks.many_models [--models 24] [--room 8] [--minutes 10] [--callers 4] [--engine onnxruntime openvino]

Each model is a perceptron of its own weights (32 MB by default), deployed on demand. One is loaded first to learn what a
host of it holds; the budget is then `room` times that. Every answer is compared with numpy's.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from tests.served import open_home, serving

from maasdam.core import Signature, TensorSpec
from maasdam.operations.workspace import Workspace

WIDTH = 2000
"""Of the hidden layers: two products of WIDTH x WIDTH are 32 MB."""
SIDE = Signature((TensorSpec("x", "float32", (None, 8)),), (TensorSpec("y", "float32", (None, 4)),))
Weights = list[np.ndarray[Any, Any]]


@dataclass
class Heard:
    """What callers met."""

    hits: list[float] = field(default_factory=list)
    """Seconds of requests whose model was up."""
    misses: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)


def weights_of(seed: int) -> Weights:
    """Of one model."""
    rng = np.random.default_rng(seed)
    sizes = ((8, WIDTH), (WIDTH, WIDTH), (WIDTH, WIDTH), (WIDTH, 4))
    return [(rng.normal(size=size) / np.sqrt(size[0])).astype(np.float32) for size in sizes]


def answer(weights: Weights, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What the model should say."""
    for matrix in weights[:-1]:
        x = np.maximum(x @ matrix, 0)
    return np.asarray(x @ weights[-1])


def add(workspace: Workspace, name: str, seed: int, engine: str) -> None:
    """Register a perceptron, and deploy it on demand."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights, nodes, at = weights_of(seed), [], "x"
    for i in range(len(weights)):
        is_last = i == len(weights) - 1
        nodes.append(helper.make_node("MatMul", [at, f"w{i}"], ["y" if is_last else f"h{i}"]))
        if not is_last:
            nodes.append(helper.make_node("Relu", [f"h{i}"], [f"r{i}"]))
            at = f"r{i}"
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])
    graph = helper.make_graph(nodes, name, [x], [y], [numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights)])
    with workspace.store.workspace() as folder:
        files = folder / "files"
        files.mkdir()
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), files / "model.onnx")
        artifact = workspace.store.add(
            files, format="onnx", layout="onnx", task=None, engine=engine, signature=SIDE, settings={"threads": 1}
        )
    report = {"passed": True, "failures": []}
    workspace.catalog.register(name, artifact, source="made up", recipe="none", report=report, passes=[])
    workspace.catalog.deploy(name, mode="on-demand")


def ask(client: httpx.Client, name: str, seed: int, weights: Weights, heard: Heard) -> None:
    """One request for one row."""
    x = np.random.default_rng(seed).normal(size=(1, 8)).astype(np.float32)
    tensor = {"name": "x", "shape": [1, 8], "datatype": "FP32", "data": x.ravel().tolist()}
    is_up = client.get(f"/v2/models/{name}").json()["parameters"]["state"] == "ready"
    began = time.perf_counter()
    reply = client.post(f"/v2/models/{name}/infer", json={"inputs": [tensor]})
    seconds = time.perf_counter() - began
    with heard.lock:
        if reply.status_code != 200:
            heard.errors[f"{reply.status_code} {reply.text[:200]}"] += 1
        elif not np.allclose(reply.json()["outputs"][0]["data"], answer(weights, x).ravel(), rtol=1e-3, atol=1e-4):
            heard.errors["another model's answer"] += 1
        else:
            (heard.hits if is_up else heard.misses).append(seconds)


def learn(home: Path, key: str, weights: list[Weights]) -> tuple[int, float]:
    """What a host of the first model holds, and the seconds from a cold start of the whole service to its first answer."""
    began = time.perf_counter()
    with serving(home, key, "--grpc-port", "0") as process, process.client() as client:
        heard = Heard()
        ask(client, "model-0", 0, weights[0], heard)
        cold = time.perf_counter() - began
        assert not heard.errors, heard.errors
        row = next(row for row in client.get("/admin/models").json()["models"] if row["model"] == "model-0")
        return int(row["memory_bytes"]), cold


def run(args: argparse.Namespace, engine: str) -> None:
    """All for one engine."""
    weights = [weights_of(seed) for seed in range(args.models)]
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        workspace = open_home(home)
        for seed in range(args.models):
            add(workspace, f"model-{seed}", seed, engine)
        _, key = workspace.keys.create("trial", ["infer", "deploy", "admin"])
        one, cold = learn(home, key, weights)
        budget = int(one * (args.room + 0.5))
        (home / "maasdam.toml").write_text(f"memory_budget = {budget}\n")
        heard, most = Heard(), 0
        with serving(home, key, "--grpc-port", "0") as process, process.client() as client:
            until = time.monotonic() + 60 * args.minutes

            def call(seed: int) -> None:
                draws = random.Random(seed)
                with process.client() as mine:
                    while time.monotonic() < until:
                        which = draws.randrange(args.models)
                        ask(mine, f"model-{which}", draws.randrange(1 << 30), weights[which], heard)

            callers = [threading.Thread(target=call, args=(seed,)) for seed in range(args.callers)]
            for caller in callers:
                caller.start()
            while any(caller.is_alive() for caller in callers):
                rows = client.get("/admin/models").json()["models"]
                most = max(most, sum(row["memory_bytes"] or 0 for row in rows))
                time.sleep(1)
            metrics = client.get("/metrics").text
        tell(args, engine, heard, one, budget, most, cold, metrics)


def tell(
    args: argparse.Namespace, engine: str, heard: Heard, one: int, budget: int, most: int, cold: float, metrics: str
) -> None:
    """Print what came of it."""
    asked = len(heard.hits) + len(heard.misses) + sum(heard.errors.values())
    print(f"\n{engine}: {args.models} models of {one / 1e6:.0f} MB each, budget {budget / 1e6:.0f} MB, {args.callers} callers,")
    print(f"{args.minutes:g} minutes: {asked} requests, {sum(heard.errors.values())} errors {dict(heard.errors) or ''}")
    rate, fair = len(heard.hits) / max(asked, 1), args.room / args.models
    print(f"at most {most / 1e6:.0f} MB held; hit rate {rate:.3f} (room / models {fair:.3f})")
    for name, seconds in (("model up", heard.hits), ("model asleep", heard.misses)):
        if seconds:
            p50, p99 = np.percentile(seconds, [50, 99]) * 1e3
            print(f"{name}: {len(seconds)} requests, p50 {p50:.1f} ms, p99 {p99:.1f} ms")
    print(f"cold start of the service to the first answer: {cold * 1e3:.0f} ms; a load by phase, mean ms:")
    sums, counts = Counter[str](), Counter[str]()
    for line in metrics.splitlines():
        if line.startswith("maasdam_model_load_seconds_"):
            name, value = line.rsplit(" ", 1)
            phase = name.split('phase="')[1].split('"')[0]
            if "_sum{" in name:
                sums[phase] += float(value)  # type: ignore[assignment]  # seconds
            elif "_count{" in name:
                counts[phase] += int(float(value))
    for phase, count in counts.items():
        print(f"  {phase}: {sums[phase] / count * 1e3:.1f} ({count})")
    print(f"load average {psutil.getloadavg()[0]:.1f}")


def main() -> None:
    """Try it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=24)
    parser.add_argument("--room", type=int, default=8)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--callers", type=int, default=4)
    parser.add_argument("--engine", nargs="+", default=["onnxruntime"], choices=["onnxruntime", "openvino"])
    args = parser.parse_args()
    for engine in args.engine:
        run(args, engine)


if __name__ == "__main__":
    main()
