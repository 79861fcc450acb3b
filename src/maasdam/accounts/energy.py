"""Joules, and how they were found. Knows counters and an estimate; never gives a number without its method.

In order: RAPL (the processor's own counter), else CPU-seconds x watts per core from the settings, labelled as an estimate,
else None. A virtual machine has no RAPL.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")


class RaplCounter:
    """The sum of the processor packages' energy counters. Raises OSError where they can't be read."""

    def __init__(self, root: Path = POWERCAP) -> None:
        self._zones = sorted(zone for zone in root.glob("intel-rapl:*") if zone.name.count(":") == 1)
        if not self._zones:
            raise FileNotFoundError(f"no RAPL zones below {root}")
        self._wraps = [int((zone / "max_energy_range_uj").read_text()) for zone in self._zones]
        self._last = [int((zone / "energy_uj").read_text()) for zone in self._zones]
        self._total = 0.0
        self._lock = threading.Lock()

    def joules(self) -> float:
        """Joules of all packages since this counter was made; call it more often than the counter wraps (about a minute)."""
        with self._lock:
            for i, zone in enumerate(self._zones):
                now = int((zone / "energy_uj").read_text())
                self._total += ((now - self._last[i]) % (self._wraps[i] + 1)) / 1e6
                self._last[i] = now
            return self._total


class EnergyMeter:
    """Attributes energy to requests."""

    def __init__(
        self,
        watts_per_core: float,
        rapl: RaplCounter | None = None,
        cpu_seconds: Callable[[], float] = time.process_time,
    ) -> None:
        """`watts_per_core` 0 is no estimate. With `rapl`, its joules are shared out by this process's CPU-seconds."""
        self._watts = watts_per_core
        self._rapl = rapl
        self._cpu_seconds = cpu_seconds
        self._began = (cpu_seconds(), rapl.joules() if rapl else 0.0)

    @property
    def method(self) -> str:
        """How joules are found here, or why they are not."""
        if self._rapl:
            return "measured: RAPL package joules x this process's share of CPU-seconds"
        if self._watts > 0:
            return f"estimate: CPU-seconds x {self._watts:g} W per core"
        return "no energy counter on this machine; set MAASDAM_WATTS_PER_CORE for an estimate"

    def joules(self, compute_seconds: float | None, wall: float) -> tuple[float | None, str]:
        """Joules of `compute_seconds` of engine CPU, or None; and the method."""
        if compute_seconds is None:
            return None, "compute seconds were not measured"
        if self._rapl:
            cpu, joules = self._cpu_seconds() - self._began[0], self._rapl.joules() - self._began[1]
            return (compute_seconds * joules / cpu if cpu > 0 else None), self.method
        if self._watts > 0:
            return compute_seconds * self._watts, self.method
        return None, self.method


def open_meter(watts_per_core: float) -> EnergyMeter:
    """The best meter this machine has."""
    try:
        return EnergyMeter(watts_per_core, RaplCounter())
    except (OSError, ValueError):
        return EnergyMeter(watts_per_core)
