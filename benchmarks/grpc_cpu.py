"""Server CPU microseconds per gRPC request, against an empty handler of grpc.aio in the same run, on a tiny model.

    python -m benchmarks.grpc_cpu [--seconds 3] [--rounds 3] [--shapes 64x1 8x8 1x64]

Both servers run in processes of their own on uvloop: one answers a fixed message of the same size and does nothing else; the
other is `maasdam serve` with keys, ledger (durable rows), metrics and log on. h2load asks them by turns, so that what else the
machine does falls on both. A shape is connections x streams of each. CPU time is what the operating system says of a process.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import psutil
from tests.served import add_mlp, open_home, serving
from tests.service import free_port

METHOD = "/inference.GRPCInferenceService/ModelInfer"
DONE = re.compile(r"requests: .* (\d+) succeeded, (\d+) failed")
BARE = """
import asyncio, grpc, sys, uvloop
reply = bytes.fromhex(sys.argv[2])
async def answer(asked, context):
    return reply
async def main():
    server = grpc.aio.server()
    handlers = {"ModelInfer": grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("inference.GRPCInferenceService", handlers),))
    server.add_insecure_port(f"127.0.0.1:{sys.argv[1]}")
    await server.start()
    await server.wait_for_termination()
uvloop.run(main())
"""


def message() -> bytes:
    """One infer request of one row, 8 numbers."""
    from maasdam.api import oip_proto

    row = np.arange(8, dtype=np.float32)
    asked = oip_proto.message("ModelInferRequest")(model_name="mlp", raw_input_contents=[row.tobytes()])
    asked.inputs.add(name="x", datatype="FP32", shape=[1, 8])
    return bytes(asked.SerializeToString())


def called(port: int, key: str, asked: bytes) -> bytes:
    """One answer, which shows that there are some. Raises RpcError."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary(METHOD)
        return bytes(call(asked, metadata=(("authorization", f"Bearer {key}"),), timeout=20, wait_for_ready=True))


@contextmanager
def bare(reply: bytes) -> Iterator[tuple[int, psutil.Process]]:
    """An empty handler's port and process."""
    port = free_port()
    process = subprocess.Popen([sys.executable, "-c", BARE, str(port), reply.hex()])
    try:
        yield port, psutil.Process(process.pid)
    finally:
        process.kill()
        process.wait()


def load(port: int, key: str, body: Path, shape: str, seconds: int, process: psutil.Process) -> tuple[float, float]:
    """CPU microseconds a request, requests a second."""
    connections, streams = shape.split("x")
    words = ["h2load", "-c", connections, "-m", streams, "-D", str(seconds), "-d", str(body)]
    for header in ("content-type: application/grpc", "te: trailers", f"authorization: Bearer {key}"):
        words += ["-H", header]
    before = sum(process.cpu_times()[:2])
    told = subprocess.run([*words, f"http://127.0.0.1:{port}{METHOD}"], capture_output=True, text=True, check=True).stdout
    spent = sum(process.cpu_times()[:2]) - before
    found = DONE.search(told)
    if found is None or int(found[1]) == 0:
        raise SystemExit(f"h2load had no answers:\n{told}")
    return spent / int(found[1]) * 1e6, int(found[1]) / seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shapes", nargs="+", default=["64x1", "8x8", "1x64"])
    parser.add_argument("--pause", action="store_true", help="Wait for Enter once the service runs: to attach a profiler.")
    asked = parser.parse_args()
    if shutil.which("h2load") is None:
        raise SystemExit("h2load is not installed: it is in Debian's package nghttp2-client")
    print(f"load average before: {os.getloadavg()[0]:.2f} on {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as folder:
        home, body, port = Path(folder), Path(folder) / "body", free_port()
        workspace = open_home(home)
        add_mlp(workspace)
        _, key = workspace.keys.create("benchmark", ["infer"])
        workspace.close()
        data = message()
        body.write_bytes(struct.pack(">BI", 0, len(data)) + data)
        with serving(home, key, "--grpc-port", str(port)) as running:
            reply = called(port, key, data)
            ours = psutil.Process(running.process.pid)
            if asked.pause:
                input(f"process {ours.pid} ")
            with bare(reply) as (bare_port, other):
                called(bare_port, key, data)
                for shape in asked.shapes:
                    found: dict[str, list[tuple[float, float]]] = {"bare": [], "ours": []}
                    for _ in range(asked.rounds):
                        found["bare"].append(load(bare_port, key, body, shape, asked.seconds, other))
                        found["ours"].append(load(port, key, body, shape, asked.seconds, ours))
                    micros = {who: statistics.median(one for one, _ in runs) for who, runs in found.items()}
                    rates = {who: statistics.median(one for _, one in runs) for who, runs in found.items()}
                    print(
                        f"{shape:>5}: bare {micros['bare']:6.0f}, ours {micros['ours']:6.0f} CPU us/request"
                        f" (+{micros['ours'] - micros['bare']:.0f}); {rates['bare']:.0f} and {rates['ours']:.0f} requests/s",
                        flush=True,
                    )
    print(f"load average after: {os.getloadavg()[0]:.2f}")


if __name__ == "__main__":
    main()
