"""What a command line names, as inputs one by one: files, folders, patterns, tables, standard input, prompts.

Knows files and their columns. Refuses to know models: a task's record says which files are its own. Nothing is read before it
is asked for, so that a folder may be larger than memory.
"""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from maasdam.core import CustomPayload, Payload, Sampling, TensorPayload, TextPayload
from maasdam.errors import InvalidInput, NotFound
from maasdam.tasks import task_of
from maasdam.tasks.classes import USUAL
from maasdam.tasks.custom import of_row
from maasdam.tasks.examples import arrays_of
from maasdam.tasks.task import Task

NEUTRAL = Sampling()
TABLES = (".jsonl", ".csv")
PROMPTS = ("prompt", "text", "messages")
"""Columns that hold a prompt, the first there is."""
FILES = ("file_name", "file", "path")
"""Columns that name a file, from the table's own folder."""
ARRAYS = ".npz"
LONGEST_LINE = 16 * 2**20
"""Characters of a line in a table."""


@dataclass(frozen=True, slots=True)
class Input:
    """One of them. `name` tells it from the others, today and when the rest is answered."""

    name: str
    payload: Callable[[], Payload]
    """Raises InvalidInput."""


@dataclass(frozen=True, slots=True)
class How:
    """What is asked of each."""

    sampling: Sampling = NEUTRAL
    top_k: int | None = None
    chats: bool = False
    """A prompt is a user's message."""


def inputs_of(task: str | None, given: Sequence[str], how: How = How()) -> list[Input]:
    """Every input, in the order that they are named; of a folder by name. For text a folder's name ends in /, or is a prompt.

    Raises NotFound (no such file, nothing in a folder), InvalidInput (a table without a column that says what to answer).
    """
    record = task_of(task)
    return [each for word in given for each in _of_word(record, word, how)]


def _takes_words(record: Task) -> bool:
    """Whether what is named may be the input itself."""
    return record.of_row is not None or TextPayload in record.payloads


def _of_word(record: Task, word: str, how: How) -> Iterator[Input]:
    is_text = _takes_words(record)
    if word == "-":
        yield Input("-", partial(_of_stdin, record, how))
        return
    path = Path(word)
    is_array = record.of_row is not None and path.suffix == ARRAYS
    if is_text and path.suffix not in (*TABLES, ".txt") and not word.endswith("/") and not is_array:
        yield Input(word, partial(_words, record, word, how))
        return
    paths = [path] if os.path.exists(word) else _matching(path)  # noqa: PTH110  a name may be of any length
    if not paths:
        if is_text and path.suffix == ".txt":  # who writes to a model may end so
            yield Input(word, partial(_words, record, word, how))
            return
        if CustomPayload in record.payloads:
            with suppress(ValueError, RecursionError):
                yield Input(word, partial(of_row, {"input": json.loads(word)}))
                return
        raise NotFound(f"no file {word:.200}; this model takes {record.takes}")
    for one in paths:
        yield from _of_path(record, one, how)


def _matching(pattern: Path) -> list[Path]:
    """What a pattern finds; links in `**` are not followed, which may lead in a circle."""
    root = pattern.anchor
    try:
        return sorted(Path(root or ".").glob(str(pattern)[len(root) :]))
    except (ValueError, NotImplementedError, OSError):  # no pattern at all
        return []


def _of_path(record: Task, path: Path, how: How) -> Iterator[Input]:
    if path.is_dir():
        endings = (*TABLES, ".txt") if _takes_words(record) else (*record.suffixes, ARRAYS)
        is_any = CustomPayload in record.payloads
        inside = sorted(f for f in path.rglob("*") if (is_any or f.suffix.lower() in endings) and f.is_file())
        if record.suffixes:  # what lies beside pictures and tells about them is no input
            inside = [file for file in inside if file.suffix.lower() not in TABLES]
        if not inside:
            raise NotFound(f"nothing in {path} ends in {', '.join(endings)}; this model takes {record.takes}")
        for file in inside:
            yield from _of_path(record, file, how)
    elif path.suffix in TABLES:
        yield from _of_table(record, path, how)
    elif _takes_words(record) and path.suffix != ARRAYS:
        yield Input(str(path), lambda: _words(record, _text(path), how))
    else:
        yield Input(str(path), partial(_of_file, record, path, how))


