"""Joules always come with the method that found them."""

from __future__ import annotations

import gc
import threading
from pathlib import Path

import pytest

from maasdam.telemetry import energy
from maasdam.telemetry.energy import EnergyMeter, RaplCounter, open_meter


class Machine:
    """A clock, a processor and a RAPL tree that do what the test says."""

    def __init__(self, root: Path, packages: int = 1, wraps_at: int = 10**12) -> None:
        self.root, self.now, self.busy = root, 100.0, 50.0
        for number in range(packages):
            for zone in (f"intel-rapl:{number}", f"intel-rapl:{number}:0"):  # the second is a part of the first
                (root / zone).mkdir(parents=True)
                (root / zone / "max_energy_range_uj").write_text(str(wraps_at))
                (root / zone / "energy_uj").write_text("1000")
        (root / "intel-rapl").mkdir()

    def meter(self) -> EnergyMeter:
        return EnergyMeter(0.0, RaplCounter(self.root), lambda: self.busy, lambda: self.now)

    def runs(self, seconds: float, busy: float, joules: float) -> None:
        self.now += seconds
        self.busy += busy
        for zone in self.root.glob("intel-rapl:?"):
            path = zone / "energy_uj"
            wraps_at = int((zone / "max_energy_range_uj").read_text())
            path.write_text(str((int(path.read_text()) + int(joules * 1e6)) % (wraps_at + 1)))


def test_without_a_counter_or_a_setting_joules_are_none_and_say_why() -> None:
    joules, method = EnergyMeter(0.0).joules(1.0, 1.0)
    assert joules is None and "MAASDAM_WATTS_PER_CORE" in method


def test_the_estimate_is_labelled_as_one() -> None:
    assert EnergyMeter(8.0).joules(0.25, 1.0) == (2.0, "estimate: CPU-seconds x 8 W per core")


def test_unmeasured_compute_has_no_joules() -> None:
    assert EnergyMeter(8.0).joules(None, 1.0)[0] is None


def test_a_request_gets_its_share_of_what_the_machine_drew_meanwhile(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    meter = machine.meter()
    machine.runs(seconds=2.0, busy=4.0, joules=100.0)
    joules, method = meter.joules(1.0, 2.0)
    assert joules == pytest.approx(25.0) and method.startswith("measured: RAPL")


def test_an_idle_hour_before_it_is_not_charged_to_a_request(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    meter = machine.meter()
    machine.runs(seconds=100.0, busy=1.0, joules=10_000.0)
    meter.sample()
    machine.runs(seconds=1.0, busy=2.0, joules=60.0)
    assert meter.joules(1.0, 1.0)[0] == pytest.approx(30.0)


def test_parts_of_a_package_are_not_counted_twice_and_packages_are_summed(tmp_path: Path) -> None:
    machine = Machine(tmp_path, packages=2)
    counter = RaplCounter(tmp_path)
    machine.runs(1.0, 1.0, 7.0)
    assert counter.joules() == pytest.approx(14.0)


def test_a_counter_that_wraps_goes_on(tmp_path: Path) -> None:
    machine = Machine(tmp_path, wraps_at=5_000_000)
    counter = RaplCounter(tmp_path)
    total = 0.0
    for _ in range(5):
        machine.runs(1.0, 1.0, 3.0)
        total += 3.0
        assert counter.joules() == pytest.approx(total)


def test_shares_never_exceed_what_was_drawn(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    meter = machine.meter()
    machine.runs(1.0, busy=0.5, joules=10.0)
    assert meter.joules(3.0, 1.0)[0] == pytest.approx(10.0)  # clocks disagree; energy does not


def test_no_counter_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match="no RAPL zones"):
        RaplCounter(tmp_path / "none")
    monkeypatch.setattr(energy.RaplCounter.__init__, "__defaults__", (tmp_path / "none",))
    assert open_meter(5.0).method.startswith("estimate")


def test_the_sampling_thread_ends_with_its_meter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(tmp_path)
    monkeypatch.setattr(energy.RaplCounter.__init__, "__defaults__", (tmp_path,))
    monkeypatch.setattr(energy, "SAMPLE_SECONDS", 0.01)
    meter = open_meter(0.0)
    thread = next(thread for thread in threading.enumerate() if thread.name == "energy")
    assert meter.method.startswith("measured")
    del meter
    gc.collect()
    thread.join(5)
    assert not thread.is_alive()
