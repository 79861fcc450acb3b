"""What an engine adds to a process's memory. Knows child processes and resident memory; never limits or tasks.

Run as a module this is the child: it imports the engine's library, notes its resident memory, opens the artifact, runs
inputs, and prints how much the memory grew.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from maasdam.core import Artifact, Sampling, SequenceEngine, SequenceRequest, Signature
from maasdam.pipeline.examples import Inputs

RUNS = 5
SECONDS = 180.0
TOKENS = 16


def footprint_bytes(artifact: Artifact, inputs: Sequence[Inputs], threads: int, device: str) -> tuple[int | None, str | None]:
    """Growth of resident memory in a fresh process, from after the engine's library is imported to after a few runs.

    (bytes, None), or (None, why it could not be measured).
    """
    import numpy as np

    with tempfile.TemporaryDirectory(prefix="maasdam-footprint-") as folder:
        for number, tensors in enumerate(inputs[:RUNS]):
            np.savez(Path(folder) / f"{number}.npz", **tensors)  # type: ignore[arg-type]  # names are free, as in Signature
        what = {"artifact": _to_json(artifact), "inputs": folder, "threads": threads, "device": device}
        try:
            child = subprocess.run(
                [sys.executable, "-m", "maasdam.pipeline.footprint"],
                input=json.dumps(what),
                capture_output=True,
                text=True,
                timeout=SECONDS,
                env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
            )
        except subprocess.TimeoutExpired:
            return None, f"memory of {artifact.engine} was not measured: it took more than {SECONDS:.0f} s"
    lines = child.stdout.splitlines()
    if child.returncode != 0 or not lines:
        last = (child.stderr.strip().splitlines() or ["no message"])[-1]
        return None, f"memory of {artifact.engine} was not measured: the child process failed ({last[:200]})"
    grown = int(json.loads(lines[-1])["bytes"])
    return (grown, None) if grown > 0 else (None, f"memory of {artifact.engine} was not measured: it did not grow")


def _child(what: dict[str, Any]) -> int:
    import numpy as np
    import psutil

    from maasdam.engines import ENGINES, open_engine

    artifact = _from_json(what["artifact"])
    inputs: list[Inputs] = [dict(np.load(path)) for path in sorted(Path(what["inputs"]).glob("*.npz"))]
    info = ENGINES[artifact.engine]
    for library in info.libraries:
        importlib.import_module(library)
    if artifact.layout == "huggingface":
        importlib.import_module("transformers.modeling_utils")
    process = psutil.Process()
    before = process.memory_info().rss
    engine = open_engine(artifact, threads=what["threads"], device=what["device"])
    if isinstance(engine, SequenceEngine):
        import asyncio

        asyncio.run(_generate(engine, inputs))
    else:
        for number in range(RUNS):
            engine.run(inputs[number % len(inputs)])
    after = process.memory_info().rss
    engine.close()
    return int(after - before)


async def _generate(engine: SequenceEngine, inputs: Sequence[Inputs]) -> None:
    for number, tensors in enumerate(inputs):
        request = SequenceRequest(str(number), tensors, Sampling(max_tokens=TOKENS, temperature=0.0, ignore_eos=True))
        async for _ in engine.submit(request):
            pass


def _to_json(artifact: Artifact) -> dict[str, Any]:
    return asdict(artifact) | {
        "path": str(artifact.path),
        "signature": artifact.signature.to_json() if artifact.signature else None,
        "settings": dict(artifact.settings),
    }


def _from_json(data: dict[str, Any]) -> Artifact:
    signature = Signature.from_json(data["signature"]) if data["signature"] else None
    return Artifact(**{**data, "path": Path(data["path"]), "signature": signature, "parents": tuple(data["parents"])})


if __name__ == "__main__":
    print(json.dumps({"bytes": _child(json.load(sys.stdin))}))
