"""What the commands say, and where: the answer on stdout, everything else on stderr.

Knows terminals, JSON and exit codes (0 done, 1 failed, 2 misused). Refuses to know what any command does.
Rich is imported only when a bar is drawn on a terminal.
"""

from __future__ import annotations

import atexit
import json
import math
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import typer
from typer.exceptions import TyperException

from maasdam.errors import MaasdamError

if TYPE_CHECKING:
    from types import TracebackType

    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

    from maasdam.operations.workspace import Workspace

JSON = typer.Option(False, "--json", help="Print one JSON document.")
"""Of every command."""
MAX_SENTENCE = 2000
"""Characters of an error that are shown: what a hostile file names something may be megabytes long."""
SECONDS_BETWEEN_LINES = 5.0
"""How often long work says where it is when stderr is not a terminal."""


_NO_TEXT = re.compile("[\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")
"""What JSON leaves as it is and a terminal may obey: C1 controls, marks that turn or hide text."""


_set_aside: list[TextIO] = []
"""stdout itself, while what libraries print goes to stderr."""


def emit(document: Mapping[str, Any], as_json: bool, text: str | Callable[[], str], is_styled: bool = False) -> None:
    """Print the answer on stdout: `document` as one JSON document, else `text` (or what it returns).

    Numbers JSON can't hold (NaN, infinities) become null; paths and times become strings. What files name something can do
    nothing to a terminal: characters that are no text are replaced, or escaped in JSON, save where `is_styled` says that the
    text holds colours of ours and was looked at already.
    """
    out = _set_aside[0] if _set_aside else sys.stdout
    encoding = out.encoding or "utf-8"
    if as_json:
        is_ascii = not encoding.lower().startswith("utf")
        words = json.dumps(_plain(document), indent=2, ensure_ascii=is_ascii, allow_nan=False)
        words = _NO_TEXT.sub(lambda match: f"\\u{ord(match[0]):04x}", words)
    else:
        words = text if isinstance(text, str) else text()
        words = words if is_styled else "\n".join(harmless(line.expandtabs()) for line in words.split("\n"))
    if words:
        out.write(words.rstrip("\n").encode(encoding, "backslashreplace").decode(encoding) + "\n")
    out.flush()


@contextmanager
def reporting() -> Iterator[None]:
    """Turn a failure into one sentence on stderr and exit 1. A context manager and a decorator.

    The traceback of an unexpected error shows only with MAASDAM_LOG_LEVEL=debug.
    """
    try:
        yield
    except (TyperException, typer.Exit, typer.Abort):
        raise  # misuse and exit codes are Typer's
    except BrokenPipeError:
        raise  # the reader went away: Typer ends quietly
    except MaasdamError as error:
        _say(f"error: {error}", error)
        raise SystemExit(1) from None
    except Exception as error:
        kind = type(error).__name__
        _say(f"error: {kind}: {str(error) or 'no message'} (MAASDAM_LOG_LEVEL=debug shows where)", error)
        raise SystemExit(1) from None


@contextmanager
def in_workspace() -> Iterator[Workspace]:
    """`reporting`, with what the settings name open."""
    with reporting():
        from maasdam.operations.workspace import Workspace

        with Workspace.open() as workspace:
            yield workspace


