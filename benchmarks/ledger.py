"""How many ledger rows become durable in a second, how long a caller waits for one, and what the way into SQL takes.

    python -m benchmarks.ledger [--seconds 5] [--callers 1 16 64 256] [--folder DIR] [--url URL] [--json]

Each caller is a thread-free loop in one event loop, as in the service: it records a row, waits until the row is durable
(a journal, synced once a group), and records the next. Then the rows are brought into SQL (SQLite: WAL, synchronous=FULL).
`--folder` says which disk; `--url` names another database, such as a PostgreSQL server. Beside it stands what the disk
itself does: a file that is written and synced in a loop.
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
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from maasdam.accounts.journal import Journal
from maasdam.accounts.ledger import Ledger
from maasdam.accounts.outbox import Outbox
from maasdam.accounts.prices import Prices
from maasdam.api.entrance import new_request_id
from maasdam.core import Entry
from maasdam.database.engine import open_database
from maasdam.telemetry.metrics import Metrics


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
        facts["sync_ms"] = _sync_ms(Path(folder))
        facts["load_average"] = os.getloadavg()[0]
        url = flags.url or f"sqlite:///{folder}/maasdam.db"
        facts["rows"] = [measure(url, Path(folder), callers, flags.seconds) for callers in flags.callers]
    if flags.json:
        print(json.dumps(facts, indent=2))
        return
    disk = facts["sync_ms"]
    print(
        f"{facts['machine']}, load {facts['load_average']:.1f}; fdatasync: median {disk['p50']:.2f}, p99 {disk['p99']:.2f} ms"
    )
    columns = ("callers", "rows/s", "p50 ms", "p99 ms", "rows a sync", "CPU us a row", "into SQL, CPU us a row")
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for row in facts["rows"]:
        print(
            "| {callers} | {rows_per_second:.0f} | {p50_ms:.2f} | {p99_ms:.2f} | {rows_per_sync:.1f} | {cpu_us:.0f} "
            "| {sql_cpu_us:.0f} |".format(**row)
        )


def measure(url: str, folder: Path, callers: int, seconds: float) -> dict[str, float]:
    """Rows per second, waiting times and CPU for this many callers at once."""
    groups: list[int] = []

    class Counted(Journal):
        def append(self, payload: bytes) -> None:
            groups.append(1)
            super().append(payload)

    journal = Counted(folder / f"journals-{callers}")
    outbox = Outbox(journal, Metrics(), Prices({}))
    cpu, began = time.process_time(), time.perf_counter()
    waits = asyncio.run(_call(outbox, callers, began + seconds))
    cpu, took = time.process_time() - cpu, time.perf_counter() - began
    outbox.close()
    database = open_database(url)
    taking = time.process_time()
    Ledger(database, folder / f"journals-{callers}").take_in()
    taking = time.process_time() - taking
    database.dispose()
    cuts = statistics.quantiles(waits, n=100)
    return {
        "callers": callers,
        "rows_per_second": len(waits) / took,
        "p50_ms": cuts[49] * 1000,
        "p99_ms": cuts[98] * 1000,
        "max_ms": max(waits) * 1000,
        "rows_per_sync": len(waits) / len(groups),
        "cpu_us": cpu / len(waits) * 1e6,
        "sql_cpu_us": taking / len(waits) * 1e6,
    }


async def _call(outbox: Outbox, callers: int, until: float) -> list[float]:
    waits: list[float] = []
    loop = asyncio.get_running_loop()

    async def one() -> None:
        while time.perf_counter() < until:
            began = time.perf_counter()
            told = loop.create_future()
            outbox.record(_entry(), told.set_result)
            if await told is not None:
                raise SystemExit(f"a row could not be written: {told.result()}")
            waits.append(time.perf_counter() - began)

    await asyncio.gather(*(one() for _ in range(callers)))
    return waits


def _entry() -> Entry:
    return Entry(
        request_id=new_request_id(),
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


def _sync_ms(folder: Path, times: int = 200) -> dict[str, float]:
    took = []
    with (folder / "probe").open("wb", buffering=0) as file:
        for _ in range(times):
            began = time.perf_counter()
            file.write(b"x" * 4096)
            os.fdatasync(file.fileno())
            took.append((time.perf_counter() - began) * 1000)
    cuts = statistics.quantiles(took, n=100)
    return {"p50": cuts[49], "p99": cuts[98]}


if __name__ == "__main__":
    main()
