"""Reading untrusted files without being led astray: limits, places, JSON.

Knows sizes, depths, symlinks and file kinds. Refuses to know any model layout.
Every limit has a name here; crossing one raises InvalidModel (or UnsafeModel where it is an escape).
"""

from __future__ import annotations

import json
import os
import stat
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maasdam.errors import InvalidModel, NotFound, UnsafeModel

MAX_CONFIG_BYTES = 8 * 1024 * 1024
"""config.json and its like; ImageNet-21k labels take 2 MB."""
MAX_PROCESSOR_FILE_BYTES = 256 * 1024 * 1024
"""tokenizer.json, vocabularies."""
MAX_GRAPH_JSON_BYTES = 48 * 1024 * 1024
"""The graph inside a .pt2; parsed it takes up to twenty times as much memory."""
MAX_JSON_DEPTH = 100
MAX_RANK = 64
"""Axes of a tensor."""
MAX_AXIS = 2**48
"""Elements along one axis."""
MAX_FOLDER_ENTRIES = 10_000


class Place:
    """A folder of untrusted files, or one file seen as a folder that holds nothing else.

    Files are found by name; one that is reached through a symlink leaving the folder is refused. The Hugging Face
    cache is the exception it needs: a snapshot's links may point into the blobs of the same repository.
    """

    def __init__(self, path: Path, only: str | None = None) -> None:
        """`only` names the one file of the folder that counts."""
        self.path = path
        self._only = only
        self._root = path.resolve()
        parent = self._root.parent
        if parent.name == "snapshots" and parent.parent.name.startswith("models--"):
            self._root = parent.parent

    def file(self, name: str) -> Path | None:
        """The regular file `name` (may hold "/"), or None. Raises UnsafeModel when it lies outside the folder."""
        if self._only is not None and name != self._only:
            return None
        return self.beside(name)

    def beside(self, name: str) -> Path | None:
        """Like `file`, also where the place is one file: for what a model file names as its own (external weights)."""
        path = self.path / name
        try:
            real = path.resolve(strict=True)
        except FileNotFoundError:
            return None
        except (OSError, RuntimeError) as error:  # a symlink that leads to itself
            raise InvalidModel(f"can't open {path}: {error}") from error
        if not real.is_relative_to(self._root):
            raise UnsafeModel(f"{path} is a symlink out of its folder, to {real}; copy the file into the folder")
        mode = real.stat().st_mode
        if stat.S_ISDIR(mode):
            return None
        if not stat.S_ISREG(mode):
            raise UnsafeModel(f"{path} is not a regular file; a model folder holds only regular files")
        return real

    def names(self, under: str = "") -> list[str]:
        """The names of the entries of one folder, sorted, hidden ones aside; folders end with "/"."""
        if self._only is not None:
            return [self._only] if not under else []
        folder = self.path / under
        if not folder.resolve().is_relative_to(self._root):
            raise UnsafeModel(f"{folder} is a symlink out of its folder; copy the files into the folder")
        out: list[str] = []
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                out.append(entry.name + ("/" if entry.is_dir() else ""))
                if len(out) > MAX_FOLDER_ENTRIES:
                    raise InvalidModel(f"{folder} holds over {MAX_FOLDER_ENTRIES:,} entries; name the model file itself")
        return sorted(out)

    def need(self, name: str, why: str) -> Path:
        """The regular file `name`, else InvalidModel that says `why` it must be there."""
        path = self.file(name)
        if path is None:
            raise InvalidModel(f"{self.path} has no {name}: {why}")
        return path


def opened(path: Path) -> Path:
    """`path` made absolute, a link that the user named followed; NotFound where nothing is there.

    Devices, pipes and sockets are refused. Links in the Hugging Face cache keep their names: what they lead to has none.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise NotFound(f"no file or folder '{path}'; give a path or hf:org/name") from error
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise InvalidModel(f"{path} is neither a file nor a folder; give a model file or folder")
    return path.resolve() if path.is_symlink() and path.absolute().parent.parent.name != "snapshots" else path.absolute()


def head(path: Path, count: int = 16) -> bytes:
    """The first `count` bytes."""
    try:
        with path.open("rb") as stream:
            return stream.read(count)
    except OSError as error:
        raise InvalidModel(f"can't read {path}: {error.strerror}") from error


def read_bounded(path: Path, limit: int) -> bytes:
    """All bytes of a file of at most `limit` bytes."""
    size = path.stat().st_size
    if size > limit:
        raise InvalidModel(
            f"{path} has {size:,} bytes where at most {limit:,} are taken; it is not what its name says: fetch it again"
        )
    with path.open("rb") as stream:
        data = stream.read(limit + 1)
    if len(data) > limit:
        raise InvalidModel(f"{path} grew beyond {limit:,} bytes while it was read")
    return data


def parse_json(data: bytes, what: str, max_depth: int = MAX_JSON_DEPTH) -> Any:
    """Parsed JSON of bounded depth. The caller has bounded the size. Raises InvalidModel naming `what`."""
    try:
        value = json.loads(data)
    except RecursionError:
        raise InvalidModel(f"{what} is nested too deeply; give a file of at most {max_depth} levels") from None
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError, integers of too many digits
        raise InvalidModel(f"{what} is not valid JSON ({error}); fetch or export it again") from error
    level: list[Any] = [value]
    for _ in range(max_depth):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer if isinstance(outer, list) else ())
            if isinstance(inner, dict | list)
        ]
        if not level:
            return value
    raise InvalidModel(f"{what} is nested too deeply; give a file of at most {max_depth} levels")


def read_json_object(path: Path, limit: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """A JSON file whose outermost value is an object."""
    value = parse_json(read_bounded(path, limit), str(path))
    if not isinstance(value, dict):
        raise InvalidModel(f"{path} holds a JSON {type(value).__name__} where an object is needed")
    return value


def commonest(counts: Mapping[str, int]) -> str | None:
    """The key with the largest count."""
    return Counter(counts).most_common(1)[0][0] if counts else None
