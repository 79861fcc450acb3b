"""How a build is measured, and what its numbers depend on. Knows time budgets and versions; never engines or limits."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from maasdam.core import Progress, silent
from maasdam.engines import installed_version
from maasdam.engines.processor import available_threads, has_int8, processor_name
from maasdam.pipeline.attempts import Attempts
from maasdam.pipeline.measure import MEASURE_SECONDS, Joules

LIBRARIES = ("openvino", "openvino_genai", "onnxruntime", "nncf", "torch", "transformers", "tensorflow_cpu", "numpy")


@dataclass(frozen=True, slots=True)
class Conditions:
    """How to measure, and what the report should say of how the candidate came about."""

    threads: int = 0
    device: str = "cpu"
    joules: Joules = lambda cpu_seconds, seconds: (None, "not measured: no energy meter was given")
    progress: Progress = silent
    attempts: Attempts = field(default_factory=Attempts)
    notes: tuple[str, ...] = ()
    calibration: Mapping[str, Any] | None = None
    optimization: Sequence[Mapping[str, Any]] = ()
    measure_seconds: float = MEASURE_SECONDS
    """Longest that latency is measured; throughput half of it."""
    measures_memory: bool = True

    @property
    def threads_used(self) -> int:
        """Engine threads in force."""
        return self.threads or available_threads()

    def energy_method(self, joules: float | None) -> str:
        """How `joules` were found, or why they were not."""
        probe, method = self.joules(0.0, 1.0)
        return "not measured: the energy counter stood still while it ran" if joules is None and probe is not None else method


def circumstances(how: Conditions, threads: int) -> dict[str, Any]:
    """What the numbers depend on."""
    return {
        "processor": processor_name(),
        "has_int8_instructions": has_int8(),
        "threads": threads,
        "device": how.device,
        "load": list(os.getloadavg()),
        "libraries": {name: v for name in LIBRARIES if (v := installed_version(name)) is not None},
        "memory": "growth of resident memory in a fresh process, from after the engine's library is imported to after 5 runs",
        "size": "every file needed to serve, the processor's included",
    }
