"""The verdict, and the shape of the report that other people's scripts read."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import pytest

from maasdam.core import Batching
from maasdam.pipeline.recipe import Limits
from maasdam.pipeline.report import Column, Report, drop_of, finished, judge, rows

FAST = Column("openvino", "sha256:c", 1000, (1.0,), 1.0, 2.0, 100.0, None, 5, 0.9)
SLOW = Column("onnxruntime", "sha256:r", 4000, (2.0,), 2.0, 3.0, 50.0, None, 9, 0.91)
REPORT = Report(
    candidate=FAST,
    reference=SLOW,
    source=replace(SLOW, engine="pytorch"),
    parity={"max_abs_diff": 0.5, "cosine": 0.99, "agreement": 0.95},
    metric="top1",
    drop=0.01,
    examples=100,
    confidence={"drop": [-0.01, 0.03]},
    unit="items/s",
    energy_method="no energy counter",
)


def test_the_report_has_the_promised_shape() -> None:
    report = REPORT.to_json()
    promised: dict[str, Any] = {
        "passed": True,
        "failures": [],
        "parity": {"max_abs_diff", "cosine", "agreement"},
        "accuracy": {"metric", "reference", "candidate", "drop", "examples"},
        "size_bytes": {"reference", "candidate", "ratio"},
        "latency_ms": {"reference", "candidate", "speedup"},
        "throughput": {"reference", "candidate", "unit"},
        "energy_joules": {"reference", "candidate", "method"},
        "memory_bytes": {"reference", "candidate"},
    }
    for key, inner in promised.items():
        assert key in report
        if isinstance(inner, set):
            assert inner <= report[key].keys()
    assert report["latency_ms"]["reference"] == {"p50": 2.0, "p99": 3.0}
    assert report["latency_ms"]["speedup"] == 2.0 and report["size_bytes"]["ratio"] == 4.0
    assert report["energy_joules"] == {"reference": None, "candidate": None, "method": "no energy counter"}
    assert report["source"]["engine"] == "pytorch"


def test_a_report_comes_back_from_its_json_as_it_was() -> None:
    whole = replace(
        REPORT,
        candidate=replace(FAST, extra={"bits_per_byte": 1.5}),
        limits=Limits(max_drop=0.005, min_ratio=2),
        failures=("drop is 0.01; the recipe allows 0.005 at most",),
        precisions={"i8": 3},
        calibration={"says": "20 examples"},
        optimization=({"engine": "openvino", "chosen": True},),
        batching=Batching("independent", "tried"),
        samples=({"name": "a.png", "candidate": "7"},),
        conditions={"threads": 2},
    ).to_json()
    assert Report.from_json(json.loads(json.dumps(whole))).to_json() == whole


@pytest.mark.parametrize(
    "kept",
    [
        None,
        3,
        [],
        {"accuracy": 3, "latency_ms": [], "size_bytes": None, "checks": {}, "parity": {"parts": [3]}},
        {"source": {"latency_ms": {"samples": 5}}},
    ],
)
def test_of_a_report_of_anything_what_is_no_report_is_left_out(kept: Any) -> None:
    read = Report.from_json(kept)
    assert (read.metric, read.speedup, read.size_ratio, read.parts, read.checks) == (None, None, None, (), ())
    assert all(row.candidate is row.reference is None for row in rows(read))


def test_the_rows_say_what_was_measured_in_their_unit_and_what_it_brings() -> None:
    told = {row.key: (row.what, row.reference, row.candidate, row.gain) for row in rows(REPORT)}
    assert told["metric"] == ("top1 on 100 examples", 0.91, 0.9, "drop 0.01 (-0.01 to 0.03)")
    assert told["size"] == ("size, MB", 0.004, 0.001, "4 times smaller")
    assert told["p50"] == ("latency p50, ms", 2.0, 1.0, "2 times as fast")
    assert told["joules"] == ("joules per example", None, None, "")


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        (Limits(max_drop=0.005), "drop is 0.01; the recipe allows 0.005 at most"),
        (Limits(min_speedup=3), "speedup is 2; the recipe asks for 3 at least"),
        (Limits(min_ratio=5), "size ratio is 4; the recipe asks for 5 at least"),
        (Limits(min_cosine=0.999), "cosine is 0.99; the recipe asks for 0.999 at least"),
        (Limits(min_agreement=0.99), "agreement is 0.95"),
        (Limits(max_abs_diff=0.1), "max_abs_diff is 0.5; the recipe allows 0.1 at most"),
        (Limits(max_drop_upper=0.02), "the upper end of the drop's interval is 0.03; the recipe allows 0.02 at most"),
        (Limits(min_examples=200), "the number of examples is 100; the recipe asks for 200 at least"),
        (Limits(max_latency_ms=0.5), "latency (p50, ms) is 1"),
        (Limits(max_p99_ms=1.5), "latency (p99, ms) is 2"),
        (Limits(min_throughput=200), "throughput (items/s) is 100"),
        (Limits(max_size_mb=0.0005), "size (MB) is 0.001"),
        (Limits(max_memory_mb=0.000001), "memory (MB) is 5e-06"),
        (Limits(max_joules=1.0), "energy (joules) was not measured; the recipe allows 1 at most"),
    ],
)
def test_a_broken_limit_is_named_with_its_value(limits: Limits, says: str) -> None:
    (failure,) = judge(limits, REPORT)
    assert says in failure


def test_every_limit_there_is_can_be_broken_and_stands_in_the_report() -> None:
    strictest = {f.name: (1e-9 if f.name.startswith("max_") else 1e9) for f in fields(Limits)}
    report = replace(REPORT, limits=Limits(**strictest)).to_json()
    assert {c["limit"] for c in report["checks"]} == strictest.keys()
    assert not any(c["holds"] for c in report["checks"])
    assert next(c for c in report["checks"] if c["limit"] == "min_speedup") == {
        "limit": "min_speedup",
        "what": "speedup",
        "asked": 1e9,
        "measured": 2.0,
        "holds": False,
    }


def test_limits_that_hold_say_nothing() -> None:
    assert judge(Limits(0.01, 2.0, 4.0, 0.99, 0.95, 0.5), REPORT) == ()


def test_a_limit_on_what_was_not_measured_fails() -> None:
    unmeasured = replace(REPORT, candidate=replace(FAST, p50=None), drop=None)
    assert judge(Limits(min_speedup=1.0), unmeasured) == ("speedup was not measured; the recipe asks for 1 at least",)
    blind = replace(REPORT, confidence=None)
    assert "the upper end of the drop's interval was not measured" in judge(Limits(max_drop_upper=1.0), blind)[0]
    assert judge(Limits(max_drop=1.0), unmeasured) == ("drop was not measured; the recipe allows 1 at most",)


def test_without_data_parity_decides_and_is_held_to_a_limit_even_where_the_recipe_has_none() -> None:
    blind = replace(REPORT, examples=0, drop=None, metric=None)
    assert judge(Limits(max_drop=0.0), blind) == ()
    wrong = replace(blind, parity={"max_abs_diff": 9.0, "cosine": 0.2, "agreement": 0.0})
    assert "cosine is 0.2" in judge(Limits(max_drop=0.0), wrong)[0]


@pytest.mark.parametrize(
    ("metric", "reference", "candidate", "drop"),
    [("top1", 0.9, 0.8, 0.1), ("wer", 0.1, 0.15, 0.05), ("perplexity", 10.0, 11.0, 0.1), ("cosine", 1.0, 0.9, 0.1)],
)
def test_a_positive_drop_is_worse_whatever_the_metric(metric: str, reference: float, candidate: float, drop: float) -> None:
    assert drop_of(metric, reference, candidate) == pytest.approx(drop)
    assert drop_of(metric, None, candidate) is None


def test_int8_without_instructions_for_it_is_said() -> None:
    slow = replace(REPORT, precisions={"i8": 53}, conditions={"has_int8_instructions": False})
    assert any("no instructions for int8" in note for note in finished(slow, ()).notes)
    for other in (replace(slow, precisions={"f32": 53}), replace(slow, conditions={"has_int8_instructions": True})):
        assert not any("int8" in note for note in finished(other, ()).notes)