def _of_table(record: Task, path: Path, how: How) -> Iterator[Input]:
    is_text = TextPayload in record.payloads
    columns = PROMPTS if is_text else FILES
    for line, row in _rows(path):
        if record.of_row is not None:
            yield Input(f"{path}:{line}", partial(record.of_row, row, how.top_k or USUAL))
            continue
        if CustomPayload in record.payloads and "input" in row:
            yield Input(f"{path}:{line}", partial(of_row, row))
            continue
        column = next((name for name in columns if row.get(name) not in (None, "")), None)
        if column is None:
            raise InvalidInput(f"{path} line {line} has no {' and no '.join(map(repr, columns))}: one of them is answered")
        name, value = f"{path}:{line}", row[column]
        if not is_text:
            yield Input(name, partial(_of_file, record, path.parent / str(value), how))
        elif column == "messages":
            yield Input(name, partial(_messages, value, name, how))
        else:
            yield Input(name, partial(_prompt, value, how, name))


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from _csv(path, file) if path.suffix == ".csv" else _json(path, file)
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path} is no UTF-8 text; save it as UTF-8") from error
    except csv.Error as error:
        raise InvalidInput(f"{path} is no table of comma-separated values: {error}") from error


def _csv(path: Path, file: Iterable[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    csv.field_size_limit(LONGEST_LINE)
    yield from enumerate(csv.DictReader(file), 2)


def _json(path: Path, file: Iterable[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InvalidInput(f"{path} line {number} is no JSON; each line is one object") from error
        if not isinstance(row, dict):
            raise InvalidInput(f"{path} line {number} is no JSON object")
        yield number, row


def _of_stdin(record: Task, how: How) -> Payload:
    if _takes_words(record):
        return _words(record, sys.stdin.read(), how)
    if record.of_file is None:
        raise InvalidInput("arrays are not read from standard input; name an .npz file")
    return record.payload(sys.stdin.buffer.read(), how.top_k)


def _of_file(record: Task, path: Path, how: How) -> Payload:
    if record.of_file is None or (path.suffix == ARRAYS and CustomPayload not in record.payloads):
        return TensorPayload(arrays_of(path))
    try:
        return record.payload(path.read_bytes(), how.top_k)
    except OSError as error:
        raise InvalidInput(f"can't read {path}: {error.strerror}") from error
    except ValueError as error:
        raise InvalidInput(f"can't read {str(path)!r}: a null, or half of a character, is in no file's name") from error


def _words(record: Task, text: str, how: How) -> Payload:
    """A prompt; for what reads texts a text, or an object in JSON of what it reads."""
    if record.of_row is None:
        return _prompt(text, how)
    row: Any = None
    if text.lstrip().startswith("{"):
        with suppress(ValueError, RecursionError):
            row = json.loads(text)
    return record.of_row(row if isinstance(row, dict) else {"text": text}, how.top_k or USUAL)


def _prompt(text: Any, how: How, where: str = "it") -> Payload:
    if not isinstance(text, str):
        raise InvalidInput(f"{where} holds {type(text).__name__} for a prompt; write a string")
    if how.chats:
        return TextPayload(messages=({"role": "user", "content": text},), sampling=how.sampling)
    return TextPayload(prompt=text, sampling=how.sampling)


def _messages(value: Any, where: str, how: How) -> Payload:
    if isinstance(value, str):  # of a table of comma-separated values
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise InvalidInput(f"{where}: its messages are no JSON") from error
    if not isinstance(value, list) or not value or not all(isinstance(message, dict) for message in value):
        raise InvalidInput(f"{where}: 'messages' is a list of objects with role and content")
    return TextPayload(messages=tuple(value), sampling=how.sampling)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} can't be read as UTF-8 text") from error
