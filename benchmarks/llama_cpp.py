"""Text through the service and through llama.cpp's server: the same weights in int8, the same requests, in turns.

    python -m benchmarks.llama_cpp --peer PYTHON [--rounds 3] [--streams 1 8 32] [--threads 2] [--work DIR]

PYTHON is an interpreter with xllamacpp, gguf, safetensors and numpy (`benchmarks/peers/llama_cpp_server.py`). The model is a
Llama of 97 million random parameters with the shipped tokenizer, made by seed 0: ours by the pass that makes int8 weights,
theirs as Q8_0; both round activations to int8 as they come. Prompts of 64 tokens, 64 written greedily after each, none of them
known from before; as one ends the next begins. What is counted is the CPU time of each server's processes; the load takes the
same cores. Medians over the rounds, and of each round what ours takes of theirs.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import psutil
import uvloop
from tests.served import open_home, serving

from benchmarks.company import random_llama
from benchmarks.contenders import apply, versions
from benchmarks.text import ANSWERS, TOKENS, through
from maasdam.engines.processor import processor_name
from maasdam.pipeline.run_recipe import Build
from maasdam.sources import ingest

SERVER = Path(__file__).parent / "peers" / "llama_cpp_server.py"
ANSWERED = {1: 6, 8: 24, 32: 64}
"""How many answers a round has, by streams."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True, help="a Python that has xllamacpp")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--answers", type=int, help="in a round, whatever the streams; at least as many")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, help="keep the model here, so that a second run makes none anew")
    asked = parser.parse_args()
    ANSWERS.update({streams: asked.answers or ANSWERED.get(streams, 3 * streams) for streams in asked.streams})
    os.environ["MAASDAM_THREADS"] = str(asked.threads)
    os.environ.setdefault("MAASDAM_GRPC_PORT", "0")
    print(f"{processor_name()}; {asked.threads} threads; {versions()}\n")
    with tempfile.TemporaryDirectory() as folder:
        work = asked.work or Path(folder)
        source, home = _llama(work), work / "home"
        key = _deployed(source, home, asked.threads)
        with _peer(asked.peer, source, max(asked.streams), asked.threads) as (theirs, url), serving(home, key) as service:
            processes = {"maasdam": (service.url, psutil.Process(service.process.pid)), "llama.cpp": (url, theirs)}
            first = 1
            for streams in asked.streams:
                found: dict[str, list[tuple[float, ...]]] = {name: [] for name in processes}
                for number in range(asked.rounds + 1):
                    for name, (where, process) in processes.items():
                        one = uvloop.run(through(where, key, streams, process, first))
                        if not one["gaps"]:
                            raise SystemExit(f"{name} answered {streams} streams with no pieces; ask it by hand")
                        if number:  # the first warms up
                            found[name].append(_figures(one, streams))
                    first += ANSWERS[streams]
                _tell(streams, found)


def _figures(one: dict[str, Any], streams: int) -> tuple[float, ...]:
    """Tokens a second, CPU milliseconds a token, milliseconds between two tokens at the median and at p99."""
    gaps, tokens = sorted(one["gaps"]), ANSWERS[streams] * TOKENS
    return tokens / one["wall"], one["cpu"] / tokens * 1e3, gaps[len(gaps) // 2] * 1e3, gaps[int(len(gaps) * 0.99)] * 1e3


def _tell(streams: int, found: dict[str, list[tuple[float, ...]]]) -> None:
    for name, rounds in found.items():
        speed, cpu, middle, late = (statistics.median(column) for column in zip(*rounds, strict=True))
        print(
            f"| {streams} | {name} | {speed:.0f} tokens/s | {cpu:.2f} CPU ms a token | p50 {middle:.1f}, p99 {late:.1f} ms "
            f"({late / middle:.1f} times) |"
        )
    ours, theirs = found.values()
    speeds, costs = ([a[i] / b[i] for a, b in zip(ours, theirs, strict=True)] for i in (0, 1))
    told = (", ".join(f"{each:.2f}" for each in column) for column in (speeds, costs))
    print(f"|  | of llama.cpp's, by rounds | {next(told)} | {next(told)} | load {os.getloadavg()[0]:.1f} |", flush=True)


def _llama(work: Path) -> Path:
    sizes = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12}
    return random_llama(work / "llama", tie_word_embeddings=False, bos_token_id=0, eos_token_id=1, **sizes)


def _deployed(source: Path, home: Path, threads: int) -> str:
    """A home that serves the model in int8 as "text"; a key to it."""
    home.mkdir(parents=True, exist_ok=True)
    with open_home(home) as workspace:
        if not workspace.catalog.versions():
            build = Build(workspace.store, threads=threads)
            made = build.convert(ingest(str(source), build.store, task="text-generation"), "openvino")
            made = apply(build, made, "quantize", scheme="weights-int8", format="openvino")
            report = {"passed": True, "failures": []}
            workspace.catalog.register("text", made, source="none", recipe="none", report=report, passes=[])
            workspace.catalog.deploy("text")
        return workspace.keys.create("benchmark", ["infer", "deploy", "admin"])[1]


class _peer:
    """llama.cpp's server, while inside the `with`."""

    def __init__(self, python: str, source: Path, slots: int, threads: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self._command = [python, str(SERVER), str(source), str(self._port), str(slots), str(threads)]

    def __enter__(self) -> tuple[psutil.Process, str]:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        url, until = f"http://127.0.0.1:{self._port}", time.monotonic() + 120
        while time.monotonic() < until and self._process.poll() is None:
            try:
                with urlopen(f"{url}/health", timeout=5):
                    return psutil.Process(self._process.pid), url
            except (URLError, OSError):
                time.sleep(0.2)
        raise SystemExit("llama.cpp's server did not come up; run its command by hand")

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait()


if __name__ == "__main__":
    main()
