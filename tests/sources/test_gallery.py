"""Hostile and broken files are refused, whoever asks, and nothing of them runs or stays."""

from __future__ import annotations

import re
import resource
import time
from pathlib import Path

import pytest

from maasdam.artifacts.store import Store
from maasdam.errors import CallerError
from maasdam.sources import examine, ingest, inspect
from tests.hostile import GALLERY

SECONDS = 30.0
"""CPU seconds: none of the files may keep inspection busy longer."""
MEMORY_BYTES = 3 * 1024**3
LIFTABLE = {"torchscript", "savedmodel_with_files", "savedmodel_with_files_in_main", "savedmodel_that_saves",
            "savedmodel_writer_in_saver", "savedmodel_with_another_graph",
            "savedmodel_with_attribute_twice"}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the file is made: apart from the canary and the store."""
    path = tmp_path / "made"
    path.mkdir()
    return path


@pytest.mark.parametrize("name", GALLERY)
def test_inspect_refuses_it_with_a_sentence_that_says_what_to_do(name: str, folder: Path, tmp_path: Path) -> None:
    path = GALLERY[name].build(folder, tmp_path / "canary")
    started = time.process_time()
    with pytest.raises(GALLERY[name].refused_with) as refused:
        inspect(str(path))
    assert type(refused.value) is GALLERY[name].refused_with
    assert time.process_time() - started < SECONDS
    sentence = str(refused.value)
    assert str(folder) in sentence, "it names the file"
    assert re.search(
        r"again|refused|convert|export|--trust|put |copy |give |use |save |do not load",
        sentence,
    )
    assert "Traceback" not in sentence and "\n" not in sentence
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("name", GALLERY)
def test_ingest_refuses_it_and_the_store_stays_empty(name: str, folder: Path, tmp_path: Path, store: Store) -> None:
    path = GALLERY[name].build(folder, tmp_path / "canary")
    with pytest.raises(GALLERY[name].refused_with):
        ingest(str(path), store)
    assert store.digests() == []
    assert list((store.root / "tmp").iterdir()) == []
    assert list((store.root / "cache").iterdir()) == []
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("name", [name for name in GALLERY if name not in LIFTABLE])
def test_trust_does_not_lift_what_runs_code_of_the_files_own(name: str, folder: Path, tmp_path: Path, store: Store) -> None:
    path = GALLERY[name].build(folder, tmp_path / "canary")
    with pytest.raises(CallerError):
        ingest(str(path), store, trust=True)
    assert store.digests() == []
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("name", sorted(LIFTABLE))
def test_trust_lifts_what_a_framework_runs_by_design(name: str, folder: Path, tmp_path: Path, store: Store) -> None:
    path = GALLERY[name].build(folder, tmp_path / "canary")
    listed = examine(str(path)).inspection
    assert [risk.severity for risk in listed.risks].count("blocked") >= 1
    trusted = inspect(str(path), trust=True)
    assert [risk.severity for risk in trusted.risks].count("warning") >= 1
    assert ingest(str(path), store, trust=True).layout == listed.layout
    assert not (tmp_path / "canary").exists()


def test_the_gallery_fits_in_memory() -> None:
    """After all of the above, this process never held more than `MEMORY_BYTES`."""
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 < MEMORY_BYTES
