"""Many inputs into one file, a line each: begun, broken off, gone on with, and at its end exactly one line an input.

Knows lines of JSON and of comma-separated values, and which are there already. Refuses to know models.

    inputs, less those that have a line  ->  answers, several at once  ->  lines, in the order of the inputs

What is wrong with an input is its line. What is wrong with the machine (an engine, a service, a disk) ends the run, and no
line is written for it: the next run answers it.
"""

from __future__ import annotations

import asyncio
import csv
import fcntl
import io
import json
import os
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maasdam.core import Progress
from maasdam.errors import Conflict, InvalidInput, StorageFailure, TooLarge, Unsupported
from maasdam.operations.run_inputs import Input

COLUMNS = ("input", "model", "shown", "answer", "error")
"""Of a table; `answer` is JSON."""
KINDS = (".jsonl", ".csv")
WRONG_INPUT = (InvalidInput, TooLarge, Unsupported)
"""What is the input's own fault, and will be tomorrow."""
BOTH = "\r\n"
"""A cell that holds any of these stands in quotes."""
LONGEST_CELL = 1 << 31
"""Characters of an answer that is read again; Python's own limit is 131,072."""
SAFE = "surrogateescape"
"""Names of files need not be text."""

Answering = Callable[[Input], Awaitable[tuple[dict[str, Any], Any]]]
"""Gives an answer as a JSON object, and in one word or sentence."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of a batch."""

    had: int
    """Inputs that had a line before."""
    answered: int
    wrong: int
    """Of those answered now: inputs whose line says what is wrong with them."""


def answer_all(inputs: Sequence[Input], out: Path, model: str, answer: Answering, width: int, progress: Progress) -> Counts:
    """Write a line for each input that has none, of which up to `width` are asked at once. Broken off, it leaves whole lines.

    Raises InvalidInput (the file is another model's, or none of ours), Conflict (another run writes it), StorageFailure, and
    what `answer` raises that is not the input's fault.
    """
    if out.suffix not in KINDS:
        raise InvalidInput(f"{out} gets a line for each input; name it .jsonl or .csv")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(out, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise StorageFailure(f"can't write {out}: {error.strerror}") from error
    try:
        lines = _Lines(file, out, model)
        once = {each.name: each for each in inputs}
        left = [each for name, each in once.items() if name not in lines.names]
        had, whole = len(once) - len(left), len(once)
        progress("answering", had, whole)
        wrong = asyncio.run(_answer(left, lines, answer, width, lambda n: progress("answering", had + n, whole)))
        return Counts(had, len(left), wrong)
    finally:
        os.close(file)


async def _answer(inputs: Sequence[Input], lines: _Lines, answer: Answering, width: int, tell: Callable[[int], None]) -> int:
    """How many were wrong. Lines are written in order: who is broken off has those up to there."""
    begun: deque[tuple[Input, asyncio.Future[tuple[dict[str, Any], Any]]]] = deque()
    waiting, wrong, done = iter(inputs), 0, 0
    try:
        while True:
            while len(begun) < width and (following := next(waiting, None)) is not None:
                begun.append((following, asyncio.ensure_future(answer(following))))
            if not begun:
                return wrong
            each, task = begun[0]
            try:
                given, shown = await task
                lines.add(each.name, shown, given)
            except WRONG_INPUT as error:
                lines.add(each.name, None, {}, str(error))
                wrong += 1
            begun.popleft()
            tell(done := done + 1)
    finally:
        for _, task in begun:
            task.cancel()
        await asyncio.gather(*(task for _, task in begun), return_exceptions=True)


class _Lines:
    """The file, from after its last whole line."""

    def __init__(self, file: int, path: Path, model: str) -> None:
        self.names: set[str] = set()
        """Of inputs that have a line."""
        self._file, self._path, self._model, self._is_table = file, path, model, path.suffix == ".csv"
        self._end = 0
        csv.field_size_limit(LONGEST_CELL)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Conflict(f"another run writes {path}; wait for its end, or name another file") from error
        with path.open("rb") as there:
            for number, line in enumerate(_records(there) if self._is_table else there, 1):
                if not line.endswith(b"\n"):
                    break  # what was broken off
                self._take(line.decode(errors=SAFE), number)
                self._end += len(line)
        os.ftruncate(file, self._end)
        if self._is_table and not self._end:
            self._write(_row(COLUMNS))

    def _take(self, line: str, number: int) -> None:
        try:
            if not self._is_table:
                told = json.loads(line)
            elif number > 1:
                told = dict(zip(COLUMNS, next(csv.reader([line])), strict=True))
            elif tuple(next(csv.reader([line]))) == COLUMNS:
                return
            else:
                raise ValueError
            name, model = told["input"], told["model"]
        except (ValueError, TypeError, LookupError, StopIteration, RecursionError, csv.Error) as error:
            raise InvalidInput(f"line {number} of {self._path} is no answer of a run; name another file") from error
        if model != self._model:
            raise InvalidInput(f"{self._path} holds answers of {model!s:.100}, not of {self._model}; name another file")
        self.names.add(name)

    def add(self, name: str, shown: Any, answer: dict[str, Any], error: str = "") -> None:
        """One whole line. Raises StorageFailure, and then nothing of it is there."""
        if self._is_table:
            said = "" if shown is None else shown if isinstance(shown, str) else json.dumps(shown, ensure_ascii=False)
            self._write(_row((name, self._model, said, json.dumps(answer, ensure_ascii=False) if answer else "", error)))
        else:
            row = {"input": name, "model": self._model} | ({"error": error} if error else answer)
            self._write(json.dumps(row, ensure_ascii=False) + "\n")

    def _write(self, line: str) -> None:
        data = line.encode(errors=SAFE)
        try:
            written = 0
            while written < len(data):
                written += os.pwrite(self._file, data[written:], self._end + written)
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._file, self._end)
            raise StorageFailure(f"can't write {self._path}: {error.strerror}; run it again to go on from there") from error
        self._end += len(data)


def _row(cells: Sequence[str]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator=BOTH).writerow(cells)
    return out.getvalue().removesuffix(BOTH) + "\n"


def _records(lines: Iterator[bytes] | Any) -> Iterator[bytes]:
    """Lines of a table, joined where a cell holds the line's end."""
    kept = b""
    for line in lines:
        kept += line
        if kept.count(b'"') % 2 == 0:
            yield kept
            kept = b""
    if kept:
        yield kept.rstrip(b"\n")
