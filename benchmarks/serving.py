"""Serving against peers: CPU a request, requests a second, how long they wait; the raw engine and everyone else in turns.

    python -m benchmarks.serving --peers FOLDER [--models mlp resnet50] [--only maasdam mosec ...] [--rounds 3] [--workers 1]

Ours runs as `maasdam serve` does: keys, limits, metrics, a durable row and a log line for each request. In each round every
server is started anew, warmed up and loaded by wrk; servers have one core (0) and the load another (1), and CPU is what the
system says of all of a server's processes. The raw engine is ONNX Runtime on the same file, one thread, on the servers' core,
before and after each; what a row of it costs divided by what a request costs is the share of the engine. Medians over the
rounds. FOLDER keeps the peers' environments (a gigabyte), made at the first use; wrk is Debian's.

ResNet-50 has random weights (`benchmarks.compression`), and is built here: FP32 for ONNX, which the peers serve too, and int8.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psutil
from tests.served import open_home, start

from benchmarks.compression import _photographs, _resnet
from benchmarks.contestants import PEERS, START_SECONDS, Body, Model, oip

SERVER_CORE, LOAD_CORE = "0", "1"
OURS = "maasdam"
CONNECTIONS = {"mlp": (1, 16, 64), "resnet50": (1, 16, 64)}
LENIENT = """# of random weights nothing is right or wrong: what int8 costs is the same
[limits]
max_drop = 1.0
min_cosine = 0.0
min_fidelity = 0.5
min_ratio = 1.0

[[pass]]
use = "quantize"
scheme = "static-int8"

[[pass]]
use = "optimize"
engine = "auto"
"""
LONGER = {"mlp": 1, "resnet50": 6}
"""Times --seconds: what is in flight at the end is not counted, and must be little beside what is."""
LUA = """local f = io.open("{body}", "rb"); wrk.body = f:read("*a"); f:close(); wrk.method = "POST"
{headers}
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format("RESULT %d %f %d %d %d\\n", summary.requests, summary.duration / 1e6, latency:percentile(50),
    latency:percentile(99), e.status + e.read + e.connect + e.write + e.timeout))
end
"""


@dataclass(frozen=True, slots=True)
class Measured:
    """One load of one server."""

    cpu: float
    """Of all its processes, microseconds a request."""
    rate: float
    """Requests a second."""
    p50: float
    p99: float
    """Milliseconds."""
    errors: int
    engine: float
    """What a row of the raw engine takes, CPU microseconds, beside it."""


@dataclass(frozen=True, slots=True)
class Place:
    """A server that answers."""

    url: str
    body: Body
    pid: int
    ready: float
    """Seconds until the first answer."""


RAW = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
import numpy as np
from model import Model, SHAPE
model, rows = Model(), int(sys.argv[2])
batch = np.random.default_rng(1).random((rows, *SHAPE), dtype=np.float32)
model(batch)
for line in sys.stdin:
    began, cpu, count = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - began < float(line):
        model(batch)
        count += rows
    print((time.process_time() - cpu) / count * 1e6, flush=True)
"""


