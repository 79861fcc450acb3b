"""What work on a model may take here: limits from the settings. Knows settings and the machine's memory; starts nothing."""

from __future__ import annotations

import os
import re
from pathlib import Path

from maasdam.children import ChildLimits
from maasdam.errors import InvalidInput
from maasdam.settings import Settings

PART_OF_MEMORY = 0.8
"""Of what the machine, or its container, has: the default."""
_CONTAINER = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))

_UNITS = {"": 1, "b": 1} | {
    f"{letter}{unit}": base**power
    for power, letter in enumerate("kmgt", 1)
    for unit, base in (("", 1000), ("b", 1000), ("ib", 1024))
}
_SIZE = re.compile(rf"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>%|{'|'.join(sorted(_UNITS, key=len, reverse=True))})", re.IGNORECASE)


def step_limits(settings: Settings) -> ChildLimits:
    """Of a step of build, convert and verify."""
    most = memory_limit(settings.step_memory_bytes)
    return ChildLimits(settings.step_seconds or None, settings.step_cpu_seconds or None, most)


def inspect_limits(settings: Settings) -> ChildLimits:
    """Of reading what a source says of itself."""
    names = ("inspect_seconds", "step_cpu_seconds", "step_memory_bytes")
    most = memory_limit(settings.step_memory_bytes)
    return ChildLimits(settings.inspect_seconds or None, settings.step_cpu_seconds or None, most, names)


def memory_budget(settings: Settings) -> int | None:
    """Bytes that models may take together; None is no limit. Raises InvalidInput for what is neither bytes nor a share."""
    text = str(settings.memory_budget).strip()
    if not text:
        return None
    found = _SIZE.fullmatch(text)
    number = float(found["number"]) if found else 0.0
    unit = found["unit"].lower() if found else ""
    if number <= 0 or (unit == "%" and number > 100):
        raise InvalidInput(
            f"setting 'memory_budget' is '{text}'; it takes bytes (4GB, 512 MiB) or a share of the machine (60%)"
        )
    return int(number / 100 * machine_memory()) if unit == "%" else int(number * _UNITS[unit])


def memory_limit(set_bytes: int) -> int:
    """What was set; where that is 0, a part of what the machine has."""
    return set_bytes or int(machine_memory() * PART_OF_MEMORY)


def machine_memory() -> int:
    """Bytes that the machine has, or its container may take."""
    most = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in _CONTAINER:
        try:
            most = min(most, int(path.read_text()))
        except (OSError, ValueError):  # no container, or one without a limit
            continue
    return most