def table(heads: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    """Plain aligned columns; None is "-". Numbers are set to the right."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max([len(head), *(len(row[i]) for row in cells)]) for i, head in enumerate(heads)]
    right = [bool(rows) and all(_is_number(row[i]) for row in rows) for i in range(len(heads))]
    lines = [[head.upper() for head in heads], *cells]
    return "\n".join(
        "  ".join(
            word.rjust(width) if far else word.ljust(width) for word, width, far in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    )


def progress_bar(stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> ProgressBar:
    """A core.Progress for long work: a bar on a terminal, a plain line now and then elsewhere.

    Works bare, and as a context manager that clears up: `with progress_bar() as progress: build(..., progress=progress)`.
    Inside it, what libraries print goes to stderr: stdout is for the answer alone.
    """
    out = sys.stderr if stream is None else stream
    return ProgressBar(out, clock, draws=out.isatty() and os.environ.get("TERM") != "dumb")


class ProgressBar:
    """Shows the stages of one piece of work, on one stream. Thread-safe where rich is; lines are whole."""

    def __init__(self, stream: TextIO, clock: Callable[[], float], draws: bool) -> None:
        self._stream, self._clock, self._draws = stream, clock, draws
        self._aside = ExitStack()
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None
        self._stage: str | None = None
        self._line_time = -math.inf
        self._last_line = ""
        self._began = -math.inf, 0
        """When the stage began, and how much of it was done then."""

    def __call__(self, stage: str, done: int = 0, total: int | None = None) -> None:
        """`done` of `total` steps of `stage`; total None is unknown."""
        if self._draws:
            self._draw(stage, done, total)
        else:
            self._print(stage, done, total)

    def close(self) -> None:
        """Leave the terminal and stdout as they were; calling again does nothing."""
        self._aside.close()
        if self._bar is not None:
            self._bar.stop()
            atexit.unregister(self.close)
            self._bar = None

    def __enter__(self) -> ProgressBar:
        _set_aside.append(sys.stdout)
        self._aside.callback(_set_aside.pop)
        self._aside.enter_context(redirect_stdout(sys.stderr))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _draw(self, stage: str, done: int, total: int | None) -> None:
        if self._bar is None:
            self._bar = _rich_bar(self._stream)
            self._bar.start()
            atexit.register(self.close)
        if stage != self._stage:
            if self._task is not None:
                previous = self._bar.tasks[-1]
                self._bar.update(self._task, total=previous.total or 1, completed=previous.total or 1)
            self._task = self._bar.add_task(printable(stage).replace("[", r"\["), total=total)  # no markup of rich's
            self._stage = stage
        assert self._task is not None
        self._bar.update(self._task, completed=done, total=total)

    def _print(self, stage: str, done: int, total: int | None) -> None:
        now = self._clock()
        is_new, is_end = stage != self._stage, total is not None and done >= total > 0
        if not is_new and not is_end and now - self._line_time < SECONDS_BETWEEN_LINES:
            return
        line = stage if total is None and not done else f"{stage} {done}" if total is None else f"{stage} {done}/{total}"
        if is_new:
            self._began = now, done
        if line == self._last_line:
            return
        self._stage, self._line_time, self._last_line = stage, now, line
        self._stream.write(f"{printable(line)}{self._left(now, done, total)}\n")
        self._stream.flush()

    def _left(self, now: float, done: int, total: int | None) -> str:
        """ ", about 3:20 left" at the pace of this stage so far; nothing where nobody can tell yet."""
        began, first = self._began
        if total is None or not first < done < total or now <= began:
            return ""
        seconds = round((now - began) / (done - first) * (total - done))
        return (
            f", about {seconds // 60}:{seconds % 60:02} left" if seconds < 3600 else f", about {seconds / 3600:.1f} hours left"
        )


def _rich_bar(stream: TextIO) -> RichProgress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
    from rich.progress import TimeElapsedColumn as Elapsed
    from rich.progress import TimeRemainingColumn as Remaining

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Elapsed(), Remaining())
    # stdout stays ours: rich would send it to this console
    return Progress(*columns, console=Console(file=stream), redirect_stdout=False, redirect_stderr=stream is sys.stderr)


def _say(sentence: str, error: BaseException) -> None:
    if os.environ.get("MAASDAM_LOG_LEVEL", "").lower() == "debug":
        sys.stderr.write("".join(traceback.format_exception(error)))
    sys.stderr.write(printable(sentence) + "\n")
    sys.stderr.flush()


def printable(text: str) -> str:
    """One line of bounded length that can do nothing to a terminal: names in files may hold newlines and escape sequences."""
    line = harmless(" ".join(text.split()))
    return line if len(line) <= MAX_SENTENCE else f"{line[: MAX_SENTENCE - 200]} … {line[-200:]}"


def harmless(text: str) -> str:
    """The same text; what is no text (controls, escape sequences, marks that turn it) becomes U+FFFD."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "\ufffd" for c in text)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value) if isinstance(value, Path) else value


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,.4g}" if isinstance(value, float) else str(value)