@contextmanager
def raw_engine(model: Model) -> Iterator[subprocess.Popen[str]]:
    """A process that runs the file, and nothing else, when it is told to."""
    environ = os.environ | {"MODEL": model.name, "MODEL_FILE": str(model.file), "MODEL_SHAPE": json.dumps(model.shape)}
    command = ["taskset", "-c", SERVER_CORE, sys.executable, "-c", RAW, str(Path(__file__).parent / "peers"), "1"]
    with subprocess.Popen(command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def ask(process: subprocess.Popen[str], seconds: float) -> float:
    """CPU microseconds that a row takes in the raw engine."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(f"{seconds}\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def spent(pid: int) -> float:
    """CPU-seconds so far of a process and all below it."""
    total = 0.0
    for process in processes(pid):
        try:
            total += sum(process.cpu_times()[:2])
        except psutil.Error:
            continue
    return total


def processes(pid: int) -> list[psutil.Process]:
    """A process and all below it."""
    try:
        one = psutil.Process(pid)
        return [one, *one.children(recursive=True)]
    except psutil.Error:
        return []


def pss(pid: int) -> float:
    """MB of all its processes, what they share counted once."""
    total = 0.0
    for process in processes(pid):
        try:
            total += process.memory_full_info().pss / 1e6
        except psutil.Error:
            continue
    return total


def first_answer(url: str, body: Body, process: subprocess.Popen[bytes] | subprocess.Popen[str], began: float) -> float:
    """Seconds from `began` until it answers. Raises RuntimeError where it never does."""
    said = ""
    while time.perf_counter() - began < START_SECONDS:
        if process.poll() is not None:
            raise RuntimeError(f"it ended with status {process.returncode}")
        try:
            with urllib.request.urlopen(urllib.request.Request(url, body[0], body[1]), timeout=30) as answer:
                answer.read()
                return time.perf_counter() - began
        except OSError as error:
            said = str(error)
        time.sleep(0.02)
    raise RuntimeError(f"no answer within {START_SECONDS} s: {said}")


def load(place: Place, connections: int, seconds: float, folder: Path) -> tuple[float, float, float, float, int]:
    """CPU microseconds a request, requests a second, p50 and p99 in ms, errors."""
    script, body = folder / "load.lua", folder / "body"
    body.write_bytes(place.body[0])
    headers = "\n".join(f'wrk.headers["{name}"] = "{value}"' for name, value in place.body[1].items())
    script.write_text(LUA.format(body=body, headers=headers))
    wrk = ["taskset", "-c", LOAD_CORE, "wrk", "-t1", f"-c{connections}", "--timeout", "90s", "-s", str(script)]
    subprocess.run([*wrk, "-d1s", place.url], capture_output=True, check=True)
    before = spent(place.pid)
    told = subprocess.run([*wrk, f"-d{seconds:.0f}s", place.url], capture_output=True, check=True, text=True).stdout
    cpu = spent(place.pid) - before
    found = re.search(r"RESULT (\d+) (\S+) (\d+) (\d+) (\d+)", told)
    assert found is not None, told
    count, took = int(found[1]), float(found[2])
    return cpu / max(count, 1) * 1e6, count / took, int(found[3]) / 1e3, int(found[4]) / 1e3, int(found[5])


@contextmanager
def ours(home: Path, key: str, name: str, model: Model, workers: int) -> Iterator[Place]:
    """`maasdam serve` with one model deployed."""
    flags = [] if workers == 1 else ["--workers", str(workers)]
    workspace = open_home(home)
    for other in workspace.catalog.deployments():
        workspace.catalog.undeploy(other.model)
    workspace.catalog.deploy(name, trust=True)
    workspace.close()
    began = time.perf_counter()
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {int(SERVER_CORE)})
    try:
        running = start(home, key, *flags, until_ready=False)
    finally:
        os.sched_setaffinity(0, before)
    try:
        content, headers = oip(model, model.input, model.output)
        body = content, headers | running.headers
        url = f"{running.url}/v2/models/{name}/infer"
        yield Place(url, body, running.process.pid, first_answer(url, body, running.process, began))
    finally:
        running.stop()


@contextmanager
def theirs(name: str, model: Model, port: int, folder: Path) -> Iterator[Place]:
    """One peer with the model."""
    peer = PEERS[name]
    peer.install(folder)
    body = peer.body(model)
    url = f"http://127.0.0.1:{port}{peer.path.format(model.name)}"
    began = time.perf_counter()
    with peer.running(folder, model, port, SERVER_CORE) as process:
        yield Place(url, body, process.pid, first_answer(url, body, process, began))


def build(folder: Path, home: Path, *words: str) -> None:
    """`maasdam build`, unless that was done before."""
    name = words[words.index("--name") + 1]
    workspace = open_home(home)
    known = {version.model for version in workspace.catalog.versions()}
    workspace.close()
    if name not in known:
        environ = os.environ | {"MAASDAM_HOME": str(home)}
        subprocess.run([sys.executable, "-m", "maasdam", "build", *words], env=environ, check=False, cwd=folder)


def models(folder: Path, home: Path, wanted: list[str]) -> dict[str, tuple[Model, list[str]]]:
    """What is served, and under which names it is ours."""
    made: dict[str, tuple[Model, list[str]]] = {}
    if "mlp" in wanted:
        file = folder / "mlp.onnx"
        if not file.exists():
            _mlp(file)
        build(folder, home, str(file), "--name", "mlp", "--to", "onnx")
        made["mlp"] = Model("mlp", file, (30,), "input", "output"), ["mlp"]
    if "resnet50" in wanted:
        source = folder / "resnet50"
        if not (source / "config.json").exists():
            source.mkdir(exist_ok=True)
            _resnet(source)
        build(folder, home, str(source), "--name", "resnet50", "--to", "onnx")
        photographs = folder / "photographs"
        if not photographs.is_dir():
            _photographs(photographs)
        lenient = folder / "int8.toml"
        lenient.write_text(LENIENT)
        build(folder, home, str(source), "--name", "resnet50-int8", "--recipe", str(lenient), "--calibrate", str(photographs))
        workspace = open_home(home)
        artifact = workspace.store.get(workspace.catalog.resolve("resnet50").digest)
        passed = [one.model for one in workspace.catalog.versions() if one.passed]
        workspace.close()
        signature = artifact.signature
        assert signature is not None
        file = next(artifact.path.rglob("*.onnx"))
        one = Model("resnet50", file, (3, 224, 224), signature.inputs[0].name, signature.outputs[0].name)
        made["resnet50"] = one, [name for name in ("resnet50", "resnet50-int8") if name in passed]
        if "resnet50-int8" not in passed:
            print("resnet50-int8 did not pass its verification, so it is not served")
    return made


def _mlp(file: Path) -> None:
    """30-64-32-3 with a softmax, weights from seed 0."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    widths, nodes, weights, last = (30, 64, 32, 3), [], [], "input"
    for i, (wide, narrow) in enumerate(itertools.pairwise(widths)):
        weight = (rng.standard_normal((wide, narrow)) / np.sqrt(wide)).astype(np.float32)
        weights += [numpy_helper.from_array(weight, f"w{i}"), numpy_helper.from_array(np.zeros(narrow, np.float32), f"b{i}")]
        nodes.append(helper.make_node("Gemm", [last, f"w{i}", f"b{i}"], [f"h{i}"]))
        last = f"h{i}"
        if i < 2:
            nodes.append(helper.make_node("Relu", [last], [f"r{i}"]))
            last = f"r{i}"
    nodes.append(helper.make_node("Softmax", [last], ["output"], axis=1))
    x = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 30])
    y = helper.make_tensor_value_info("output", TensorProto.FLOAT, ["n", 3])
    graph = helper.make_graph(nodes, "mlp", [x], [y], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), file)


