"""Evaluation data as Hugging Face lays it out: metadata.csv, class folders, text files, .npz. Knows folders and labels.

Refuses to know models: the label names it is given are all it compares with.
"""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maasdam.core import Signature, TensorPayload, TensorSpec, TextPayload
from maasdam.errors import InvalidInput
from maasdam.tasks.labels import LabelIds
from maasdam.tasks.task import RawExample

MAX_EXAMPLES = 1_000_000
MAX_RATIO = 100
"""Unpacked over packed bytes of an .npz beyond FREE_BYTES."""
FREE_BYTES = 64 * 1024 * 1024
TRANSCRIPTION = ("transcription", "text", "sentence")
"""Columns that hold what was said, the first there is."""
MAX_SHOWN = 200
"""Characters of a file's name in an error."""
METADATA = ("metadata.csv", "metadata.jsonl")

Row = Mapping[str, Any]


def labels_in(path: Path, suffixes: tuple[str, ...]) -> dict[int, str]:
    """The names of the labels of data, numbered in their order: of metadata.csv, else of class folders; {}: it has none."""
    rows = _rows(path, suffixes)
    if rows is not None:
        names = {str(row["label"]) for row, _, _ in rows if row.get("label") not in (None, "")}
    else:
        found = {f.relative_to(path).parts for f in path.rglob("*") if f.suffix.lower() in suffixes}
        names = {parts[0] for parts in found} if all(len(parts) > 1 for parts in found) else set()
    return dict(enumerate(sorted(names))) if len(names) > 1 else {}


def labelled_files(
    path: Path, suffixes: tuple[str, ...], what: str, labels: Mapping[int, str] | None, *, is_labelled: bool = True
) -> list[RawExample]:
    """Files with the ids of their labels: of metadata.csv, else of class folders, else None; all None unless `is_labelled`."""
    label_ids = LabelIds(labels)
    rows = _rows(path, suffixes)
    if not is_labelled and rows is not None:
        return [(row["file_name"], file, None) for row, file, _ in rows]
    if rows is not None:
        return [(r["file_name"], file, label_ids.of_row(r, where)) for r, file, where in rows]
    files = _files(path, suffixes, f"{what} come in a folder with metadata.csv, or in a folder of class folders")
    folders = {f.relative_to(path).parts[0] for f in files if len(f.relative_to(path).parts) > 1}
    if is_labelled and len(folders) > 1 and all(len(f.relative_to(path).parts) > 1 for f in files):
        names = label_ids.of_folders(sorted(folders))
        return [(str(f.relative_to(path)), f, names[f.relative_to(path).parts[0]]) for f in files]
    return [(str(f.relative_to(path)), f, None) for f in files]


def listed_files(path: Path, suffixes: tuple[str, ...], advice: str) -> list[tuple[str, Path, Row | None, str]]:
    """Files by name, with their row of the folder's metadata and where that stands; None where the folder has none."""
    rows = _rows(path, suffixes)
    if rows is not None:
        return [(row["file_name"], file, row, where) for row, file, where in rows]
    return [(str(f.relative_to(path)), f, None, "") for f in _files(path, suffixes, advice)]


def transcribed_files(path: Path, suffixes: tuple[str, ...]) -> list[RawExample]:
    """Recordings with what metadata.csv says is said in them, else None."""
    rows = _rows(path, suffixes)
    if rows is None:
        files = _files(path, suffixes, "recordings come in a folder with metadata.csv")
        return [(str(f.relative_to(path)), f, None) for f in files]
    words = [next((r[c] for c in TRANSCRIPTION if r.get(c) is not None), None) for r, _, _ in rows]
    return [(r["file_name"], file, s if s is None else str(s)) for (r, file, _), s in zip(rows, words, strict=True)]


