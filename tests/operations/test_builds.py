"""A build that was killed is known to be: whoever looks next notes it, and never one that still runs."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import update
from tests.service import maasdam

from maasdam.database.tables import BuildRow
from maasdam.operations import release
from maasdam.operations.builds import builds, running
from maasdam.operations.workspace import Workspace
from maasdam.settings import Settings

RUN = """
import sys
from pathlib import Path
from maasdam.operations.builds import running
from maasdam.operations.workspace import Workspace
from maasdam.settings import Settings
with Workspace.open(Settings(home=Path(sys.argv[1]))) as w, running(w.catalog, w.store, sys.argv[2]) as build:
    w.catalog.heartbeat(build, "prune", 0.5, "prune")
    print(build, flush=True)
    sys.stdin.read()
    w.catalog.finish_build(build)
"""


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    with Workspace.open(Settings(home=tmp_path / "home")) as opened:
        yield opened


def _begin(home: Path, name: str) -> subprocess.Popen[str]:
    """A build in a process of its own, in the middle of its pass."""
    child = subprocess.Popen(
        [sys.executable, "-c", RUN, str(home), name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None and child.stdout.readline().strip()
    return child


def _kill(child: subprocess.Popen[str]) -> None:
    child.send_signal(signal.SIGKILL)
    child.communicate()


def test_a_killed_build_is_noted_as_interrupted_and_a_running_one_is_not(workspace: Workspace) -> None:
    dead, alive = _begin(workspace.settings.home, "dead"), _begin(workspace.settings.home, "alive")
    _kill(dead)
    found = {build.name: build for build in builds(workspace.catalog, workspace.store)}
    assert (found["alive"].state, found["alive"].error) == ("running", None)
    assert found["dead"].state == "interrupted" and found["dead"].finished_at == found["dead"].heartbeat_at
    assert "killed in 'prune'; build it again" in str(found["dead"].error)
    alive.communicate("")
    assert {build.name: build.state for build in builds(workspace.catalog, workspace.store)}["alive"] == "done"


def test_the_next_build_notes_it_too(workspace: Workspace) -> None:
    _kill(_begin(workspace.settings.home, "dead"))
    with running(workspace.catalog, workspace.store, "other"):
        assert {b.name: b.state for b in workspace.catalog.builds()} == {"dead": "interrupted", "other": "running"}


def test_a_killed_build_keeps_no_files_alive(workspace: Workspace) -> None:
    _kill(_begin(workspace.settings.home, "dead"))
    assert not release._is_building(workspace)


def test_a_row_whose_lock_is_elsewhere_is_judged_by_its_heartbeat(workspace: Workspace) -> None:
    """A database that several homes share."""
    silent, fresh = workspace.catalog.start_build("silent"), workspace.catalog.start_build("fresh")
    with workspace.database.begin() as connection:
        long_ago = datetime.now(UTC) - timedelta(hours=1)
        connection.execute(update(BuildRow).where(BuildRow.id == silent).values(heartbeat_at=long_ago))
    assert {b.id: b.state for b in builds(workspace.catalog, workspace.store)} == {silent: "interrupted", fresh: "running"}


def test_status_shows_what_runs_and_what_was_killed_until_it_is_built_again(workspace: Workspace) -> None:
    home = workspace.settings.home
    _kill(_begin(home, "dead"))
    alive = _begin(home, "alive")
    shown = maasdam(home, "status")["builds"]
    assert [(b["name"], b["state"], b["stage"]) for b in shown] == [
        ("alive", "running", "prune"),
        ("dead", "interrupted", "prune"),
    ]
    for child in (alive, _begin(home, "dead")):
        child.communicate("")
    assert maasdam(home, "status")["builds"] == []
