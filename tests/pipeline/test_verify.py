"""The report is true, and fails closed: on changed weights, NaN, another shape, a broken engine, nothing to compare."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maasdam.artifacts.store import Store
from maasdam.core import Artifact
from maasdam.errors import VerificationFailed
from maasdam.pipeline.conditions import Conditions
from maasdam.pipeline.examples import evaluation_examples
from maasdam.pipeline.recipe import Limits
from maasdam.pipeline.report import Report
from maasdam.pipeline.run_recipe import Build
from maasdam.pipeline.verify import verify
from tests.pipeline.networks import colours, convolutional, write_photographs, write_tensors

QUICK = Conditions(threads=1, measure_seconds=0.0, measures_memory=False)
HELD = Limits(max_drop=0.0, min_cosine=0.999)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    return write_photographs(tmp_path / "photographs", 12)


def _verified(store: Store, candidate: Artifact, source: Artifact, data: Path | None, limits: Limits = HELD) -> Report:
    references = Build(store).references(source)
    return verify(candidate, references, source, evaluation_examples(source, data) if data else [], limits, QUICK)


def test_a_model_passes_against_itself_with_every_sample_in_the_report(store: Store, photographs: Path) -> None:
    source = colours(store)
    report = _verified(store, source, source, photographs).to_json()
    assert report["passed"] and report["failures"] == []
    assert report["accuracy"]["metric"] == "top1"
    assert (report["accuracy"]["reference"], report["accuracy"]["candidate"], report["accuracy"]["examples"]) == (1.0, 1.0, 12)
    assert report["parity"]["agreement"] == 1.0
    assert report["accuracy"]["confidence"]["drop"] == [0.0, 0.0] and report["accuracy"]["confidence"]["units"] == 12
    assert any("a drop below 0.25 can't be told from none" in n for n in report["notes"])
    assert [s["candidate"] for s in report["samples"]] == [s["truth"] for s in report["samples"]]
    assert report["samples"][1] == {"name": "001.png", "truth": "green", "reference": "green", "candidate": "green"}


def test_raw_latencies_are_stored_and_their_median_is_the_one_reported(store: Store, photographs: Path) -> None:
    source = colours(store)
    latency = _verified(store, source, source, photographs).to_json()["latency_ms"]
    assert len(latency["samples"]["candidate"]) >= 20
    assert latency["candidate"]["p50"] == pytest.approx(float(np.median(latency["samples"]["candidate"])), rel=1e-3)


def test_the_same_files_under_other_threads_are_timed_as_one(store: Store, photographs: Path) -> None:
    source = colours(store)
    report = _verified(store, replace(source, digest="sha256:other", settings={"threads": 1}), source, photographs)
    assert report.speedup == 1.0 or report.reference.engine != "onnxruntime"


def test_changed_weights_fail_with_the_drop(store: Store, photographs: Path) -> None:
    swapped = colours(store, np.array([[0, 10, 0], [10, 0, 0], [0, 0, 10]]))
    report = _verified(store, swapped, colours(store), photographs)
    assert not report.passed
    assert any("drop is 0.6667" in f for f in report.failures) and any("cosine" in f for f in report.failures)
    assert report.candidate.accuracy == pytest.approx(1 / 3)
    low, high = report.to_json()["accuracy"]["confidence"]["drop"]
    assert 0.3 < low < 2 / 3 < high < 1


def test_nan_fails_whatever_the_limits(store: Store, photographs: Path) -> None:
    broken = colours(store, np.full((3, 3), np.nan))
    report = _verified(store, broken, colours(store), photographs, Limits())
    assert not report.passed
    assert any("NaN" in f for f in report.failures) and report.candidate.accuracy is None
    assert any("and 7 more like it" in f for f in report.failures)


def test_without_data_there_is_no_metric_and_the_report_says_what_decided(store: Store) -> None:
    source = convolutional(store)
    report = _verified(store, source, source, None).to_json()
    assert report["passed"] and report["accuracy"]["candidate"] is None and report["accuracy"]["metric"] is None
    assert "no --data was given: the verdict rests on parity alone" in report["accuracy"]["why"]
    assert report["accuracy"]["why"] in report["notes"] and report["samples"] == []


def test_unlabelled_data_gives_parity_alone(store: Store, tmp_path: Path) -> None:
    source = colours(store)
    report = _verified(store, source, source, write_photographs(tmp_path / "u", 6, labelled=False))
    assert report.passed and report.metric is None and report.parity["examples"] == 6


def test_a_model_without_a_task_is_scored_by_cosine(store: Store, tmp_path: Path) -> None:
    source = convolutional(store)
    report = _verified(store, source, source, write_tensors(tmp_path / "x.npz", 5))
    assert (report.metric, report.drop, report.examples) == ("cosine", pytest.approx(0.0, abs=1e-6), 5)


def test_a_candidate_that_does_not_run_is_an_error(store: Store, photographs: Path) -> None:
    source = colours(store)
    with pytest.raises(VerificationFailed, match="the candidate does not run on tensorflow"):
        _verified(store, replace(source, engine="tensorflow"), source, photographs)


def test_without_other_engines_the_source_is_the_reference_and_the_report_says_so(store: Store, photographs: Path) -> None:
    source = colours(store)
    report = verify(source, (), source, evaluation_examples(source, photographs), HELD, QUICK)
    assert report.passed and any("the reference is the source on its own engine" in n for n in report.notes)


def test_energy_is_null_with_the_reason_or_measured_for_one_example(store: Store, photographs: Path) -> None:
    source = colours(store)
    report = _verified(store, source, source, photographs).to_json()
    assert report["energy_joules"]["candidate"] is None and "no energy meter" in report["energy_joules"]["method"]
    metered = replace(QUICK, joules=lambda cpu, wall: (cpu * 10, "estimate: 10 W"))
    examples = evaluation_examples(source, photographs)
    energy: dict[str, Any] = verify(source, (), source, examples, HELD, metered).to_json()["energy_joules"]
    assert energy["method"] == "estimate: 10 W" and 0 < energy["candidate"] < 1


def test_memory_is_measured_in_a_child_process(store: Store, photographs: Path) -> None:
    source = convolutional(store, channels=512)
    report = verify(source, (), source, [], Limits(), replace(QUICK, measures_memory=True))
    assert report.candidate.memory_bytes is not None and report.candidate.memory_bytes > 5_000_000