def texts(path: Path) -> list[RawExample]:
    """Each .txt file, and each line of a .jsonl file, as a prompt."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix in (".txt", ".jsonl") and p.is_file())
    out: list[tuple[str, TextPayload, Any]] = []
    for file in files:
        name = file.name if path.is_file() else str(file.relative_to(path))
        if file.suffix == ".jsonl":
            for i, row in _json_lines(file):
                if not isinstance(row.get("text"), str):
                    raise InvalidInput(f"{file.name} line {i} has no 'text'; each line is an object with one")
                if any("\ud800" <= character <= "\udfff" for character in row["text"]):
                    raise InvalidInput(f"{file.name} line {i} holds half of a character (a lone surrogate); write it in UTF-8")
                out.append((f"{name}:{i}", TextPayload(prompt=row["text"]), None))
        elif file.suffix == ".txt":
            out.append((name, TextPayload(prompt=_text(file)), None))
        else:
            raise InvalidInput(f"{file} is no text for this task; give .txt, or .jsonl with 'text'")
    return [(n, p, t) for n, p, t in out if p.prompt and p.prompt.strip()]


def read_texts(path: Path, *columns: str) -> list[tuple[str, Row]]:
    """Rows of .jsonl and .csv files that have one of these columns; where the first is "text" each line of a .txt file too.

    Raises InvalidInput naming the line that has none.
    """
    known = (".jsonl", ".csv", *((".txt",) if columns[0] == "text" else ()))
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix in known and p.is_file())
    out: list[tuple[str, Row]] = []
    for file in files:
        name = file.name if path.is_file() else str(file.relative_to(path))
        if file.suffix not in known:
            raise InvalidInput(f"{file} is no text for this task; give {', '.join(known)} with {' or '.join(columns)}")
        if file.suffix == ".txt":
            out += [(f"{name}:{i}", {columns[0]: line}) for i, line in enumerate(_text(file).splitlines(), 1) if line.strip()]
            continue
        for i, row in _json_lines(file) if file.suffix == ".jsonl" else _csv(file):
            if all(row.get(column) in (None, "", []) for column in columns):
                raise InvalidInput(f"{file.name} line {i} has no '{columns[0]}'; each has {' or '.join(columns)}")
            out.append((f"{name}:{i}", row))
    return out


def text_in(row: Row, *names: str) -> str:
    """The text under the first of `names` that a row has. Raises InvalidInput for a row without, or half of a character."""
    value = next((row[name] for name in names if row.get(name) not in (None, "")), None)
    if not isinstance(value, str):
        raise InvalidInput(f"there is no text '{names[0]}' in it; this model takes an object with {' or '.join(names)}")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise InvalidInput(f"'{names[0]}' holds half of a character (a lone surrogate); write it in UTF-8")
    return value


def tensors(path: Path, signature: Signature | None) -> list[RawExample]:
    """Each row of the arrays is one example, with batch 1; see `_examples_of` for what has no rows."""
    files = [path] if path.is_file() else sorted(path.glob("*.npz"))
    out: list[RawExample] = []
    for file in files:
        arrays = arrays_of(file)
        shapes = {s.name: s for s in signature.inputs} if signature else {}
        out += [(f"{file.name}:{i}", TensorPayload(t), None) for i, t in enumerate(_examples_of(arrays, shapes, file))]
        if len(out) > MAX_EXAMPLES:
            raise InvalidInput(f"{path} holds over {MAX_EXAMPLES:,} examples; give a sample of them")
    return out


def arrays_of(file: Path) -> dict[str, Any]:
    """The named arrays of an .npz file. Raises InvalidInput where it is none."""
    import numpy as np

    try:
        _check_unpacked(file)
        with np.load(file, allow_pickle=False) as stored:
            return {name: _native(stored[name]) for name in stored.files}
    except InvalidInput:
        raise
    except Exception as error:  # zipfile's, zlib's and numpy's own, and MemoryError for a header that lies
        raise InvalidInput(f"{file} is no .npz of named arrays: {error}") from error


def _native(array: Any) -> Any:
    """In this machine's order of bytes: engines read memory as it is."""
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _examples_of(arrays: Mapping[str, Any], shapes: Mapping[str, TensorSpec], file: Path) -> list[dict[str, Any]]:
    """One example a row. An input without a batch has one axis less than its array, or one value for all examples.

    So beside images [100, 3, 32, 32], a scalar is an array of one number, or [100]; a state [1, 64] is an array [1, 64], or
    [100, 1, 64]. Where the inputs' first axes are different things (nodes and edges) the file is one example.
    """
    if not arrays:
        raise InvalidInput(f"{file} holds no arrays; save them with numpy.savez, by the names of the model's inputs")
    if shapes and any(spec.rows_of for spec in shapes.values()):
        known = {name: array for name, array in arrays.items() if name in shapes}
        if all(array.ndim == len(shapes[name].shape) for name, array in known.items()):
            return [dict(arrays)]
    rows = _batch_axis(shapes)
    ways = {name: _way(array, shapes.get(name), rows) for name, array in arrays.items()}
    sizes = {name: _count(array, ways[name]) for name, array in arrays.items() if ways[name] != "shared"}
    if len(set(sizes.values())) > 1:
        raise InvalidInput(f"the arrays in {file} have first axes {sizes}; all need the same number of examples")
    if next(iter(sizes.values()), 1) > MAX_EXAMPLES:
        raise InvalidInput(f"{file} holds over {MAX_EXAMPLES:,} examples; give a sample of them")

    def one(name: str, i: int) -> Any:
        array, way = arrays[name], ways[name]
        if isinstance(way, Along):
            return array[(slice(None),) * way.axis + (slice(i * way.rows, (i + 1) * way.rows),)]
        return array if way == "shared" else array[i, ...] if way == "one each" else array[i : i + 1]

    return [{name: one(name, i) for name in arrays} for i in range(next(iter(sizes.values()), 1))]


