"""Which processor this is, and the instructions it has for int8. Knows /proc/cpuinfo; measures nothing."""

from __future__ import annotations

import os
import platform
from pathlib import Path

INSTRUCTIONS = ("amx_int8", "amx_bf16", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512f", "avx2", "i8mm", "asimddp", "bf16")
"""Those that decide how fast int8 and bf16 are, the best first."""
INT8 = ("amx_int8", "avx512_vnni", "avx_vnni", "i8mm", "asimddp")
"""Those made for int8: a product of four and its sum in one step."""


def instructions() -> tuple[str, ...] | None:
    """Of INSTRUCTIONS, those this processor has; None where the system doesn't tell."""
    fields = _cpuinfo()
    flags = fields.get("flags") or fields.get("Features")
    return None if flags is None else tuple(name for name in INSTRUCTIONS if name in flags.split())


def has_int8() -> bool:
    """Whether the processor has instructions made for int8; True where the system doesn't tell."""
    names = instructions()
    return names is None or any(name in INT8 for name in names)


def processor_name() -> str:
    """The processor's model, its best instruction of those above, and how many cores this process may use.

    Cloud machines tell no more than a family ("AMD EPYC"); the instruction is what tells two of them apart.
    """
    name = _cpuinfo().get("model name") or platform.processor() or platform.machine()
    best = f" ({names[0]})" if (names := instructions()) else ""
    return f"{name}{best}, {available_threads()} cores"


def available_threads() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpuinfo() -> dict[str, str]:
    """The fields of the first processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().split("\n\n", 1)[0].splitlines() if info.is_file() else []
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
