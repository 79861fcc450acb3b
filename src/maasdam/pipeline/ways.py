"""The ways to run one network on one device: engines, threads, precisions, streams, graphs. Knows names; measures nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from maasdam.core import Artifact, TensorEngine
from maasdam.engines.processor import available_threads
from maasdam.pipeline.fuse import fuse

PLAIN_PRECISION = "f32"
"""What engines compute in when nothing is said: said, it would make another artifact of the same files."""


@dataclass(slots=True)
class Candidate:
    """One way to run the network, and what was found of it."""

    artifact: Artifact
    threads: int
    """0 is every core."""
    precision: str | None
    options: Mapping[str, Any] = field(default_factory=dict)
    """Engine settings beside threads and precision; only what is not the engine's default."""
    fused: Mapping[str, int] = field(default_factory=dict)
    """Operators that ONNX Runtime's transformer optimiser made, by name."""
    engine: TensorEngine | None = None
    p50: float | None = None
    """Seconds of one run of one example."""
    throughput: float | None = None
    """Items a second, a batch of 8 in each stream; where the goal is throughput."""
    cosine: float | None = None
    """Mean, with the answers of what it was made of."""
    lost: float | None = None
    """Of the spread of its worst output or slice (`Fidelity.lost`); infinite, and null in the table, where one died."""
    why_not: str | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """The engine settings that make it so; what is the default is left out."""
        settings = dict(self.artifact.settings) | dict(self.options)
        if self.threads:
            settings["threads"] = self.threads
        if self.precision not in (None, PLAIN_PRECISION) or "precision" in settings:
            settings["precision"] = self.precision
        return settings

    @property
    def is_plain(self) -> bool:
        """Whether it is the network as it is, opened as its engine is by default."""
        return not (self.threads or self.options or self.fused)

    @property
    def streams(self) -> int:
        """Batches that compute side by side."""
        return int(self.options.get("streams", 1))

    def to_json(self, is_chosen: bool) -> dict[str, Any]:
        """One row of the table."""
        return {
            "engine": self.artifact.engine,
            "threads": self.threads or available_threads(),
            "precision": self.precision,
            "options": dict(self.options),
            "fused": dict(self.fused) or None,
            "p50_ms": None if self.p50 is None else self.p50 * 1000,
            "items_per_second": self.throughput,
            "cosine": self.cosine,
            "lost": self.lost if self.lost is not None and math.isfinite(self.lost) else None,
            "chosen": is_chosen,
            "left_out": self.why_not,
        }


def ways(rivals: Sequence[Artifact], settings: Mapping[str, Any], device: str, threads: int, work: Path) -> list[Candidate]:
    """Every way of every rival. `threads` 0 is all cores; fused graphs are written into folders below `work`."""
    find = _on_cuda if device == "cuda" else _on_cpu
    cores = threads or available_threads()
    return [c for number, r in enumerate(rivals) for c in find(r, settings, cores, work / str(number))]


def _on_cpu(artifact: Artifact, settings: Mapping[str, Any], cores: int, work: Path) -> Iterator[Candidate]:
    counts = [0, *sorted({1, cores // 2} - {0, cores}, reverse=True)] if settings["threads"] == "auto" else [0]
    kept, wanted = artifact.settings.get("precision"), settings["precision"]
    if artifact.engine == "openvino":
        for precision in ("f32", "bf16") if wanted == "auto" else (kept or wanted,):
            yield from (Candidate(artifact, count, precision) for count in counts)
            if settings["goal"] == "throughput" and cores > 1:
                yield Candidate(artifact, 0, precision, {"streams": cores, "hint": "throughput"})
        return
    yield from (Candidate(artifact, count, kept) for count in counts)
    if artifact.engine == "onnxruntime":
        # spinning threads are no candidate: they are faster alone, and take the cores of every other model of the service
        yield Candidate(artifact, 0, kept, {"graph": "extended"})
        if (fused := _fused(artifact, kept, {}, work)) is not None:
            yield fused


def _on_cuda(artifact: Artifact, settings: Mapping[str, Any], cores: int, work: Path) -> Iterator[Candidate]:
    wanted = settings["precision"]
    precisions = (PLAIN_PRECISION, "f16") if wanted == "auto" else (wanted,)
    here = {"device": "cuda"}
    if artifact.engine == "onnxruntime":
        if not artifact.settings.get("int8"):  # quantised for TensorRT; ONNX Runtime's CUDA kernels compute it in float
            yield Candidate(artifact, 0, None, here)
        yield from (Candidate(artifact, 0, precision, here | {"provider": "tensorrt"}) for precision in precisions)
        if (fused := _fused(artifact, None, here, work)) is not None:
            yield fused
    elif artifact.engine == "pytorch":
        for precision in precisions:
            yield Candidate(artifact, 0, precision, here)
            if artifact.layout != "torchscript":
                yield Candidate(artifact, 0, precision, here | {"compile": True})
    else:
        yield Candidate(artifact, 0, artifact.settings.get("precision"), here)


def _fused(artifact: Artifact, precision: str | None, options: Mapping[str, Any], work: Path) -> Candidate | None:
    found = fuse(artifact, work / "fused")
    if found is None:
        return None
    return Candidate(found.artifact or artifact, 0, precision, options, found.operators or {"none": 0}, why_not=found.why_not)