def fsync_ms(folder: Path) -> float:
    """Milliseconds that the disk takes to make 4 KB durable, median of 200."""
    path, taken = folder / "synced", []
    with path.open("wb") as file:
        for _ in range(200):
            file.write(b"x" * 4096)
            file.flush()
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            taken.append((time.perf_counter() - began) * 1e3)
    path.unlink()
    return median(taken)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, required=True, help="where the peers' environments and the models are kept")
    parser.add_argument("--models", nargs="+", default=["mlp", "resnet50"], choices=["mlp", "resnet50"])
    parser.add_argument("--only", nargs="+", default=[OURS, *PEERS], choices=[OURS, *PEERS])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--workers", type=int, default=1, help="of ours")
    asked = parser.parse_args()
    if shutil.which("wrk") is None:
        parser.error("wrk is not installed: apt install wrk")
    folder = asked.peers.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    home = folder / "home"
    workspace = open_home(home)
    _, key = workspace.keys.create("benchmark", ["infer"])
    workspace.close()
    print(f"fdatasync of 4 KB: {fsync_ms(home):.2f} ms; load of the machine before: {os.getloadavg()[0]:.1f}")
    results: dict[tuple[str, str, int], list[Measured]] = defaultdict(list)
    starts: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    failed: dict[tuple[str, str], str] = {}
    port = 20_000
    for model, names in models(folder, home, asked.models).values():
        servers = [*(n for n in names if OURS in asked.only), *(n for n in asked.only if n != OURS)]
        with raw_engine(model) as raw, tempfile.TemporaryDirectory() as scratch:
            for round in range(asked.rounds):
                for server in servers[round % len(servers) :] + servers[: round % len(servers)]:
                    port += 10
                    is_ours = server in names
                    opened = ours(home, key, server, model, asked.workers) if is_ours else theirs(server, model, port, folder)
                    shown = (OURS if server == model.name else server) if is_ours else server
                    try:
                        with opened as place:
                            for connections in CONNECTIONS[model.name]:
                                before = ask(raw, 1)
                                seconds = asked.seconds * LONGER[model.name]
                                told = load(place, connections, seconds, Path(scratch))
                                engine = (before + ask(raw, 1)) / 2
                                results[model.name, shown, connections].append(Measured(*told, engine))
                            starts[model.name, shown].append((place.ready, pss(place.pid)))
                    except (RuntimeError, subprocess.CalledProcessError, AssertionError) as error:
                        failed[model.name, shown] = str(error)[:200]
                    print(f"  round {round + 1}: {model.name} {shown} done", file=sys.stderr, flush=True)
    _print(results, starts, failed)


def _print(
    results: dict[tuple[str, str, int], list[Measured]],
    starts: dict[tuple[str, str], list[tuple[float, float]]],
    failed: dict[tuple[str, str], str],
) -> None:
    for model in dict.fromkeys(name for name, _, _ in results):
        print(f"\n{model}\n")
        print("| server | connections | CPU us a request | share of the engine | requests/s | p50 ms | p99 ms | errors |")
        print("|---|---|---|---|---|---|---|---|")
        for (name, server, connections), many in results.items():
            if name == model:
                cpu, rate = median(m.cpu for m in many), median(m.rate for m in many)
                share = median(m.engine / m.cpu for m in many)
                waits = f"{median(m.p50 for m in many):.2f} | {median(m.p99 for m in many):.2f}"
                print(
                    f"| {server} | {connections} | {cpu:.0f} | {share:.2f} | {rate:.0f} | {waits} | "
                    f"{sum(m.errors for m in many)} |"
                )
        print("\n| server | first answer s | MB (PSS) |\n|---|---|---|")
        for (name, server), pairs in starts.items():
            if name == model:
                print(f"| {server} | {median(p[0] for p in pairs):.1f} | {median(p[1] for p in pairs):.0f} |")
    for (model, server), why in failed.items():
        print(f"\n{model}: {server} did not run: {why}")


if __name__ == "__main__":
    main()
