"""The page holds what the reports hold and nothing else: whatever they lack is a dash, whatever they contain is text."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from tests.operations.test_release import REPORT, add
from tests.served import open_home

from maasdam.errors import InvalidInput, NotFound
from maasdam.operations.card import card
from maasdam.operations.report_page import UNMEASURED, cell, flat, report_page, write_report
from maasdam.operations.workspace import Workspace

pytest.importorskip("matplotlib")


@pytest.fixture
def workspace(tmp_path: Path):
    with open_home(tmp_path / "home") as opened:
        yield opened


def report(**changes: Any) -> dict[str, Any]:
    made = copy.deepcopy(REPORT) | {
        "checks": [{"limit": "max_drop", "what": "drop", "asked": 0.01, "measured": 0.0028, "holds": True}]
    }
    made["accuracy"]["confidence"] = {
        "candidate": [0.9861, 1.0], "reference": [0.99, 1.0], "drop": [-0.01, 0.02],
        "method": "bootstrap", "resamples": 1000, "units": 360, "over": "examples", "seed": 0,
    }  # fmt: skip
    made["latency_ms"]["samples"] = {"reference": [0.6, 0.61, 0.7], "candidate": [0.4, 0.42, 0.5]}
    return made | changes


def register(workspace: Workspace, name: str, **facts: Any) -> None:
    given = {"source": "x", "recipe": "int8", "report": report()} | facts
    workspace.catalog.register(name, add(workspace, name), **given)


def plots(page: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg .*?</svg>", page, re.DOTALL)]


def test_every_version_stands_in_the_table_the_plots_and_in_full(workspace: Workspace) -> None:
    register(workspace, "digits")
    smaller = report(passed=False, failures=["top1 dropped by 0.2; the recipe allows 0.01 at most"])
    smaller["size_bytes"] = {"reference": 2_800_000, "candidate": 400_000, "ratio": 7.0}
    register(workspace, "digits", report=smaller, recipe="int4")
    page = report_page(workspace, "digits")
    for wanted in ("0.9944", "0.9861 to 1", "3.5 times smaller", "1.45 times as fast", "400,000"[:3], "dropped by 0.2"):
        assert wanted in page, wanted
    assert len(plots(page)) == 4
    drawn = "".join(t.text or "" for svg in plots(page) for t in svg.iter("{http://www.w3.org/2000/svg}title"))
    assert "v1: 0.8, 0.9944; int8, passed" in drawn and "v2: 0.4, 0.9944; int4, failed" in drawn and "reference: 2.8" in drawn
    assert page.count("<details") == 2 and page.index("Version 1") < page.index("Version 2"), "the one that passed comes first"


def test_a_student_stands_beside_itself_trained_alone_in_page_and_card(workspace: Workspace) -> None:
    scores = {"teacher": {"loss": 0.125, "top1": 0.875}, "student": {"loss": 0.25}, "alone": {"loss": 0.5, "top1": 0.625}}
    facts = {"scores": scores, "says": "scores on samples held back", "samples": 54}
    step = {"use": "distill", "settings": {"student": "/home/me/small"}, "seconds": 3.0, "cached": False, "facts": facts}
    register(workspace, "digits", passes=[step])
    page = report_page(workspace, "digits")
    rows = [re.sub(r"<[^>]+>", " ", row).split() for row in re.findall(r"<tr.*?</tr>", page)]
    for row in (["teacher", "0.125", "0.875"], ["student", "0.25", UNMEASURED], ["alone", "0.5", "0.625"]):
        assert row in rows
    assert page.count("scores on samples held back") == 1 and "student small" in page and "/home/me" not in page
    told = card(workspace, "digits:1")
    assert "| held-back samples | loss | top1 |" in told and "| alone | 0.5 | 0.625 |" in told


def test_what_grew_is_larger_not_a_fraction_smaller(workspace: Workspace) -> None:
    register(workspace, "digits", report=report(size_bytes={"reference": 100_000, "candidate": 400_000, "ratio": 0.25}))
    page = report_page(workspace, "digits")
    assert "4 times larger" in page and "times smaller" not in page


def test_the_page_needs_nothing_else(workspace: Workspace) -> None:
    register(workspace, "digits")
    page = report_page(workspace, "digits")
    assert "default-src 'none'" in page
    for address in re.findall(r'(?:src|href|url)\s*[=(]\s*"?([^")\s>]+)', page):
        assert address.startswith("#"), address
    assert not re.search(r"<script|<link|@import", page)
    identities = re.findall(r'id="([^"]+)"', page)
    assert len(identities) == len(set(identities)), "plots share no ids"


def test_what_is_written_in_a_report_is_text(workspace: Workspace) -> None:
    evil = "<script>alert(1)</script>"
    hostile = report(notes=[evil], failures=[evil], energy_joules={"reference": evil, "candidate": evil, "method": evil})
    register(workspace, "a", report=hostile, recipe=evil, source=f"/home/me/secret/{evil}")
    page = report_page(workspace, "a")
    assert "<script" not in page and "&lt;script&gt;" in page and "/home/me" not in page
    assert plots(page), "a title with such a recipe is still XML"


@pytest.mark.parametrize(
    "kept",
    [
        None,
        {"passed": True},
        {"passed": False, "accuracy": 3, "latency_ms": [], "size_bytes": None, "checks": []},
        {"passed": True, "limits": {"max_drop": 0.1}},
    ],
)
def test_a_report_that_holds_little_makes_a_page_that_says_little(workspace: Workspace, kept: Any) -> None:
    register(workspace, "a", report=kept)
    page = report_page(workspace, "a:1")
    assert not plots(page)
    assert ("never verified" in page) == (kept is None)


def test_not_a_number_is_a_dash_and_no_point() -> None:
    assert cell(float("nan")) == cell(None) == cell(float("inf")) == UNMEASURED
    assert (cell(True), cell(12345), cell(0.123456), cell(1234.5)) == ("yes", "12,345", "0.1235", "1,234")
    assert flat({"macs": {"before": 4, "after": 2}, "kept": [1, None]}) == "macs before 4, after 2, kept 1 " + UNMEASURED


def test_points_without_a_number_are_left_out(workspace: Workspace) -> None:
    broken = report(size_bytes={"reference": float("nan"), "candidate": float("inf"), "ratio": None})
    register(workspace, "a", report=broken)
    names = re.findall(r"<figcaption>(.*?)</figcaption>", report_page(workspace, "a"))
    assert names == ["Latency against accuracy", "Every timed run"]


def test_one_accuracy_axis_holds_one_metric(workspace: Workspace) -> None:
    register(workspace, "a")
    spoken = report()
    spoken["accuracy"] = {"metric": "wer", "reference": 0.04, "candidate": 0.05, "drop": 0.01, "examples": 60}
    register(workspace, "a", report=spoken)
    page = report_page(workspace, "a:2")
    (first, *_) = plots(page)
    titles = [t.text or "" for t in first.iter("{http://www.w3.org/2000/svg}title")]
    assert [t.split(":")[0] for t in titles] == ["v2", "reference"] and "lower is better" in page


def test_a_share_is_not_drawn_beyond_one(workspace: Workspace) -> None:
    register(workspace, "a")
    first = plots(report_page(workspace, "a"))[0]
    ticks = [t.text or "" for t in first.iter("{http://www.w3.org/2000/svg}text")]
    numbers = [float(t) for t in ticks if re.fullmatch(r"1\.0\d+|0\.9\d+", t)]
    assert numbers and max(numbers) <= 1.0


def test_an_unknown_model_or_version_is_named(workspace: Workspace) -> None:
    register(workspace, "a")
    for name in ("b", "a:9", "a@prod"):
        with pytest.raises(NotFound, match=re.escape(name.split("@")[0].split(":")[0])):
            report_page(workspace, name)


def test_the_file_is_written_whole_or_not_at_all(workspace: Workspace, tmp_path: Path) -> None:
    register(workspace, "a")
    facts = write_report(workspace, "a", tmp_path / "a.html")
    assert facts["bytes"] == (tmp_path / "a.html").stat().st_size and facts["versions"] == 1
    for nowhere in (tmp_path / "no" / "a.html", tmp_path):
        with pytest.raises(InvalidInput, match="can't write"):
            write_report(workspace, "a", nowhere)
    with pytest.raises(NotFound):
        write_report(workspace, "b", tmp_path / "b.html")
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["a.html"]
