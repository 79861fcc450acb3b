"""kill -9 under load: what was answered is in the ledger exactly once, and what was deployed is back.

    python -m benchmarks.kill9 [--rounds 10] [--seconds 3] [--workers 1] [--starters]

Each round: start the service, load it from many connections, SIGKILL it at a random moment, then look into the
database (before anything has a chance to mend it) and start it again. With several workers one of them is killed first, and
the service, which goes on, later: then its supervisor is.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import signal
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import psutil
from sqlalchemy import func, select
from sqlalchemy.orm import Session
from tests.served import Process, add_mlp, add_starters, open_home, start
from tests.waiting import wait_until

from maasdam.database.tables import LedgerRow

CONNECTIONS = 12
TENSOR = {"inputs": [{"name": "x", "shape": [1, 8], "datatype": "FP32", "data": [1, 2, 3, 4, 5, 6, 7, 8]}]}


@dataclass
class Round:
    """What one round saw."""

    answered: set[str] = field(default_factory=set)
    """Request ids of answers whose last byte arrived."""
    failed: int = 0
    """Answers with another status than 200."""
    missing: int = 0
    """Answered, and not in the ledger."""
    twice: int = 0
    rows: int = 0
    """Rows that this round added: those in flight at the kill may be there too."""
    back: list[str] = field(default_factory=list)
    """Models that answer after the restart."""
    seconds_to_ready: float = 0.0
    seconds_to_worker: float = 0.0
    """From the death of a worker until another was there."""
    seconds_to_end: float = 0.0
    """From the death of the supervisor until the last worker had ended."""
    lost: int = 0
    """Connections that ended without an answer."""


def load(running: Process, seen: Round, stop: threading.Event, models: list[str], seed: int) -> None:
    """Ask until the service is gone; note what was answered whole."""
    pick = random.Random(seed)
    place = urlsplit(running.url)
    connection = http.client.HTTPConnection(str(place.hostname), place.port, timeout=30)
    headers = running.headers | {"Content-Type": "application/json"}
    while not stop.is_set():
        model = pick.choice(models)
        if model == "text":
            body = {"model": "text", "prompt": "To be", "max_tokens": 4, "stream": pick.random() < 0.5}
            path = "/v1/completions"
        else:
            body, path = TENSOR, f"/v2/models/{model}/infer"
        try:
            connection.request("POST", path, json.dumps(body), headers)
            answer = connection.getresponse()
            data = answer.read()
        except (OSError, http.client.HTTPException):
            if running.process.poll() is not None:
                return
            seen.lost += 1
            connection.close()  # the next request opens another
            continue
        if answer.status == 200 and (model != "text" or not body.get("stream") or data.endswith(b"data: [DONE]\n\n")):
            seen.answered.add(str(answer.headers["x-request-id"]))
        elif answer.status != 200:
            seen.failed += 1


def one_round(home: Path, key: str, models: list[str], seconds: float, seed: int, workers: int = 1) -> Round:
    """Start, load, kill, look, start again."""
    pick = random.Random(seed)
    seen, stop = Round(), threading.Event()
    running = start(home, key, "--workers", str(workers))
    before = _rows(home)
    threads = [threading.Thread(target=load, args=(running, seen, stop, models, seed + i)) for i in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    time.sleep(seconds * (0.3 + 0.7 * pick.random()))
    left: list[int] = []
    if workers > 1:
        seen.seconds_to_worker = kill_worker(running, pick)
        time.sleep(seconds * (0.3 + 0.7 * pick.random()))
        left = running.workers
    running.kill()
    began = time.monotonic()
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in left))
    seen.seconds_to_end = time.monotonic() - began
    stop.set()
    for thread in threads:
        thread.join()
    _count(home, seen, before)
    began = time.monotonic()
    again = start(home, key, "--workers", str(workers))
    seen.seconds_to_ready = time.monotonic() - began
    with again.client() as client:
        for model in models:
            if client.get(f"/v2/models/{model}/ready").status_code == 200:
                seen.back.append(model)
    again.stop()
    return seen


def kill_worker(running: Process, pick: random.Random) -> float:
    """SIGKILL one; how long it took until there were as many again."""
    before = running.workers
    victim = pick.choice(before)
    began = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: victim not in running.workers and len(running.workers) == len(before))
    return time.monotonic() - began


def _rows(home: Path) -> int:
    workspace = open_home(home)
    workspace.ledger.take_in()
    with Session(workspace.database) as session:
        count = session.scalar(select(func.count()).select_from(LedgerRow)) or 0
    workspace.close()
    return int(count)


def _count(home: Path, seen: Round, before: int) -> None:
    workspace = open_home(home)
    workspace.ledger.take_in()
    with Session(workspace.database) as session:
        ids = list(session.scalars(select(LedgerRow.request_id)))
    workspace.close()
    seen.rows = len(ids) - before
    seen.missing = len(seen.answered - set(ids))
    seen.twice = len(ids) - len(set(ids))


def prepare(home: Path, starters: Path | None = None) -> tuple[str, list[str]]:
    """A home with models deployed; the key and the models' names."""
    workspace = open_home(home)
    add_mlp(workspace, "one")
    add_mlp(workspace, "two", width=128)
    models = ["one", "two"]
    if starters:
        add_starters(workspace, starters)
        models.append("text")
    _, key = workspace.keys.create("kill9", ["infer"])
    workspace.close()
    return key, models


def main() -> None:
    """Run the rounds and print; exit 1 when any broke the promise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--starters", action="store_true", help="the starter models too, with streamed text")
    asked = parser.parse_args()
    starters = Path(__file__).resolve().parent.parent / "starters" if asked.starters else None
    broken = 0
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        key, models = prepare(home, starters)
        for i in range(asked.rounds):
            seen = one_round(home, key, models, asked.seconds, seed=i * 1000, workers=asked.workers)
            others = (
                f"; a worker back in {seen.seconds_to_worker:.1f} s, {seen.lost} connections lost, all ended in "
                f"{seen.seconds_to_end:.1f} s"
                if asked.workers > 1
                else ""
            )
            is_kept = not seen.missing and not seen.twice and seen.back == models and seen.answered
            broken += not is_kept
            print(
                f"round {i + 1:>2}: {len(seen.answered):>5} answered, {seen.rows:>5} rows, {seen.missing} missing, "
                f"{seen.twice} twice, {seen.failed} refused; back in {seen.seconds_to_ready:.1f} s: {', '.join(seen.back)}"
                f"{others}  {'kept' if is_kept else 'BROKEN'}",
                flush=True,
            )
    raise SystemExit(1 if broken else 0)


if __name__ == "__main__":
    main()
