"""From the start of `maasdam serve` to its first answer, and how much memory its processes have.

    python -m benchmarks.cold_start [--times 5] [--workers 1]

One small ONNX model is deployed. What counts is from before the process is made until a request for that model is answered
with 200, asked again and again on new connections; then, a second later, the memory of all processes (PSS: pages that several
have are parted among them), and their CPU time until then. Libraries are in the system's page cache and their bytecode is
there, as after the first start.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from tests.served import add_mlp, open_home

from benchmarks.serving_cpu import request

PSS = re.compile(r"^Pss:\s+(\d+) kB", re.MULTILINE)


def free_port() -> int:
    """A port that nobody has now."""
    with socket.create_server(("127.0.0.1", 0)) as it:
        return int(it.getsockname()[1])


def measure(home: Path, key: str, workers: int) -> tuple[float, float, float, int]:
    """Seconds, CPU seconds, megabytes, processes."""
    port, grpc_port = free_port(), free_port()
    sent = request(f"http://127.0.0.1:{port}", key, False)
    command = [sys.executable, "-m", "maasdam", "serve", "--port", str(port), "--grpc-port", str(grpc_port)]
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    began = time.perf_counter()
    process = subprocess.Popen(
        [*command, "--workers", str(workers)],
        stdout=subprocess.DEVNULL,
        stderr=(home / "serve.log").open("a"),
        env=environ | {"MAASDAM_HOME": str(home)},
    )
    try:
        while not _is_answered(port, sent):
            if time.perf_counter() - began > 60 or process.poll() is not None:
                raise SystemExit((home / "serve.log").read_text())
            time.sleep(0.005)
        seconds = time.perf_counter() - began
        time.sleep(1.0)
        all_of_them = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        cpu = sum(sum(one.cpu_times()[:2]) for one in all_of_them)
        rollups = [Path(f"/proc/{one.pid}/smaps_rollup").read_text() for one in all_of_them]
        pss = sum(int(found[1]) for found in map(PSS.search, rollups) if found) / 1024
        return seconds, cpu, pss, len(all_of_them)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def _is_answered(port: int, sent: bytes) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as it:
            it.sendall(sent)
            return it.recv(100).startswith(b"HTTP/1.1 200")
    except OSError:
        return False


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        workspace = open_home(Path(folder))
        add_mlp(workspace)
        _, key = workspace.keys.create("benchmark", ["infer"])
        workspace.close()
        measure(Path(folder), key, asked.workers)  # writes the bytecode
        found = [measure(Path(folder), key, asked.workers) for _ in range(asked.times)]
    seconds = [one[0] for one in found]
    print(
        f"{asked.workers} workers, load average {os.getloadavg()[0]:.1f}: first answer after {statistics.median(seconds):.2f} s"
        f" (best {min(seconds):.2f}, worst {max(seconds):.2f}), CPU {statistics.median(one[1] for one in found):.2f} s;"
        f" {statistics.median(one[2] for one in found):.0f} MB PSS in {found[0][3]} processes"
    )


if __name__ == "__main__":
    main()
