"""A model that is served as it came, by what alone reads it: GGUF by llama.cpp. Knows how it is tried; never how it is opened.

There is no other engine to compare with, and no uncompressed source: what that would tell is null and says why. What is tried:
that it opens, writes, writes the same again, and how fast.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from statistics import median
from typing import Any, Protocol

from maasdam.core import ANONYMOUS, Artifact, Chunk, Request, Sampling, TextPayload, TextPiece
from maasdam.errors import InvalidInput, MaasdamError

TOKENS = 32
TRIES = 4
PROMPT = "The"
WHY = "nothing to compare with: the file is the only form of the model that is here, and one engine reads it"


class Writing(Protocol):
    """What is asked: a replica."""

    def answer(self, request: Request) -> AsyncGenerator[Chunk]:
        """Chunks as they come."""
        ...

    @property
    def memory_bytes(self) -> int | None:
        """What it holds."""
        ...

    def close(self) -> None:
        """End it."""
        ...


def refuse_flags(recipe: str, **given: Any) -> None:
    """Raise InvalidInput for what would change the file: it is neither converted nor compressed here."""
    if recipe != "fp32":
        raise InvalidInput(f"a GGUF file is served as it is, so no recipe runs ('{recipe}'); leave --recipe out")
    for flag, value in given.items():
        if value is not None:
            raise InvalidInput(f"a GGUF file is served as it is; leave --{flag} out")


async def verified(artifact: Artifact, open_replica: Callable[[Artifact], Any]) -> dict[str, Any]:
    """The report, in the shape of every report. Raises what opening it raises."""
    replica: Writing = await open_replica(artifact)
    try:
        failures, seconds, texts = [], [], []
        tokens = 0
        try:
            for _ in range(TRIES):
                began = time.perf_counter()
                text, tokens = await _written(replica)
                seconds.append(time.perf_counter() - began)
                texts.append(text)
        except MaasdamError as error:
            failures.append(f"it does not write: {error}")
        if len(set(texts)) > 1:
            failures.append("greedily asked for the same, it wrote different texts")
        memory = replica.memory_bytes
    finally:
        await asyncio.to_thread(replica.close)
    middle = median(seconds) if seconds else None
    latency = {"p50": middle and middle * 1e3, "p99": max(seconds) * 1e3 if seconds else None}
    return {
        "passed": not failures,
        "failures": failures,
        "notes": [f"served as it is, by {artifact.engine}; one latency is that of {tokens} tokens after '{PROMPT}'", WHY],
        "parity": {"max_abs_diff": None, "cosine": None, "agreement": None, "why": WHY},
        "accuracy": {"metric": None, "reference": None, "candidate": None, "drop": None, "examples": 0, "why": WHY},
        "size_bytes": {"reference": None, "candidate": artifact.size_bytes, "ratio": None},
        "latency_ms": {"reference": {"p50": None, "p99": None}, "candidate": latency, "speedup": None},
        "throughput": {"reference": None, "candidate": tokens / middle if middle else None, "unit": "tokens/s"},
        "energy_joules": {"reference": None, "candidate": None, "method": "not measured: another process computes"},
        "memory_bytes": {"reference": None, "candidate": memory},
        "samples": [{"input": PROMPT, "candidate": text[:200]} for text in texts[:1]],
    }


async def _written(replica: Writing) -> tuple[str, int]:
    payload = TextPayload(prompt=PROMPT, sampling=Sampling(max_tokens=TOKENS, temperature=0.0))
    chunks = [chunk async for chunk in replica.answer(Request("verify", "verify", (payload,), ANONYMOUS))]
    pieces = [chunk.value for chunk in chunks if isinstance(chunk.value, TextPiece)]
    return "".join(piece.text for piece in pieces), chunks[-1].units.completion_tokens or 0
