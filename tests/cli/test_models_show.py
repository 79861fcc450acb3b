"""`models show` says what a pass shrank, apart from what got faster, and shows a student beside itself trained alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.pipeline.networks import write_photographs, write_vit

from maasdam.artifacts.sources import ingest
from maasdam.artifacts.store import Store
from maasdam.cli.models import _told
from maasdam.pipeline.passes import find_pass
from maasdam.pipeline.recipe import Use
from maasdam.pipeline.run_recipe import Build, Data


def _step(build: Build, source: Any, use: str, **settings: Any) -> dict[str, Any]:
    build.apply(Use(use, find_pass(use, "test").check(settings, "test")), source)
    return build.steps[-1].to_json()


def test_what_shrank_and_who_learned_how_well(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    store = Store(tmp_path / "store")
    source = ingest(str(write_vit(tmp_path / "vit")), store)
    build = Build(store, Data(train=write_photographs(tmp_path / "train", 20)))
    pruned = _told(_step(build, source, "prune", ratio=0.5))
    assert "WHAT PRUNE SHRANK" in pruned and "smaller is not faster" in pruned
    for what in ("file bytes", "compressed bytes", "parameters", "macs"):
        assert any(line.startswith(what) for line in pruned.splitlines()), what
    distilled = _told(_step(build, source, "distill", epochs=1))
    names = [line.split()[0] for line in distilled.splitlines() if line]
    assert names[1:4] == ["teacher", "student", "alone"] and "without the teacher" in distilled


@pytest.mark.parametrize(
    "facts", [None, [], "x", {"shrank": 1}, {"shrank": {"macs": {"before": "many", "after": None}}}, {"scores": {"student": 3}}]
)
def test_facts_that_came_from_elsewhere_and_mean_nothing_break_nothing(facts: Any) -> None:
    assert isinstance(_told({"use": "prune", "facts": facts}), str)
