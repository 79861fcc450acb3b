"""What an engine adds to a process's memory. Knows child processes and resident memory; never limits or tasks.

Run as a module this is the child: it imports the engine's library, notes its resident memory, opens the artifact, runs
inputs, and prints how much the memory grew.
"""

from __future__ import annotations

import asyncio
import importlib
import pickle
import sys
from collections.abc import Sequence

from maasdam.children import last_line, run_python
from maasdam.core import Artifact, Sampling, SequenceEngine, SequenceRequest
from maasdam.pipeline.examples import Inputs

RUNS = 5
SECONDS = 180.0
TOKENS = 16


def footprint_bytes(artifact: Artifact, inputs: Sequence[Inputs], threads: int, device: str) -> tuple[int | None, str | None]:
    """Growth of resident memory in a fresh process, from after the engine's library is imported to after a few runs.

    (bytes, None), or (None, why it could not be measured).
    """
    given = pickle.dumps((artifact, list(inputs[:RUNS]), threads, device))
    child = run_python(["-m", "maasdam.pipeline.footprint"], seconds=SECONDS, given=given)
    if child.returncode != 0 or not child.stdout:
        why = last_line(child.stderr, "no message")[:200]
        return None, f"memory of {artifact.engine} was not measured: the child process failed ({why})"
    grown = int(last_line(child.stdout, "0"))
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
