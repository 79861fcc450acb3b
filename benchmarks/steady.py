"""Ten minutes at four fifths of what the service can do: its memory, and how long answers take, minute by minute.

    python -m benchmarks.steady [--minutes 10] [--share 0.8] [--connections 32] [--workers 1]

First a few seconds as fast as connections can ask: that is the capacity. Then requests leave at a fixed rate, whether or not
those before were answered (each connection sends its next one once it is due and its last was answered); how long one took is
counted from when it was due, so a stall is not hidden by the requests that it kept from being sent. Memory is the proportional
share (PSS) of all the service's processes.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from urllib.parse import urlsplit

import psutil
import uvloop
from tests.served import add_mlp, open_home, serving

from benchmarks.serving_cpu import Client, load, request

WARM_SECONDS = 10.0


@dataclass
class Minute:
    """What one minute saw; milliseconds."""

    taken: list[float] = field(default_factory=list)
    failed: int = 0
    megabytes: float = 0.0


class Paced(Client):
    """Sends the next request when it is due."""

    def __init__(self, request: bytes, every: float, first: float) -> None:
        super().__init__(request, [0, 0])
        self.every, self.due = every, first
        self.minute = Minute()
        self.loop = asyncio.get_running_loop()
        self.is_over = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The first is due at a time of its own."""
        self.transport = transport
        self.loop.call_at(self.due, self._send)

    def _send(self) -> None:
        if not self.is_over:
            self.transport.write(self.request)  # type: ignore[attr-defined]  # a TCP transport writes

    def data_received(self, data: bytes) -> None:
        """An answer, or a part of one."""
        self.buffer += data
        head, found, rest = self.buffer.partition(b"\r\n\r\n")
        if not found or len(rest) < int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0]):
            return
        self.buffer = b""
        self.minute.failed += not head.startswith(b"HTTP/1.1 200")
        self.minute.taken.append((self.loop.time() - self.due) * 1e3)
        self.due += self.every
        self.loop.call_at(max(self.due, self.loop.time()), self._send)


async def pace(url: str, sent: bytes, rate: float, connections: int, minutes: float, pid: int) -> list[Minute]:
    """Minute by minute, after WARM_SECONDS that are not counted."""
    loop = asyncio.get_running_loop()
    host, port = urlsplit(url).hostname, urlsplit(url).port
    every, now = connections / rate, loop.time()
    made = []
    for i in range(connections):
        first = now + 0.2 + every * i / connections
        made.append((await loop.create_connection(lambda first=first: Paced(sent, every, first), host, port))[1])
    await asyncio.sleep(WARM_SECONDS)
    seen = []
    left = minutes * 60
    while left > 0:
        minute = Minute()
        for one in made:
            one.minute = minute
        await asyncio.sleep(min(left, 60))
        left -= 60
        minute.megabytes = megabytes(pid)
        seen.append(minute)
    for one in made:
        one.is_over = True
        one.transport.close()  # type: ignore[attr-defined]  # it is connected
    return seen


def megabytes(pid: int) -> float:
    """PSS of a process and all below it."""
    one = psutil.Process(pid)
    return sum(process.memory_full_info().pss for process in [one, *one.children(recursive=True)]) / 1e6


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--share", type=float, default=0.8)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--workers", type=int, default=1)
    asked = parser.parse_args()
    flags = [] if asked.workers == 1 else ["--workers", str(asked.workers)]
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        workspace = open_home(home)
        add_mlp(workspace)
        _, key = workspace.keys.create("benchmark", ["infer"])
        workspace.close()
        with serving(home, key, *flags) as running:
            sent = request(running.url, key, False)
            process = psutil.Process(running.process.pid)
            _, capacity, errors = uvloop.run(load(running.url, sent, asked.connections, 5.0, process))
            rate = capacity * asked.share
            print(f"capacity {capacity:.0f} requests/s, {errors} errors; from now on {rate:.0f}; load {os.getloadavg()[0]:.1f}")
            seen = uvloop.run(pace(running.url, sent, rate, asked.connections, asked.minutes, running.process.pid))
    print("\n| minute | requests | p50 ms | p99 ms | longest ms | failed | MB (PSS) |\n|---|---|---|---|---|---|---|")
    for number, minute in enumerate(seen, 1):
        cuts = quantiles(minute.taken, n=100)
        print(
            f"| {number} | {len(minute.taken)} | {cuts[49]:.2f} | {cuts[98]:.2f} | {max(minute.taken):.0f} | {minute.failed} |"
            f" {minute.megabytes:.1f} |"
        )
    print(f"\nmemory from the first minute to the last: {(seen[-1].megabytes / seen[0].megabytes - 1) * 100:+.1f} %")
    print(f"at {time.strftime('%Y-%m-%d %H:%M')}; load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
