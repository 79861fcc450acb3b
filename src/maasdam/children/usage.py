"""What a process takes, as the system tells. Knows /proc."""

from __future__ import annotations

import os
import re
from pathlib import Path


def resident_bytes(pid: int | None) -> int:
    """Bytes in memory that are no file's; 0 where the system does not tell."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return sum(int(kb) * 1024 for kb in re.findall(r"^Rss(?:Anon|Shmem):\s+(\d+) kB", text, re.M))


def cpu_seconds(pid: int | None) -> float:
    """Of all its threads so far; 0 where the system does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def share_bytes(pid: int) -> int:
    """What would come back if it ended: its own memory, and its share of what it has together with others; 0 as above.

    It takes a millisecond: the system looks through the whole process.
    """
    try:
        found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0