@dataclass(frozen=True, slots=True)
class Along:
    """Examples of so many rows each, along an axis."""

    axis: int
    rows: int


def _batch_axis(shapes: Mapping[str, TensorSpec]) -> str | None:
    """What the file calls its batch, where it stands second in a state."""
    return next((s.axes[0].name for s in shapes.values() if s.axes and s.axes[0] is not None), None)


def _count(array: Any, way: str | Along) -> int:
    return int(array.shape[way.axis] // way.rows if isinstance(way, Along) else array.shape[0])


def _way(array: Any, spec: TensorSpec | None, batch: str | None) -> str | Along:
    """What an array is to its examples: "rows" of a batch, "one each" of an input that has no batch, "shared" by all, or so
    many rows each: of an input whose batch is fixed, or stands at another place."""
    if array.ndim == 0:
        return "shared"
    if spec is None or (spec.shape and spec.shape[0] is None):
        return "one each" if spec is not None and array.ndim == len(spec.shape) + 1 else "rows"
    if array.ndim == len(spec.shape) + 1:
        return "one each"
    if spec.shape[0] == 1 and len(array) != 1:
        return "rows"  # a batch that is fixed to 1: a row is that batch
    if array.ndim == len(spec.shape):
        place = next((i for i, axis in enumerate(spec.axes) if axis is not None and axis.name == batch), 0)
        if place:
            return Along(place, 1)
        fixed = spec.shape[0] or 1
        return Along(0, fixed) if len(array) > fixed and len(array) % fixed == 0 else "shared"
    return "rows"


def _check_unpacked(file: Path) -> None:
    """Raise InvalidInput for an archive that unpacks to many times its size, as only zeros do."""
    with zipfile.ZipFile(file) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    packed = file.stat().st_size
    if unpacked > max(FREE_BYTES, MAX_RATIO * packed):
        raise InvalidInput(
            f"{file} unpacks from {packed:,} to {unpacked:,} bytes, over {MAX_RATIO} times: refused as a zip bomb; "
            "save the arrays with numpy.savez"
        )


def own_examples(path: Path) -> list[tuple[str, bytes, bool, str | None]]:
    """Of a task of one's own: name, bytes, whether they are a file's (else JSON), and what is right, in JSON.

    Each line of a .jsonl file with "input", or each file of a folder; "truth" stands beside "input", or beside "file_name" in
    the folder's metadata.
    """
    if path.is_file():
        rows = [row for row in _json_lines(path) if path.suffix == ".jsonl"]
        lacks = next((i for i, row in rows if "input" not in row), None) if rows else 1
        if lacks is not None:
            raise InvalidInput(f"{path.name} line {lacks} has no 'input'; each line is an object with one, and with 'truth'")
        return [(f"{path.name}:{i}", json.dumps(row["input"]).encode(), False, _truth(row)) for i, row in rows]
    named = _rows(path, ())
    if named is not None:
        return [(row["file_name"], file.read_bytes(), True, _truth(row)) for row, file, _ in named]
    files = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
    return [(str(file.relative_to(path)), file.read_bytes(), True, None) for file in files]


def _truth(row: Row) -> str | None:
    return json.dumps(row["truth"]) if row.get("truth") is not None else None


def _files(path: Path, suffixes: tuple[str, ...], advice: str) -> list[Path]:
    if not path.is_dir():
        raise InvalidInput(f"{path} is a file; {advice}")
    return sorted(p for p in path.rglob("*") if p.suffix.lower() in suffixes and p.is_file())


def _rows(path: Path, suffixes: tuple[str, ...]) -> list[tuple[Row, Path, str]] | None:
    """Each row of a folder's metadata, the file it names and where it stands; None where the folder has none."""
    where = next((path / name for name in METADATA if (path / name).is_file()), None)
    if where is None:
        return None
    rows = _json_lines(where) if where.suffix == ".jsonl" else _csv(where)
    for i, row in rows:
        if not isinstance(row.get("file_name"), str) or not row["file_name"]:
            raise InvalidInput(f"{where.name} row {i} has no file_name; each row names one file")
    return [(row, _file(path, row, suffixes, where, i), f"{where.name} row {i}") for i, row in rows]


def _csv(where: Path) -> list[tuple[int, Row]]:
    try:
        with where.open(newline="", encoding="utf-8-sig") as file:
            return [(i, row) for i, row in enumerate(csv.DictReader(file, strict=True), 1) if any(row.values())]
    except (csv.Error, UnicodeDecodeError) as error:
        raise InvalidInput(f"{where} is no CSV in UTF-8: {error}") from error


def _json_lines(where: Path) -> list[tuple[int, Row]]:
    rows: list[tuple[int, Row]] = []
    for i, line in enumerate(_text(where).splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InvalidInput(f"{where.name} line {i} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise InvalidInput(f"{where.name} line {i} is no JSON object")
        rows.append((i, row))
    return rows


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{file} is not UTF-8 text: {error}") from error


def _file(folder: Path, row: Row, suffixes: tuple[str, ...], where: Path, index: int) -> Path:
    """The file a row names: inside the folder, of the right kind, there."""
    name = row["file_name"][:MAX_SHOWN]
    try:
        file = (folder / str(row["file_name"])).resolve()
        is_there = file.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # too long, with a null byte, or a link to itself
        raise InvalidInput(f"{where.name} row {index} names '{name}', which can't name a file ({error})"[:500]) from error
    if not file.is_relative_to(folder.resolve()):
        raise InvalidInput(f"{where.name} row {index} names '{name}', outside the folder; put the file inside")
    if suffixes and file.suffix.lower() not in suffixes:
        raise InvalidInput(f"{where.name} row {index} names '{name}'; this task takes: {', '.join(suffixes)}")
    if not is_there:
        raise InvalidInput(f"{where.name} row {index} names '{name}', which is not there")
    return file
