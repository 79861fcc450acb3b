"""How many ledger rows become durable in a second, and how long a caller waits for one.

    python -m benchmarks.ledger [--seconds 5] [--callers 1 16 64 256] [--folder DIR] [--url URL] [--json]

Each caller is a thread-free loop in one event loop, as in the service: it records a row, waits until the row is
durable (SQLite: WAL, synchronous=FULL, so each group is one fsync), and records the next. `--folder` says which disk;
`--url` measures another database, such as a PostgreSQL server. Beside it stands what the disk itself does: a file
that is written and fsynced in a loop.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import tempfile
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import event

from maasdam.accounts.ledger import Ledger
from maasdam.core import Entry
from maasdam.database.engine import open_database


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each row of the table takes")
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 16, 64, 256])
    parser.add_argument("--folder", type=Path, default=None, help="where the database lies; default: a temporary folder")
    parser.add_argument("--url", default=None, help="another database; its ledger gets rows")
    parser.add_argument("--json", action="store_true")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=flags.folder) as folder:
        facts: dict[str, Any] = {"machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"}
        facts["fsync_ms"] = _fsync_ms(Path(folder))
        facts["load_average"] = os.getloadavg()[0]
        url = flags.url or f"sqlite:///{folder}/maasdam.db"
        facts["rows"] = [measure(url, callers, flags.seconds) for callers in flags.callers]
    if flags.json:
        print(json.dumps(facts, indent=2))
        return
    disk = facts["fsync_ms"]
    print(f"{facts['machine']}, load {facts['load_average']:.1f}; fsync: median {disk['p50']:.2f}, p99 {disk['p99']:.2f} ms")
    print("| callers | rows/s | p50 ms | p99 ms | rows a commit | CPU us a row |\n|---|---|---|---|---|---|")
    for row in facts["rows"]:
        print(
            "| {callers} | {rows_per_second:.0f} | {p50_ms:.2f} | {p99_ms:.2f} | {rows_per_commit:.1f} | {cpu_us:.0f} |".format(
                **row
            )
        )


def measure(url: str, callers: int, seconds: float) -> dict[str, float]:
    """Rows per second, waiting times and CPU for this many callers at once."""
    database = open_database(url)
    commits = []
    event.listen(database, "commit", lambda connection: commits.append(1))
    ledger = Ledger(database)
    ledger.record(_entry()).result()  # the thread and the connection are there
    commits.clear()
    cpu, began = time.process_time(), time.perf_counter()
    waits = asyncio.run(_call(ledger, callers, began + seconds))
    cpu, took = time.process_time() - cpu, time.perf_counter() - began
    ledger.close()
    database.dispose()
    cuts = statistics.quantiles(waits, n=100)
    return {
        "callers": callers,
        "rows_per_second": len(waits) / took,
        "p50_ms": cuts[49] * 1000,
        "p99_ms": cuts[98] * 1000,
        "max_ms": max(waits) * 1000,
        "rows_per_commit": len(waits) / max(len(commits), 1),
        "cpu_us": cpu / len(waits) * 1e6,
    }


async def _call(ledger: Ledger, callers: int, until: float) -> list[float]:
    waits: list[float] = []

    async def one() -> None:
        while time.perf_counter() < until:
            began = time.perf_counter()
            await asyncio.wrap_future(ledger.record(_entry()))
            waits.append(time.perf_counter() - began)

    await asyncio.gather(*(one() for _ in range(callers)))
    return waits


def _entry() -> Entry:
    return Entry(
        request_id=uuid.uuid4().hex,
        at=datetime.now(UTC),
        key_id=None,
        caller="benchmark",
        model="digits",
        endpoint="/v2/models/digits/infer",
        status=200,
        seconds=0.004,
        version=3,
        task="image-classification",
        compute_seconds=0.003,
        energy_method="no energy counter on this machine",
    )


def _fsync_ms(folder: Path, times: int = 200) -> dict[str, float]:
    took = []
    with (folder / "probe").open("wb", buffering=0) as file:
        for _ in range(times):
            began = time.perf_counter()
            file.write(b"x" * 4096)
            os.fsync(file.fileno())
            took.append((time.perf_counter() - began) * 1000)
    cuts = statistics.quantiles(took, n=100)
    return {"p50": cuts[49], "p99": cuts[98]}


if __name__ == "__main__":
    main()
