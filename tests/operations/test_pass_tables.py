"""A reader is told what a pass shrank, apart from what got faster, and sees a student beside itself trained alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.pipeline.networks import write_photographs, write_vit

from maasdam.artifacts.store import Store
from maasdam.operations.pass_tables import pass_tables
from maasdam.pipeline.passes import find_pass
from maasdam.pipeline.recipe import Use
from maasdam.pipeline.run_recipe import Build, Data
from maasdam.sources import ingest


def _step(build: Build, source: Any, use: str, **settings: Any) -> dict[str, Any]:
    build.apply(Use(use, find_pass(use, "test").check(settings, "test")), source)
    return build.steps[-1].to_json()


def test_what_shrank_and_who_learned_how_well(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    store = Store(tmp_path / "store")
    source = ingest(str(write_vit(tmp_path / "vit")), store)
    build = Build(store, Data(train=write_photographs(tmp_path / "train", 20)))
    (pruned,) = pass_tables([_step(build, source, "prune", ratio=0.5)])
    assert pruned.heads[0] == "what prune shrank" and "smaller is not faster" in pruned.says[0]
    assert {"file bytes", "compressed bytes", "parameters", "macs"} <= {row[0] for row in pruned.rows}
    (distilled,) = pass_tables([_step(build, source, "distill", epochs=1)])
    assert [row[0] for row in distilled.rows] == ["teacher", "student", "alone"]
    assert distilled.heads == ("held-back samples", "divergence", "loss", "top1") and "without the teacher" in distilled.says[0]


@pytest.mark.parametrize(
    "facts", [None, [], "x", {"shrank": 1}, {"shrank": {"macs": {"before": "many", "after": None}}}, {"scores": {"student": 3}}]
)
def test_facts_that_came_from_elsewhere_and_mean_nothing_break_nothing(facts: Any) -> None:
    for table in pass_tables([{"use": "prune", "facts": facts}, "no step"]):
        assert all(len(row) == len(table.heads) for row in table.rows)
