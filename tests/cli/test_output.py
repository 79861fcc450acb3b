"""Answers go to stdout, all else to stderr; a failure is one sentence and exit 1."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from maasdam.cli.output import ProgressBar, emit, progress_bar, reporting, table
from maasdam.errors import InvalidInput, NotFound


def test_json_is_one_valid_document(capsys: pytest.CaptureFixture[str]) -> None:
    emit({"nan": float("nan"), "inf": [float("inf")], "path": Path("/a"), "many": {3: (1, 2)}, "é": "\ud800"}, True, "not this")
    out, err = capsys.readouterr()
    assert json.loads(out) == {"nan": None, "inf": [None], "path": "/a", "many": {"3": [1, 2]}, "é": "\ud800"}
    assert err == ""


def test_text_is_made_only_when_it_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    emit({"a": 1}, True, lambda: 1 / 0)
    emit({"a": 1}, False, lambda: "words\n")
    assert capsys.readouterr().out.endswith("words\n")


@pytest.mark.parametrize("flag", [True, False])
def test_a_terminal_without_unicode_is_no_obstacle(flag: bool) -> None:
    code = f"from maasdam.cli.output import emit; emit({{'name': 'né→'}}, {flag}, 'né→')"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert run.returncode == 0, run.stderr
    assert not flag or json.loads(run.stdout) == {"name": "né→"}


def test_our_errors_are_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught, reporting():
        raise NotFound("no model 'x'")
    assert caught.value.code == 1
    assert capsys.readouterr() == ("", "error: no model 'x'\n")


def test_what_a_hostile_file_calls_itself_neither_drives_the_terminal_nor_floods_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), reporting():
        raise InvalidInput("the weight 'a\x1b[2J\x9b1m\nerror: another' is broken " + "x" * 1_000_000 + "; fetch it again")
    said = capsys.readouterr().err
    assert said.startswith("error: the weight 'a\ufffd[2J\ufffd1m error: another' is broken xxx") and said.count("\n") == 1
    assert said.endswith("; fetch it again\n") and len(said) < 3000


def test_the_unexpected_is_a_sentence_and_its_traceback_is_for_debugging(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MAASDAM_LOG_LEVEL", raising=False)
    for level in ("", "debug"):
        if level:
            monkeypatch.setenv("MAASDAM_LOG_LEVEL", level)
        with pytest.raises(SystemExit) as caught, reporting():
            raise ZeroDivisionError("by nought")
        assert caught.value.code == 1
        out, err = capsys.readouterr()
        assert out == "" and err.splitlines()[-1].startswith("error: ZeroDivisionError: by nought")
        assert ("Traceback" in err) == bool(level)


def test_misuse_and_exit_codes_are_left_to_typer() -> None:
    for error in (typer.BadParameter("x"), typer.Exit(0), typer.Abort(), BrokenPipeError(), KeyboardInterrupt()):
        with pytest.raises(type(error)), reporting():
            raise error


def test_reporting_is_a_decorator_too() -> None:
    @reporting()
    def command() -> None:
        raise NotFound("nothing")

    for _ in range(2):
        with pytest.raises(SystemExit):
            command()


def test_a_table_aligns_and_shows_what_is_unmeasured() -> None:
    text = table(("name", "n", "on"), [("a", 1, True), ("longer", 2345.678, None)])
    assert text.splitlines() == ["NAME        N  ON", "a           1  yes", "longer  2,346  -"]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_elsewhere_than_on_a_terminal_progress_is_a_line_now_and_then() -> None:
    stream, clock = io.StringIO(), Clock()
    with progress_bar(stream, clock) as progress:
        progress("load")
        for done in range(101):
            clock.now += 0.125
            progress("calibrate", done, 100)
        progress("calibrate", 100, 100)
        progress("verify", 3)
    assert stream.getvalue().splitlines() == [
        "load",
        "calibrate 0/100",
        "calibrate 40/100, about 0:08 left",
        "calibrate 80/100, about 0:02 left",
        "calibrate 100/100",
        "verify 3",
    ]


def test_on_a_terminal_progress_is_a_bar_on_stderr_and_stdout_stays_clean() -> None:
    code = """
import sys
from maasdam.cli.output import emit, progress_bar
with progress_bar() as progress:
    for done in range(50):
        progress("calibrate", done, 50)
    progress("verify")
    emit({"a": 1}, True, "")
"""
    leader, follower = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=follower,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(follower)
    drawn = b""
    try:
        while part := os.read(leader, 65536):
            drawn += part
    except OSError:
        pass  # the end, on Linux
    out, _ = child.communicate(timeout=60)
    assert json.loads(out) == {"a": 1}
    assert "calibrate" in drawn.decode() and "verify" in drawn.decode()


def test_closing_twice_is_fine() -> None:
    bar = ProgressBar(io.StringIO(), Clock(), draws=True)
    bar("x", 1, 2)
    bar.close()
    bar.close()


def test_what_libraries_print_while_they_work_is_no_part_of_the_answer(capsys: pytest.CaptureFixture[str]) -> None:
    """onnxruntime.transformers prints that a shape inference failed: `build --json` was no JSON then."""
    with progress_bar() as progress:
        progress("work")
        print("failed in shape inference")
    emit({"a": 1}, True, "")
    with progress_bar() as progress:
        print("again")
        emit({"b": 2}, False, "b")
        progress.close()
        emit({"c": 3}, False, "c")
    out, err = capsys.readouterr()
    assert out == '{\n  "a": 1\n}\nb\nc\n' and "failed in shape inference" in err and "again" in err
