"""Real models: what is said of them, and that ingesting them is exact and cheap to repeat."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from maasdam.artifacts.store import Store
from maasdam.sources import ingest, inspect


def test_mobilenet_is_known_in_full(shared_data: Path) -> None:
    found = inspect(str(shared_data / "mobilenet-v2-1001"))
    assert found.to_json()["signature"] == {
        "inputs": [{"name": "pixel_values", "dtype": "float32", "shape": [None, 3, 224, 224], "layout": "NCHW"}],
        "outputs": [{"name": "logits", "dtype": "float32", "shape": [None, 1001]}],
    }
    assert (found.task, found.labels, found.precision) == ("image-classification", 1001, "float32")
    assert 3_500_000 < (found.parameters or 0) < 3_600_000
    assert found.risks == ()


def test_its_savedmodel_has_the_same_number_of_parameters(shared_data: Path) -> None:
    found = inspect(str(shared_data / "mobilenet-v2-1001-savedmodel"))
    whole = inspect(str(shared_data / "mobilenet-v2-1001"))
    assert not found.blocked
    assert found.signature is not None
    assert found.signature.inputs[0].shape == (None, 224, 224, 3)
    assert abs((found.parameters or 0) - (whole.parameters or 0)) < 100


def test_the_savedmodel_takes_its_task_and_labels_from_the_processor(shared_data: Path, store: Store) -> None:
    processor = shared_data / "mobilenet-v2-1001"
    artifact = ingest(str(shared_data / "mobilenet-v2-1001-savedmodel"), store, processor=processor)
    assert (artifact.task, artifact.engine, artifact.layout) == ("image-classification", "tensorflow", "savedmodel")
    names = {p.relative_to(artifact.path).as_posix() for p in artifact.path.rglob("*") if p.is_file()}
    assert {"saved_model.pb", "variables/variables.index", "config.json", "preprocessor_config.json"} <= names
    assert "model.safetensors" not in names


def test_ingesting_again_gives_the_same_artifact_without_copying(shared_data: Path, store: Store, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(shared_data / "mobilenet-v2-1001", source)
    first = ingest(str(source), store)
    (store.root / "tmp").rmdir()  # a second copy would need it
    again = ingest(str(source), store)
    assert (again.digest, again.path) == (first.digest, first.path)


def test_other_bytes_of_the_same_size_and_time_give_another_artifact(shared_data: Path, store: Store, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(shared_data / "mobilenet-v2-1001", source)
    first = ingest(str(source), store)
    weights = source / "model.safetensors"
    weights.chmod(0o644)
    state = weights.stat()
    with weights.open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\x00\x00\x00\x40")
    os.utime(weights, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert ingest(str(source), store).digest != first.digest


def test_what_is_stored_is_the_same_wherever_it_came_from(shared_data: Path, store: Store, tmp_path: Path) -> None:
    shutil.copytree(shared_data / "mobilenet-v2-1001", tmp_path / "elsewhere")
    digests = {ingest(str(path), store).digest for path in (shared_data / "mobilenet-v2-1001", tmp_path / "elsewhere")}
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("name", "task", "engine"),
    [
        ("images", "image-classification", "pytorch"),
        ("text", "text-generation", "transformers"),
        ("speech", "automatic-speech-recognition", "pytorch"),
    ],
)
def test_the_starters_are_known(starters: Path, store: Store, name: str, task: str, engine: str) -> None:
    artifact = ingest(str(starters / name / "model"), store)
    assert (artifact.task, artifact.engine, artifact.layout) == (task, engine, "huggingface")
    assert (artifact.path / "README.md").exists() is False, "only what serving needs is kept"


def test_a_snapshot_of_the_hub_cache_may_link_to_its_blobs(shared_data: Path, store: Store, tmp_path: Path) -> None:
    repository = tmp_path / "models--org--net"
    snapshot = repository / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for file in (shared_data / "mobilenet-v2-1001").iterdir():
        shutil.copy(file, repository / "blobs" / f"blob-{file.name}")
        (snapshot / file.name).symlink_to(f"../../blobs/blob-{file.name}")
    artifact = ingest(str(snapshot), store)
    assert not any(path.is_symlink() for path in artifact.path.iterdir())
