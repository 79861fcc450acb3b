"""Work that never ends, takes all memory or crashes is ended, and says which limit it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.field import limited_work as work
from tests.waiting import wait_until

from maasdam import children
from maasdam.children import ChildLimits, run_limited
from maasdam.errors import ContextExceeded, Crashed, LimitExceeded

MEMORY = 1_500_000_000
PLENTY = ChildLimits(60, None, MEMORY)


def test_answers_progress_and_surroundings_cross(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[str, int, int | None]] = []
    assert run_limited(work.add, 1, b=2, limits=PLENTY) == 3
    assert run_limited(work.tell, 3, limits=PLENTY, progress=lambda *told: said.append(told)) == 3
    assert said == [("step", n, 3) for n in range(3)]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MAASDAM_TEST_WORD", "here")
    mask = os.umask(0o027)
    try:
        assert run_limited(work.surroundings, limits=PLENTY) == (str(tmp_path), "here", 0o027)
    finally:
        os.umask(mask)


def test_errors_keep_their_type_and_bring_their_traceback() -> None:
    with pytest.raises(ContextExceeded, match="12 tokens") as caught:
        run_limited(work.raises_ours, limits=PLENTY)
    assert caught.value.code == "context_length_exceeded" and "raises_ours" in str(caught.value.__cause__)
    with pytest.raises(KeyError, match="there is none"):
        run_limited(work.raises_key, limits=PLENTY)


@pytest.mark.parametrize(
    ("function", "limits", "says"),
    [
        (work.loops, ChildLimits(0.5, None, MEMORY), "0 s, its limit of time (setting step_seconds)"),
        (work.native_loop, ChildLimits(0.5, None, MEMORY), "setting step_seconds"),
        (work.loops, ChildLimits(60, 0.3, MEMORY), "setting step_cpu_seconds"),
        (work.allocates, PLENTY, "1.5 GB (setting step_memory_bytes)"),
        (work.loops, ChildLimits(0.5, None, MEMORY, ("inspect_seconds", "", "")), "setting inspect_seconds"),
    ],
)
def test_what_crosses_a_limit_is_ended_and_the_limit_is_named(function, limits: ChildLimits, says: str) -> None:
    with pytest.raises(LimitExceeded) as caught:
        run_limited(function, limits=limits)
    assert says in str(caught.value)


def test_resident_memory_is_watched_where_the_system_refuses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maasdam.children.limited.resident_bytes", lambda pid: MEMORY + 1)
    with pytest.raises(LimitExceeded, match="step_memory_bytes"):
        run_limited(work.loops, limits=PLENTY)


def test_a_crash_names_the_signal_and_the_next_work_is_well() -> None:
    with pytest.raises(Crashed, match="SIGSEGV"):
        run_limited(work.segfaults, limits=PLENTY)
    with pytest.raises(Crashed, match="status 3"):
        run_limited(work.exits, limits=PLENTY)
    assert run_limited(work.add, 1, 2, limits=PLENTY) == 3


def test_work_that_tells_how_far_it_is_may_take_long() -> None:
    limits = ChildLimits(2.0, None, MEMORY)
    assert run_limited(work.tell, 12, 0.25, limits=limits, progress=lambda *told: None) == 12


def test_a_good_child_is_used_again_and_an_ended_one_is_not() -> None:
    first = run_limited(work.pid, limits=PLENTY)
    assert run_limited(work.pid, limits=PLENTY) == first
    with pytest.raises(LimitExceeded):
        run_limited(work.loops, limits=ChildLimits(0.3, None, MEMORY))
    assert run_limited(work.pid, limits=PLENTY) != first


def test_libraries_in_a_child_share_as_they_do_elsewhere() -> None:
    """Else each lock that one of them makes is told at the end of the command as a leak."""
    import multiprocessing

    assert run_limited(work.makes_a_lock, limits=PLENTY) == multiprocessing.get_context().get_start_method()
    assert sys.platform != "linux" or multiprocessing.get_context().get_start_method() == "fork"


def test_interrupting_ends_the_work_and_what_it_started(tmp_path: Path) -> None:
    note = tmp_path / "pid"

    def alarmed(*_: object) -> None:
        if note.exists() and note.read_text():  # it has started another
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, alarmed)
    signal.setitimer(signal.ITIMER_REAL, 0.2, 0.2)
    try:
        with pytest.raises(KeyboardInterrupt):
            child = children.Child(ChildLimits(60, None, MEMORY))
            try:
                child.call(work.starts_another_and_loops, (str(note),), {}, None)
            except KeyboardInterrupt:
                child.kill()
                raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    wait_until(lambda: not _is_running(int(note.read_text())))


def test_a_child_ends_with_the_process_that_started_it_however_that_ends(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    code = (
        "import sys; from maasdam.children import ChildLimits, run_limited; from tests.field import limited_work as work; "
        "run_limited(work.notes_and_loops, sys.argv[1], limits=ChildLimits(60))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(note)])
    try:
        wait_until(lambda: note.exists() and note.read_text() != "")
    finally:
        parent.kill()
        parent.wait()
    wait_until(lambda: not _is_running(int(note.read_text())))


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_what_libraries_print_there_can_do_nothing_to_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    run_limited(work.prints, "warning: node '\x1b]0;title\x07\x9bred ä\udcff' is odd\n", limits=PLENTY)
    heard: list[str] = []

    def both() -> bool:
        heard.append(capsys.readouterr().err)
        return "".join(heard).count("odd") >= 2

    wait_until(both)
    said = "".join(heard)
    assert said.count("is odd\n") == 2 and "ä" in said
    assert all(c.isprintable() or c == "\n" for c in said)
