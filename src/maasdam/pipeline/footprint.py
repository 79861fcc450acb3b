"""What an engine adds to a process's memory. Knows child processes and resident memory; never limits or tasks.

Run as a module this is the child: it imports the engine's library, notes its resident memory, opens the artifact, runs
inputs, and prints how much the memory grew.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence

from maasdam.core import Artifact, Sampling, SequenceEngine, SequenceRequest
from maasdam.pipeline.examples import Inputs

RUNS = 5
SECONDS = 180.0
TOKENS = 16


def footprint_bytes(artifact: Artifact, inputs: Sequence[Inputs], threads: int, device: str) -> tuple[int | None, str | None]:
    """Growth of resident memory in a fresh process, from after the engine's library is imported to after a few runs.

    (bytes, None), or (None, why it could not be measured).
    """
    try:
        child = subprocess.run(
            [sys.executable, "-m", "maasdam.pipeline.footprint"],
            input=pickle.dumps((artifact, list(inputs[:RUNS]), threads, device)),
            capture_output=True,
            timeout=SECONDS,
            env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
        )
    except subprocess.TimeoutExpired:
        return None, f"memory of {artifact.engine} was not measured: it took more than {SECONDS:.0f} s"
    lines = child.stdout.decode(errors="replace").splitlines()
    if child.returncode != 0 or not lines:
        last = (child.stderr.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
        return None, f"memory of {artifact.engine} was not measured: the child process failed ({last[:200]})"
    grown = int(lines[-1])
    return (grown, None) if grown > 0 else (None, f"memory of {artifact.engine} was not measured: it did not grow")


def _child(artifact: Artifact, inputs: Sequence[Inputs], threads: int, device: str) -> int:
    import psutil

    from maasdam.engines import ENGINES, open_engine
    from maasdam.engines.generating import all_of

    info = ENGINES[artifact.engine]
    for library in info.libraries:
        importlib.import_module(library)
    if artifact.layout == "huggingface":
        importlib.import_module("transformers.modeling_utils")
    process = psutil.Process()
    before = process.memory_info().rss
    engine = open_engine(artifact, threads=threads, device=device)
    if isinstance(engine, SequenceEngine):
        few = Sampling(max_tokens=TOKENS, temperature=0.0, ignore_eos=True)
        for number, tensors in enumerate(inputs):
            asyncio.run(all_of(engine, SequenceRequest(str(number), tensors, few)))
    else:
        for number in range(RUNS):
            engine.run(inputs[number % len(inputs)])
    after = process.memory_info().rss
    engine.close()
    return int(after - before)


if __name__ == "__main__":
    print(_child(*pickle.load(sys.stdin.buffer)))  # from `footprint_bytes`
