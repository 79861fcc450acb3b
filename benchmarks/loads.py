"""Loads and unloads in engine hosts: memory, descriptors, threads and processes of the service, before and after.

    python -m benchmarks.loads [--loads 300] [--workers 1]

Two models take turns in a budget for one: each request loads the one and sends the other away.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import psutil
from tests.served import add_mlp, open_home, serving

BODY = {"inputs": [{"name": "x", "shape": [1, 8], "datatype": "FP32", "data": [1.0] * 8}]}
COUNT = "maasdam_model_load_seconds_count"
WARM_UP = 20
"""Loads before the first look."""


@dataclass(frozen=True)
class Look:
    """What the service's own processes hold, its hosts left out."""

    own_mb: float
    """Memory that is theirs alone."""
    descriptors: int
    threads: int
    processes: int
    """Hosts too."""

    def __str__(self) -> str:
        return f"{self.own_mb:.1f} MB, {self.descriptors} descriptors, {self.threads} threads, {self.processes} processes"


def look(service: psutil.Process) -> Look:
    """At the service, its supervisor, workers and fork server."""
    every = [service, *service.children(recursive=True)]
    own = [one for one in every if not any("maasdam-host" in word for word in one.cmdline()) and not is_host(one)]
    return Look(
        sum(one.memory_full_info().uss for one in own) / 1e6,
        sum(one.num_fds() for one in own),
        sum(one.num_threads() for one in own),
        len(every),
    )


def is_host(process: psutil.Process) -> bool:
    """Whether it has a socket in the hosts' folder."""
    return any("maasdam-hosts-" in (one.laddr or "") for one in process.net_connections("unix"))


def ask(client: httpx.Client, name: str) -> None:
    """One request, which loads it."""
    client.post(f"/v2/models/{name}/infer", json=BODY).raise_for_status()


def settled(service: psutil.Process) -> Look:
    """Once the host that was sent away last is over: a few seconds after the last load."""
    time.sleep(3)
    return look(service)


def main() -> None:
    """Try it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loads", type=int, default=300)
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()
    names = ("one", "other")
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        workspace = open_home(home)
        for width, name in enumerate(names, 64):
            add_mlp(workspace, name, width)
            workspace.catalog.deploy(name, mode="on-demand")
        _, key = workspace.keys.create("trial", ["infer", "deploy", "admin"])
        (home / "maasdam.toml").write_text('memory_budget = "45MB"\n')
        seconds: list[float] = []
        with serving(home, key, "--grpc-port", "0", "--workers", str(args.workers)) as process, process.client() as client:
            service = psutil.Process(process.process.pid)
            for i in range(WARM_UP):
                ask(client, names[i % 2])
            before = settled(service)
            print(f"after {WARM_UP} loads: {before}")
            for i in range(args.loads):
                began = time.perf_counter()
                ask(client, names[i % 2])
                seconds.append(time.perf_counter() - began)
                if i + 1 == args.loads // 2:
                    print(f"after {args.loads // 2} more: {settled(service)}")
            after = settled(service)
            rows = client.get("/admin/models").json()["models"]
            held = {row["model"]: row["memory_bytes"] for row in rows}
            counted = [line for line in client.get("/metrics").text.splitlines() if COUNT in line]
            loads = sum(float(line.rsplit(" ", 1)[1]) for line in counted if 'phase="all"' in line)
        print(f"after {args.loads} more: {after}; held now: {held}; {loads:.0f} loads in all")
        p50, p99 = np.percentile(seconds, [50, 99]) * 1e3
        print(f"memory {after.own_mb / before.own_mb - 1:+.1%}; a request with its load p50 {p50:.0f} ms, p99 {p99:.0f} ms")
        print(f"load average {psutil.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
