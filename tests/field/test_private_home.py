"""The home is its owner's alone: folder, database, log, artifacts, what is made later, and what an earlier version left."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.served import add_mlp, open_home, serving
from tests.service import maasdam

from maasdam.errors import StorageFailure
from maasdam.operations import workspace as workspaces
from maasdam.operations.workspace import Workspace
from maasdam.settings import Settings


@pytest.fixture(autouse=True)
def mask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def open_to_others(home: Path) -> dict[str, str]:
    """What others may do something with, and its mode."""
    found = {}
    for path in (home, *home.rglob("*")):
        mode = stat.S_IMODE(path.lstat().st_mode)
        if mode & 0o077:
            found[str(path)] = oct(mode)
    return found


def test_a_home_and_all_that_comes_into_it_later_are_private(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with open_home(home) as workspace:
        add_mlp(workspace)
        _, key = workspace.keys.create("tests", ["infer", "deploy"])
    body = {"inputs": [{"name": "x", "shape": [1, 8], "datatype": "FP32", "data": [0.5] * 8}]}
    (home / "serve.log").touch(0o600)  # the test's own
    with serving(home, key) as running, running.client() as client:
        assert client.post("/v2/models/mlp/infer", json=body).status_code == 200
        assert (home / "maasdam.db-wal").exists()
        assert open_to_others(home) == {}
    maasdam(home, "models", "export", "mlp", "-o", tmp_path / "mlp.tar")
    maasdam(home, "models", "import", tmp_path / "mlp.tar", "--name", "copy")
    assert open_to_others(home) == {}
    assert stat.S_IMODE((tmp_path / "mlp.tar").stat().st_mode) == 0o644, "what a person asked for elsewhere follows their mask"


def test_a_home_of_an_earlier_version_is_tightened_at_the_next_start(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with open_home(home) as workspace:
        add_mlp(workspace)
    for path in (home, *home.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    open_home(home).close()
    assert open_to_others(home) == {}
    (home / "maasdam.db").chmod(0o644)  # a file alone
    open_home(home).close()
    assert open_to_others(home) == {}


def test_a_folder_that_is_more_than_ours_stays_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "letter").touch(0o644)
    for is_home in (True, False):
        tmp_path.chmod(0o755 if is_home else 0o1777)
        monkeypatch.setattr(workspaces.Path, "home", lambda is_home=is_home: tmp_path if is_home else Path("/nowhere"))
        open_home(tmp_path).close()
        assert stat.S_IMODE(tmp_path.stat().st_mode) == (0o755 if is_home else 0o1777)
        assert stat.S_IMODE((tmp_path / "letter").stat().st_mode) == 0o644
        assert open_to_others(tmp_path / "artifacts") == {} and not (tmp_path / "maasdam.db").stat().st_mode & 0o077


def test_what_is_not_ours_in_a_home_stays_as_it_is(tmp_path: Path) -> None:
    theirs = {tmp_path / "letters": 0o775, tmp_path / "letters" / "one.txt": 0o664, tmp_path / "data.csv": 0o644}
    (tmp_path / "letters").mkdir()
    for path, mode in theirs.items():
        path.touch()
        path.chmod(mode)
    (tmp_path / "batching").mkdir()
    for name in ("batching/found.json", "service.json", "maasdam.toml"):
        (tmp_path / name).touch()
    (tmp_path / "service.json").write_text("{}")
    (tmp_path / "logs").symlink_to(tmp_path / "letters")
    tmp_path.chmod(0o775)
    open_home(tmp_path).close()
    assert {path: stat.S_IMODE(path.stat().st_mode) for path in theirs} == theirs
    assert set(open_to_others(tmp_path)) == {str(tmp_path / "logs"), *map(str, theirs)}, "a link has no mode of its own"


def test_the_mask_is_the_callers_again_afterwards(tmp_path: Path) -> None:
    open_home(tmp_path / "home").close()
    assert os.umask(0o022) == 0o022
    (tmp_path / "file").touch()
    with pytest.raises(StorageFailure):
        Workspace.open(Settings(home=tmp_path / "file"))
    assert os.umask(0o022) == 0o022
