"""Text through the service against the bare engine: tokens per CPU-second, and the time between two tokens of a stream.

    python -m benchmarks.text FOLDER [--rounds 2] [--streams 1 8 32] [--threads 2]

FOLDER holds a model as OpenVINO GenAI has it, such as a build of the recipe `int8-weights`. Both get prompts of 64 made-up
tokens and write 64 after each, greedily, with the engine's settings that the service opens it with; as one ends the next
begins. They take turns, each in processes of its own, and what is counted is the CPU time of those. The load's own is not in
it, but takes the same cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import uvloop
from tests.served import open_home, serving

TOKENS = 64
"""Of a prompt, and of an answer."""
ANSWERS = {1: 8, 8: 32}
"""How many are written by so many streams; three times the streams where nothing is said."""


def prompt(number: int) -> list[int]:
    """Tokens that are the same for both."""
    chance = random.Random(number)
    return [chance.randrange(300, 1500) for _ in range(TOKENS)]


def bare(folder: Path, threads: int) -> None:
    """Be the engine alone: read how many streams, write what was found; again."""
    import numpy as np
    import openvino as ov
    import openvino_genai as genai

    from maasdam.core import Sampling
    from maasdam.engines import genai_engine
    from maasdam.engines.generation import choose, read_defaults

    make, _, _ = genai_engine._pipeline(folder, {"threads": threads, "dynamic_quantization": True})
    pipeline, defaults = make(), read_defaults(folder)
    sampling = Sampling(max_tokens=TOKENS, temperature=0.0, ignore_eos=True)
    print("ready", flush=True)
    number = 0
    for line in sys.stdin:
        streams = int(line)
        left, live, count, gaps = ANSWERS.get(streams, 3 * streams), [], 0, []
        last: dict[int, float] = {}
        cpu, began = time.process_time(), time.perf_counter()
        while left or live:
            while left and len(live) < streams:
                number, left = number + 1, left - 1
                ids = ov.Tensor(np.array([prompt(number)], np.int64))
                configuration = genai_engine.configuration(choose(sampling, defaults, TOKENS))
                live.append((number, pipeline.add_request(number, ids, configuration)))
            pipeline.step()
            now = time.perf_counter()
            for one, handle in list(live):
                new = 0
                while handle.can_read():
                    new += sum(len(output.generated_ids) for output in handle.read().values())
                count += new
                if new:
                    gaps += [now - last[one]] if one in last else []
                    last[one] = now
                if handle.get_status() != genai.GenerationStatus.RUNNING:
                    live.remove((one, handle))
        found = {"tokens": count, "cpu": time.process_time() - cpu, "wall": time.perf_counter() - began, "gaps": gaps}
        print(json.dumps(found), flush=True)


class Stream(asyncio.Protocol):
    """Asks once, on a connection of its own: some servers end one after so many answers."""

    def __init__(self, top: str, number: int, found: dict[str, Any], over: asyncio.Future[None]) -> None:
        self.top, self.number, self.found, self.over = top, number, found, over
        self.tail = b""
        self.last = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        asked = {"model": "text", "prompt": prompt(self.number), "max_tokens": TOKENS, "stream": True}
        body = json.dumps(asked | {"temperature": 0, "ignore_eos": True}).encode()
        self.transport.write(f"{self.top}Content-Length: {len(body)}\r\n\r\n".encode() + body)

    def data_received(self, data: bytes) -> None:
        now, new = time.perf_counter(), data.count(b'"finish_reason"')
        if new:
            self.found["tokens"] += new
            self.found["gaps"] += [now - self.last] if self.last else []
            self.last = now
        self.tail = (self.tail + data)[-8:]
        if self.tail.endswith(b"\r\n0\r\n\r\n"):  # a header may end with a nought
            self.over.set_result(None)
            self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.over.done():
            self.over.set_exception(error or ConnectionError("the server ended a connection in the midst of an answer"))


async def through(url: str, key: str, streams: int, process: psutil.Process, first: int) -> dict[str, Any]:
    """The same through the service."""
    where = urlsplit(url)
    top = f"POST /v1/completions HTTP/1.1\r\nHost: {where.netloc}\r\nAuthorization: Bearer {key}\r\n"
    top += "Content-Type: application/json\r\n"
    left = list(range(first, first + ANSWERS.get(streams, 3 * streams)))
    found: dict[str, Any] = {"tokens": 0, "gaps": []}
    loop = asyncio.get_running_loop()

    async def stream() -> None:
        while left:
            over, number = loop.create_future(), left.pop(0)
            await loop.create_connection(partial(Stream, top, number, found, over), where.hostname, where.port)
            await over

    cpu, began = spent(process), time.perf_counter()
    await asyncio.gather(*(stream() for _ in range(streams)))
    return found | {"cpu": spent(process) - cpu, "wall": time.perf_counter() - began}


def spent(process: psutil.Process) -> float:
    """CPU seconds of a process and its children."""
    return float(sum(sum(one.cpu_times()[:2]) for one in (process, *process.children(recursive=True))))


def told(name: str, streams: int, found: dict[str, Any]) -> float:
    """Print a line; CPU milliseconds a token."""
    gaps = sorted(found["gaps"])
    middle, late = gaps[len(gaps) // 2] * 1e3, gaps[int(len(gaps) * 0.99)] * 1e3
    each = found["cpu"] / found["tokens"] * 1e3
    print(
        f"{streams:>3} streams, {name:>7}: {found['tokens'] / found['wall']:7.1f} tokens/s, {each:6.2f} CPU ms a token,"
        f" between tokens p50 {middle:6.1f} p99 {late:6.1f} ms ({late / middle:.1f} times)",
        flush=True,
    )
    return float(each)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.bare:
        bare(asked.folder, asked.threads)
        return
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        workspace = open_home(home)
        with workspace.store.workspace() as made:
            shutil.copytree(asked.folder, made / "files")
            artifact = workspace.store.add(
                made / "files",
                format="openvino",
                layout="genai",
                task="text-generation",
                engine="openvino-genai",
                signature=None,
                settings={"threads": asked.threads},
            )
        report = {"passed": True, "failures": []}
        workspace.catalog.register("text", artifact, source="none", recipe="none", report=report, passes=[])
        workspace.catalog.deploy("text")
        _, key = workspace.keys.create("benchmark", ["infer"])
        workspace.close()
        command = [sys.executable, "-m", "benchmarks.text", str(asked.folder), "--bare", "--threads", str(asked.threads)]
        with (
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as alone,
            serving(home, key) as service,
        ):
            assert alone.stdin is not None and alone.stdout is not None
            alone.stdout.readline()
            process, first = psutil.Process(service.process.pid), 1
            for _ in range(asked.rounds):
                for streams in asked.streams:
                    alone.stdin.write(f"{streams}\n")
                    alone.stdin.flush()
                    mine = told("bare", streams, json.loads(alone.stdout.readline()))
                    found = uvloop.run(through(service.url, key, streams, process, first))
                    first += ANSWERS.get(streams, 3 * streams)
                    share = mine / told("service", streams, found)
                    print(f"             {share:.2f} of the bare engine's tokens per CPU-second; load {os.getloadavg()[0]:.1f}")
            alone.stdin.close()


if __name__ == "__main__":
    main()
