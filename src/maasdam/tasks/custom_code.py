"""The code of a user's own task: where it is named, how it is packed beside a model, and that somebody here trusts it.

Knows files, entry points and archives. Never imports or runs what it packs: that is `custom_child`'s, in a process of its own.

    path/to/task.py:ClassName      that file
    path/to/package:ClassName      that folder, which has an __init__.py
    my-task                        what an installed package calls so in the group "maasdam.tasks", with the whole package
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import re
import zipfile
import zlib
from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from maasdam.core import CUSTOM
from maasdam.errors import InvalidInput, InvalidModel, UnsafeModel

CODE = "custom_task.zip"
"""What it is packed into, flat beside the model."""
FACTS = "maasdam_task.json"
"""In the archive: which module and which class."""
GROUP = "maasdam.tasks"
MOST_FILES = 1_000
MOST_BYTES = 64 * 1024 * 1024
TRUSTED = "trusted-code"
"""In a store: a file for each archive that somebody said --trust to on this machine, named by its digest."""
ARTIFACTS = "sha256"
"""In a store: the folder of its artifacts."""
_AT = (1980, 1, 1, 0, 0, 0)
_WORD = re.compile(r"[A-Za-z_]\w*")


def is_named(task: str | None) -> bool:
    """Whether this is no task's name but says where code is."""
    return task is not None and (":" in task or _entry(task) is not None)


def task_name(task: str | None) -> str | None:
    """The task that a model with this code does."""
    return CUSTOM if is_named(task) else task


def offered() -> list[str]:
    """What installed packages offer."""
    return sorted({entry.name for entry in entry_points(group=GROUP)})


def packed(task: str) -> bytes:
    """The archive of the code that is named; the same code gives the same bytes. Raises InvalidInput."""
    entry = _entry(task)
    if entry is not None:
        module, files = entry.module, list(_installed(entry))
        kind = entry.attr
    else:
        where, _, kind = task.rpartition(":")
        path = Path(where).expanduser()
        module, files = path.stem if path.is_file() else path.name, list(_at(path, task))
    if not _WORD.fullmatch(kind):
        raise InvalidInput(f"--task {task}: '{kind:.60}' is no name of a class; write path/to/task.py:ClassName")
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        facts = json.dumps({"name": task if entry else kind, "module": module, "class": kind}).encode()
        for name, data in [(FACTS, facts), *files]:
            archive.writestr(zipfile.ZipInfo(name, _AT), data, zipfile.ZIP_DEFLATED)
    return out.getvalue()


def unpacked(archive: Path, folder: Path) -> tuple[str, str]:
    """Put the code into a folder; its module and class. Raises InvalidModel."""
    try:
        with zipfile.ZipFile(archive) as code:
            members = code.infolist()
            if len(members) > MOST_FILES + 1 or sum(one.file_size for one in members) > 2 * MOST_BYTES:
                raise InvalidModel(f"{CODE} of the model holds more than the code of a task may be; build it again")
            code.extractall(folder)
        facts: Any = json.loads((folder / FACTS).read_text())
        return str(facts["module"]), str(facts["class"])
    except (OSError, ValueError, LookupError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise InvalidModel(f"{CODE} of the model is not as Maasdam writes it ({error}); build it again") from error


def trust(root: Path, code: bytes) -> None:
    """Note in the store at `root` that somebody here said --trust to this code."""
    folder = root / TRUSTED
    folder.mkdir(exist_ok=True)
    (folder / hashlib.sha256(code).hexdigest()).touch()


def check_trusted(folder: Path) -> Path:
    """The archive in a model's folder. Raises InvalidModel where there is none, UnsafeModel where nobody here trusts it."""
    archive = folder / CODE
    if not archive.is_file():
        raise InvalidModel(
            f"the model has no code of its task ({CODE}); build it with --task path/to/task.py:ClassName --trust"
        )
    name = hashlib.sha256(archive.read_bytes()).hexdigest()
    stores = [place.parent for place in (folder, *folder.parents) if place.name == ARTIFACTS]  # anyone may write to /tmp
    if not any((root / TRUSTED / name).is_file() for root in stores):
        raise UnsafeModel(
            "the model comes with Python code of its task, which nobody has trusted on this machine; read it "
            f"({archive}), then build or import the model here with --trust"
        )
    return archive


def _entry(task: str) -> EntryPoint | None:
    return next(iter(entry_points(group=GROUP, name=task)), None)


def _at(path: Path, task: str) -> Iterator[tuple[str, bytes]]:
    if not path.exists():
        has = ", ".join(offered()) or "none"
        raise InvalidInput(f"--task {task}: nothing is at {path}; installed packages offer: {has}")
    if not _WORD.fullmatch(path.stem if path.is_file() else path.name) or (path.is_file() and path.suffix != ".py"):
        raise InvalidInput(f"--task {task}: {path.name} is no name of a Python module; write path/to/task.py:ClassName")
    if path.is_file():
        yield path.name, path.read_bytes()
        return
    if not (path / "__init__.py").is_file():
        raise InvalidInput(f"--task {task}: {path} is a folder without __init__.py; name a file, or a package")
    yield from _package(path)


def _installed(entry: EntryPoint) -> Iterator[tuple[str, bytes]]:
    """The package that a module is in, found without importing it."""
    top = entry.module.partition(".")[0]
    spec = importlib.util.find_spec(top)
    origin = None if spec is None else spec.origin
    if origin is None or not origin.endswith(".py"):
        raise InvalidInput(f"--task {entry.name}: no Python source of '{top}' is installed, which its entry point names")
    path = Path(origin)
    if path.name == "__init__.py":
        yield from _package(path.parent)
    else:
        yield path.name, path.read_bytes()


def _package(folder: Path) -> Iterator[tuple[str, bytes]]:
    total = 0
    found = ((path, path.relative_to(folder).parts) for path in sorted(folder.rglob("*")) if path.is_file())
    files = [path for path, parts in found if not any(part == "__pycache__" or part.startswith(".") for part in parts)]
    for path in files:
        total += path.stat().st_size
        if len(files) > MOST_FILES or total > MOST_BYTES:
            raise InvalidInput(
                f"{folder} is no code of a task alone: it has more than {MOST_FILES:,} files or {MOST_BYTES // 1024**2} MiB"
            )
        yield path.relative_to(folder.parent).as_posix(), path.read_bytes()
