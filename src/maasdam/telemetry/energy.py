"""Joules, and how they were found. Knows counters and an estimate; never gives a number without its method.

In order: RAPL (the processor's own counter), else CPU-seconds x watts per core from the settings, labelled as an estimate,
else None. A virtual machine has no RAPL. What a GPU draws is not counted here.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
SAMPLE_SECONDS = 0.5
"""How often the counter is read: a request's joules come from the power while it ran."""
KEPT_SECONDS = 120.0
"""How far back power is known; also well within the time a counter takes to wrap."""


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
    """Attributes energy to requests by the CPU-seconds they took."""

    def __init__(
        self,
        watts_per_core: float,
        rapl: RaplCounter | None = None,
        busy_seconds: Callable[[], float] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`watts_per_core` 0 is no estimate. `busy_seconds` tells the CPU-seconds the whole machine has worked."""
        self._watts = watts_per_core
        self._rapl = rapl
        self._busy_seconds = busy_seconds or _machine_busy_seconds
        self._clock = clock
        self._samples: deque[tuple[float, float, float]] = deque()
        self._lock = threading.Lock()
        self.rate: float | None = watts_per_core if rapl is None and watts_per_core > 0 else None
        """Joules that a CPU-second took lately: over the newest second or more of the counter, else as the settings have it."""
        self.sample()

    @property
    def method(self) -> str:
        """How joules are found here, or why they are not."""
        if self._rapl:
            return "measured: RAPL package joules while it ran x its share of the machine's busy CPU-seconds"
        if self._watts > 0:
            return f"estimate: CPU-seconds x {self._watts:g} W per core"
        return "no energy counter on this machine; set MAASDAM_WATTS_PER_CORE for an estimate"

    def joules(self, compute_seconds: float | None, wall: float) -> tuple[float | None, str]:
        """Joules of `compute_seconds` of engine CPU within the last `wall` seconds, or None; and the method."""
        if compute_seconds is None:
            return None, "compute seconds were not measured"
        if self._rapl:
            return self._measured(compute_seconds, wall), self.method
        if self._watts > 0:
            return compute_seconds * self._watts, self.method
        return None, self.method

    def sample(self) -> None:
        """Read the counter. `open_meter` has this done twice a second."""
        if self._rapl is None:
            return
        with self._lock:
            now = self._clock()
            self._samples.append((now, self._busy_seconds(), self._rapl.joules()))
            while len(self._samples) > 2 and self._samples[0][0] < now - KEPT_SECONDS:
                self._samples.popleft()
            first = next((s for s in reversed(self._samples) if s[0] <= now - 2 * SAMPLE_SECONDS), self._samples[0])
            busy = self._samples[-1][1] - first[1]
            if busy > 0:
                self.rate = (self._samples[-1][2] - first[2]) / busy

    def _measured(self, compute_seconds: float, wall: float) -> float | None:
        self.sample()
        with self._lock:
            now, busy, joules = self._samples[-1]
            began = now - max(wall, 2 * SAMPLE_SECONDS)  # the counter is too coarse for less
            first = next((s for s in reversed(self._samples) if s[0] <= began), self._samples[0])
        spent = busy - first[1]
        if spent <= 0:
            return 0.0 if compute_seconds == 0 else None
        return (joules - first[2]) * min(compute_seconds / spent, 1.0)


def open_meter(watts_per_core: float) -> EnergyMeter:
    """The best meter this machine has. With a counter, a daemon thread reads it for as long as the meter is in use."""
    try:
        meter = EnergyMeter(watts_per_core, RaplCounter())
    except (OSError, ValueError):
        return EnergyMeter(watts_per_core)
    threading.Thread(target=_keep_sampling, args=(weakref.ref(meter),), name="energy", daemon=True).start()
    return meter


def _keep_sampling(meter: weakref.ref[EnergyMeter]) -> None:
    while (alive := meter()) is not None:
        try:
            alive.sample()
        except OSError:
            return  # the counter went away; the samples there are go on serving
        del alive
        time.sleep(SAMPLE_SECONDS)


def _machine_busy_seconds() -> float:
    import psutil

    times = psutil.cpu_times()
    return float(times.user + times.system + getattr(times, "irq", 0.0) + getattr(times, "softirq", 0.0))
