"""Server CPU microseconds per request, against the raw engine, on a tiny model.

    python -m benchmarks.serving_cpu [--seconds 5] [--connections 1 16 64]

The service runs in its own process, as `maasdam serve` runs it: keys, ledger (durable rows), metrics, all on. The
load comes from this process over keep-alive connections. CPU time is what the operating system says of the service's
process, so it holds on a busy machine too, where requests per second do not.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import psutil
import uvloop
from tests.served import add_mlp, open_home, serving


class Client(asyncio.Protocol):
    """Sends the same request again as soon as it is answered."""

    def __init__(self, request: bytes, counts: list[int]) -> None:
        self.request, self.counts = request, counts
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        transport.write(self.request)  # type: ignore[attr-defined]  # a TCP transport writes

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, found, rest = self.buffer.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        if len(rest) < length:
            return
        self.counts[0 if head.startswith(b"HTTP/1.1 200") else 1] += 1
        self.buffer = b""
        self.transport.write(self.request)  # type: ignore[attr-defined]  # a TCP transport writes


def request(url: str, key: str, is_binary: bool) -> bytes:
    """One infer request of one row, 8 numbers."""
    row = np.arange(8, dtype=np.float32)
    tensor = {"name": "x", "shape": [1, 8], "datatype": "FP32"}
    lines = [
        "POST /v2/models/mlp/infer HTTP/1.1",
        f"Host: {urlsplit(url).netloc}",
        f"Authorization: Bearer {key}",
    ]
    if is_binary:
        asked = {"inputs": [tensor | {"parameters": {"binary_data_size": 32}}], "parameters": {"binary_data_output": True}}
        head = json.dumps(asked).encode()
        body = head + row.tobytes()
        lines.append(f"Inference-Header-Content-Length: {len(head)}")
    else:
        body = json.dumps({"inputs": [tensor | {"data": row.tolist()}]}).encode()
    return ("\r\n".join([*lines, f"Content-Length: {len(body)}"]) + "\r\n\r\n").encode() + body


async def load(url: str, sent: bytes, connections: int, seconds: float, process: psutil.Process) -> tuple[float, float, int]:
    """CPU microseconds per request, requests per second, errors."""
    counts = [0, 0]
    host, port = urlsplit(url).hostname, urlsplit(url).port
    loop = asyncio.get_running_loop()
    made = [await loop.create_connection(lambda: Client(sent, counts), host, port) for _ in range(connections)]
    await asyncio.sleep(1.0)
    before, began, cpu = counts[0], time.perf_counter(), sum(process.cpu_times()[:2])
    await asyncio.sleep(seconds)
    answered, wall = counts[0] - before, time.perf_counter() - began
    spent = sum(process.cpu_times()[:2]) - cpu
    for transport, _ in made:
        transport.close()
    return spent / max(answered, 1) * 1e6, answered / wall, counts[1]


def raw_engine() -> dict[int, float]:
    """Microseconds of CPU per row of the engine alone, by batch."""
    from maasdam.engines import open_engine

    with tempfile.TemporaryDirectory() as folder:
        workspace = open_home(Path(folder))
        add_mlp(workspace)
        engine = open_engine(workspace.store.get(workspace.catalog.resolve("mlp").digest), threads=1)
        out = {}
        for rows in (1, 16, 64):
            batch = {"x": np.ones((rows, 8), np.float32)}
            for _ in range(200):
                engine.run(batch)  # type: ignore[union-attr]  # a tensor engine
            began = time.process_time()
            for _ in range(2000):
                engine.run(batch)  # type: ignore[union-attr]  # a tensor engine
            out[rows] = (time.process_time() - began) / 2000 / rows * 1e6
        engine.close()
        workspace.close()
        return out


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 16, 64])
    asked = parser.parse_args()
    for rows, micros in raw_engine().items():
        print(f"raw engine, batch {rows:>2}: {micros:8.2f} CPU us/row")
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        workspace = open_home(home)
        add_mlp(workspace)
        _, key = workspace.keys.create("benchmark", ["infer"])
        workspace.close()
        with serving(home, key) as running:
            process = psutil.Process(running.process.pid)
            for is_binary in (False, True):
                for connections in asked.connections:
                    sent = request(running.url, key, is_binary)
                    micros, rate, errors = uvloop.run(load(running.url, sent, connections, asked.seconds, process))
                    what = "binary" if is_binary else "JSON"
                    print(
                        f"{what:>6}, {connections:>3} connections: {micros:8.1f} CPU us/request,"
                        f" {rate:8.0f} requests/s, {errors} errors",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
