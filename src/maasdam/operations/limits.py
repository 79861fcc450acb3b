"""What work on a model may take here: limits from the settings. Knows settings and the machine's memory; starts nothing."""

from __future__ import annotations

import os
from pathlib import Path

from maasdam.children import ChildLimits
from maasdam.settings import Settings

PART_OF_MEMORY = 0.8
"""Of what the machine, or its container, has: the default."""
_CONTAINER = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def step_limits(settings: Settings) -> ChildLimits:
    """Of a step of build, convert and verify."""
    return ChildLimits(settings.step_seconds or None, settings.step_cpu_seconds or None, _memory(settings))


def inspect_limits(settings: Settings) -> ChildLimits:
    """Of reading what a source says of itself."""
    names = ("inspect_seconds", "step_cpu_seconds", "step_memory_bytes")
    return ChildLimits(settings.inspect_seconds or None, settings.step_cpu_seconds or None, _memory(settings), names)


def _memory(settings: Settings) -> int:
    if settings.step_memory_bytes:
        return settings.step_memory_bytes
    most = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in _CONTAINER:
        try:
            most = min(most, int(path.read_text()))
        except (OSError, ValueError):  # no container, or one without a limit
            continue
    return int(most * PART_OF_MEMORY)
