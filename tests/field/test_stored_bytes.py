"""Stored bytes are checked when they are loaded: a bit that flips is said, never answered with."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from tests.served import add_mlp, open_home
from tests.service import maasdam

from maasdam.artifacts.store import MANIFEST
from maasdam.errors import InvalidModel
from maasdam.operations.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path):
    with open_home(tmp_path) as made:
        add_mlp(made)
        yield made


def file_of(workspace: Workspace) -> Path:
    return workspace.store.get(workspace.catalog.resolve("mlp").digest).path / "model.onnx"


def spoil(path: Path, keeps_times: bool = False) -> None:
    """Zero some bytes in the middle; the size stays."""
    status = path.stat()
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(status.st_size // 2)
        file.write(bytes(64))
    if keeps_times:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("keeps_times", [False, True])
def test_changed_bytes_are_noticed_at_the_first_load_and_at_any_later_one(workspace: Workspace, keeps_times: bool) -> None:
    digest = workspace.catalog.resolve("mlp").digest
    assert workspace.store.intact(digest).digest == digest
    spoil(file_of(workspace), keeps_times)
    for store in (workspace.store, open_home(workspace.settings.home).store):
        for _ in range(2):
            with pytest.raises(InvalidModel, match="changed on disk"):
                store.intact(digest)


def test_bytes_that_nothing_touched_are_hashed_once(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = workspace.catalog.resolve("mlp").digest
    workspace.store.intact(digest)
    monkeypatch.setattr(workspace.store, "check", lambda digest: pytest.fail("hashed again"))
    workspace.store.intact(digest)


def test_what_another_process_hashed_is_believed_until_its_files_change(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = workspace.catalog.resolve("mlp").digest
    proof = workspace.store.proof(digest)
    other = open_home(workspace.settings.home).store
    other.believe(digest, proof)
    with monkeypatch.context() as patch:
        patch.setattr(other, "check", lambda digest: pytest.fail("hashed again"))
        other.intact(digest)
    spoil(file_of(workspace))
    with pytest.raises(InvalidModel, match="changed on disk"):
        other.intact(digest)


@pytest.mark.parametrize("name", ["model.onnx", MANIFEST])
def test_building_again_puts_the_files_right(workspace: Workspace, name: str) -> None:
    artifact = workspace.store.get(workspace.catalog.resolve("mlp").digest)
    spoil(artifact.path / name)
    add_mlp(workspace)
    assert workspace.catalog.resolve("mlp").digest == artifact.digest
    workspace.store.check(artifact.digest)


def test_what_a_pass_made_is_not_taken_from_the_cache_once_it_changed(workspace: Workspace) -> None:
    artifact = workspace.store.get(workspace.catalog.resolve("mlp").digest)
    workspace.store.remember("key", artifact, {})
    assert workspace.store.cached("key") is not None
    spoil(file_of(workspace))
    assert workspace.store.cached("key") is None


async def test_a_service_does_not_load_changed_bytes(workspace: Workspace) -> None:
    from maasdam.operations.service import open_service

    spoil(file_of(workspace))
    service = open_service(workspace)
    await service.start()
    copy = await service.router.settled("mlp", 30)
    assert copy.state == "failed" and "changed on disk" in (copy.reason or "")
    await service.stop()


def test_the_commands_say_it(tmp_path: Path) -> None:
    with open_home(tmp_path) as made:
        add_mlp(made)
        file = file_of(made)
    whole = maasdam(tmp_path, "models", "check")
    assert whole["artifacts"] == 1 and whole["damaged"] == []
    spoil(file)
    (row,) = maasdam(tmp_path, "models", "check", expect=1)["damaged"]
    assert row["versions"] == ["mlp:1"] and "changed on disk" in row["reason"]
    np.savez(tmp_path / "x.npz", x=np.zeros((1, 8), np.float32))
    said = maasdam(tmp_path, "run", "mlp", tmp_path / "x.npz", expect=1)
    assert "changed on disk" in said
