"""Server CPU microseconds per streamed token, with the engine mocked out.

    python -m benchmarks.streams [--streams 32] [--seconds 5] [--step-ms 5] [--model starters/text/model]

The service runs in its own process with everything on: keys, ledger (durable rows), metrics, log. Its engine computes
nothing: a thread gives every stream one token a step, all at once, as an engine does that batches. What is counted is the CPU
time of the whole process, as the operating system says it: that thread, the way to the event loop, text, events, the socket.
With `--model` the text is made by that model's own tokenizer; without it by a table of words. Short and long answers are asked
for in turns, so that what a request costs and what a token costs are told apart.

"bare" is a process that does nothing but write the same events, finished beforehand, to as many sockets at the same pace.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import uvloop
from tests.fakes import FakeProcessor
from tests.served import open_home

from maasdam.core import Artifact, Meter, SequenceRequest, Tokens
from maasdam.engines.mailbox import Hear, Job, Turns, tokens_of
from maasdam.tasks.detokenizer import Detokenizer
from maasdam.telemetry.meter import CpuMeter

VOCABULARY = 4000
LENGTHS = (32, 512)
"""Tokens of a short and of a long answer."""


class _Running:
    def __init__(self, job: Job) -> None:
        self.job, self.count = job, 0


class MockEngine:
    """Gives every stream its next token, all in one step."""

    context_length = 4096

    def __init__(self, step_seconds: float) -> None:
        self.meter: Meter = CpuMeter()
        self._step_seconds = step_seconds
        self._turns = Turns("mock", _Running, self._step)

    def start(self, request: SequenceRequest, hear: Hear) -> Callable[[], object]:
        return self._turns.start(request, hear, self.meter)

    def submit(self, request: SequenceRequest) -> AsyncGenerator[Tokens]:
        return tokens_of(self, request)

    def close(self) -> None:
        self._turns.close()

    def _step(self, running: list[_Running]) -> list[_Running]:
        time.sleep(self._step_seconds)
        left = []
        for r in running:
            r.count += 1
            is_last = r.count >= (r.job.request.sampling.max_tokens or 16)
            token = 300 + (r.count * 7919 + id(r)) % (VOCABULARY - 300)
            r.job.give(Tokens((token,), finish_reason="length" if is_last else None))
            if not is_last:
                left.append(r)
        return left


class Words(FakeProcessor):
    """A tokenizer that is a table."""

    def stream(self, stop: tuple[str, ...] = (), after: Sequence[int] = ()) -> Any:
        return Detokenizer(lambda ids: "".join(f" word{i}" for i in ids), stop)


def serve(home: Path, model: Path | None, step_seconds: float) -> None:
    """Be the service."""
    from maasdam.api.http import serve as serve_http
    from maasdam.api.listening import Doors, bound_socket
    from maasdam.operations.requests import log_file
    from maasdam.operations.service import open_service
    from maasdam.tasks.text import TextProcessor
    from maasdam.telemetry.logs import logging_to

    workspace = open_home(home)

    def open_engine(artifact: Artifact, **options: Any) -> MockEngine:
        return MockEngine(step_seconds)

    def open_processor(*about: Any) -> Any:
        return Words("text-generation") if model is None else TextProcessor(model)

    with logging_to("info", log_file(workspace.settings)):
        service = open_service(workspace, open_engine=open_engine, open_processor=open_processor)
        listener = bound_socket("127.0.0.1", 0)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        serve_http(service, True, Doors([listener], None), lambda: print(url, flush=True))
    os._exit(0)


EVENT = (
    b'd2\r\ndata: {"id":"cmpl-01a22c2e0a40eaab1de605b4681a9a0f","object":"text_completion","created":1796037544,"model":"text",'
    b'"choices":[{"index":0,"logprobs":null,"finish_reason":null,"text":" word1138"}],"usage":null}\n\n\r\n'
)


async def write_bare(step_seconds: float) -> None:
    """Be a process that writes events."""
    left: dict[Any, int] = {}

    class Bare(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            left[self.transport] = json.loads(data.partition(b"\r\n\r\n")[2])["max_tokens"]

        def connection_lost(self, exc: Exception | None) -> None:
            left.pop(self.transport, None)

    server = await asyncio.get_running_loop().create_server(Bare, "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    while True:
        await asyncio.sleep(step_seconds)
        for transport, count in list(left.items()):
            transport.write(EVENT)
            left[transport] = count - 1
            if count == 1:
                transport.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
                del left[transport]


class Client(asyncio.Protocol):
    """Asks for a stream again as soon as one has ended; counts events and the time between two."""

    def __init__(self, request: bytes, counts: dict[str, int], gaps: list[float]) -> None:
        self.request, self.counts, self.gaps = request, counts, gaps
        self.tail = b""
        self.last = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        transport.write(self.request)  # type: ignore[attr-defined]  # a TCP transport writes

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        tokens = data.count(b'"finish_reason"')
        self.counts["tokens"] += tokens
        self.counts["reads"] += 1
        self.gaps.append(now - self.last)
        self.last = now
        self.tail = (self.tail + data)[-24:]
        if self.tail.endswith(b"0\r\n\r\n"):
            self.counts["requests"] += 1
            if b"[DONE]" not in self.tail:
                self.counts["errors"] += 1
            self.tail = b""
            self.transport.write(self.request)  # type: ignore[attr-defined]  # a TCP transport writes


async def load(url: str, key: str, streams: int, tokens: int, seconds: float, process: psutil.Process) -> dict[str, float]:
    """CPU microseconds and counts of so many streams."""
    asked = {"model": "text", "prompt": "once", "stream": True, "max_tokens": tokens, "temperature": 0}
    body = json.dumps(asked | {"stream_options": {"include_usage": True}}).encode()
    lines = ["POST /v1/completions HTTP/1.1", f"Host: {urlsplit(url).netloc}", f"Authorization: Bearer {key}"]
    lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    sent = ("\r\n".join(lines) + "\r\n\r\n").encode() + body
    counts: dict[str, int] = dict.fromkeys(("tokens", "reads", "requests", "errors"), 0)
    gaps: list[float] = []
    made = []
    for _ in range(streams):
        made.append(
            await asyncio.get_running_loop().create_connection(
                lambda: Client(sent, counts, gaps), urlsplit(url).hostname, urlsplit(url).port
            )
        )
    await asyncio.sleep(1.0)
    before, began, cpu = dict(counts), time.perf_counter(), sum(process.cpu_times()[:2])
    gaps.clear()
    await asyncio.sleep(seconds)
    wall, spent = time.perf_counter() - began, sum(process.cpu_times()[:2]) - cpu
    found: dict[str, float] = {name: counts[name] - before[name] for name in counts}
    cuts = statistics.quantiles(gaps, n=100)
    for transport, _ in made:
        transport.close()
    return found | {"cpu": spent * 1e6, "wall": wall, "gap_p50": cuts[49] * 1e3, "gap_p99": cuts[98] * 1e3}


def measure(url: str, key: str, streams: int, seconds: float, process: psutil.Process) -> Mapping[str, float]:
    """What a token and a request cost, of short and long answers."""
    short, long = (uvloop.run(load(url, key, streams, tokens, seconds, process)) for tokens in LENGTHS)
    # cpu = token * tokens + request * requests, of both
    det = short["tokens"] * long["requests"] - long["tokens"] * short["requests"]
    token = (short["cpu"] * long["requests"] - long["cpu"] * short["requests"]) / det
    request = (short["tokens"] * long["cpu"] - long["tokens"] * short["cpu"]) / det
    return long | {"token": token, "request": request, "errors": short["errors"] + long["errors"]}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--step-ms", type=float, default=5.0)
    parser.add_argument("--model", type=Path, default=None, help="a folder with a tokenizer")
    parser.add_argument("--serve", type=Path, default=None, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve == Path("bare"):
        uvloop.run(write_bare(asked.step_ms / 1000))
    elif asked.serve is not None:
        serve(asked.serve, asked.model, asked.step_ms / 1000)
    else:
        compare(asked)


def compare(asked: argparse.Namespace) -> None:
    """The service and the bare process, in turns."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        home = Path(folder)
        key = made_home(home)
        processes = {}
        for name, where in (("bare", "bare"), ("service", folder)):
            command = [sys.executable, "-m", "benchmarks.streams", "--serve", where, "--step-ms", str(asked.step_ms)]
            if asked.model is not None:
                command += ["--model", str(asked.model)]
            errors = stack.enter_context((home / f"{name}.err").open("w"))
            server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
            stack.callback(server.wait, 20)
            stack.callback(server.terminate)
            assert server.stdout is not None
            url = server.stdout.readline().strip()
            if not url:
                raise SystemExit((home / f"{name}.err").read_text())
            processes[name] = (url, psutil.Process(server.pid))
        print(f"load average {os.getloadavg()[0]:.1f}; a step each {asked.step_ms:g} ms; text by {asked.model or 'a table'}")
        for streams in asked.streams:
            for name, (url, process) in processes.items():
                found = measure(url, key, streams, asked.seconds, process)
                print(
                    f"{streams:>3} streams, {name:>7}: {found['token']:6.2f} CPU us a token, {found['request']:6.0f} a request;"
                    f" {found['tokens'] / found['wall']:7.0f} tokens/s, {found['tokens'] / found['reads']:.2f} a read,"
                    f" between reads p50 {found['gap_p50']:.1f} p99 {found['gap_p99']:.1f} ms, {found['errors']:.0f} errors",
                    flush=True,
                )


def made_home(home: Path) -> str:
    """A workspace with a model that is deployed; a key."""
    workspace = open_home(home)
    with workspace.store.workspace() as made:
        (made / "files").mkdir()
        (made / "files" / "config.json").write_text("{}")
        artifact = workspace.store.add(
            made / "files",
            format="openvino",
            layout="genai",
            task="text-generation",
            engine="openvino-genai",
            signature=None,
            settings={"threads": 1},
        )
    report = {"passed": True, "failures": []}
    workspace.catalog.register("text", artifact, source="none", recipe="none", report=report, passes=[])
    workspace.catalog.deploy("text")
    _, key = workspace.keys.create("benchmark", ["infer"])
    workspace.close()
    return key


if __name__ == "__main__":
    main()
