"""Content-addressed files. Knows bytes, digests and locks; refuses to know models, names and databases.

    root/sha256/ab/cdef…/    one artifact: its files and artifact.json; never changed
    root/cache/KEY.json      a pass's key -> the digest it made, and the facts it reported
    root/locks/  root/tmp/   per-key locks; folders of work in progress, swept when their process is gone

An artifact enters by one rename of a folder whose files are already on disk, so a reader sees all of it or nothing.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from maasdam.core import Artifact, Format, Layout, Signature
from maasdam.errors import InvalidModel, MaasdamError, NotFound, ServiceError

MANIFEST = "artifact.json"
BLOCK = 1024 * 1024


class Store:
    """All artifacts below one folder. Safe for several processes at once."""

    def __init__(self, root: Path) -> None:
        """Open the store at `root`, made if missing; sweeps work of processes that are gone."""
        self.root = root
        try:
            for part in ("sha256", "cache", "locks", "tmp"):
                (root / part).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ServiceError(f"can't open the artifact store at {root}: {error}") from error
        self._sweep()

    @contextmanager
    def workspace(self) -> Iterator[Path]:
        """A fresh folder on the store's file system, removed afterwards whatever happens."""
        folder = self.root / "tmp" / f"{os.getpid()}-{_started(os.getpid())}-{uuid.uuid4().hex[:12]}"
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def add(
        self,
        folder: Path,
        *,
        format: Format,
        layout: Layout,
        task: str | None,
        engine: str,
        signature: Signature | None,
        settings: Mapping[str, Any] | None = None,
        parents: tuple[str, ...] = (),
    ) -> Artifact:
        """Keep the files in `folder` (which is moved away) as an artifact; the same content gives the one there is.

        Raises InvalidModel for symbolic links and other things that are not plain files, ServiceError for a full disk.
        """
        described = {
            "format": format,
            "layout": layout,
            "task": task,
            "engine": engine,
            "signature": signature.to_json() if signature else None,
            "settings": dict(settings or {}),
        }
        (folder / MANIFEST).unlink(missing_ok=True)
        try:
            files = _hash_files(folder)
            if not files:
                raise InvalidModel(f"nothing to keep: {folder.name} holds no files")
            digest = _digest(files, described)
            place = self._place(digest)
            if not (place / MANIFEST).is_file():
                manifest = described | {"digest": digest, "files": files, "parents": list(parents)}
                _write_durably(folder / MANIFEST, json.dumps(manifest, indent=1))
                self._move(folder, place)
        except OSError as error:
            raise _disk_error(error, self.root) from error
        return self.get(digest)

    def get(self, digest: str) -> Artifact:
        """The artifact of this digest. Raises NotFound."""
        place = self._place(digest)
        try:
            manifest = json.loads((place / MANIFEST).read_text())
        except (OSError, json.JSONDecodeError) as error:
            raise NotFound(f"no artifact '{digest}' in {self.root}; build it again") from error
        return Artifact(
            digest=manifest["digest"],
            path=place,
            format=manifest["format"],
            layout=manifest["layout"],
            task=manifest["task"],
            engine=manifest["engine"],
            signature=Signature.from_json(manifest["signature"]) if manifest["signature"] else None,
            size_bytes=sum(file["size"] for file in manifest["files"]),
            settings=manifest["settings"],
            parents=tuple(manifest["parents"]),
        )

    def check(self, digest: str) -> None:
        """Hash the bytes again. Raises InvalidModel when they are not what they were."""
        place = self.get(digest).path
        described = json.loads((place / MANIFEST).read_text())
        facts = {key: described[key] for key in ("format", "layout", "task", "engine", "signature", "settings")}
        found = _digest(_hash_files(place), facts)
        if found != digest:
            raise InvalidModel(f"artifact {digest} has changed on disk (now {found}); delete {place} and build it again")

    def cached(self, key: str) -> tuple[Artifact, dict[str, Any]] | None:
        """What a pass with this key made before, and the facts it reported."""
        try:
            entry = json.loads((self.root / "cache" / f"{key}.json").read_text())
            return self.get(entry["digest"]), entry["facts"]
        except (OSError, json.JSONDecodeError, KeyError, NotFound):
            return None

    def remember(self, key: str, artifact: Artifact, facts: Mapping[str, Any]) -> None:
        """Note that the pass with this key made `artifact`."""
        path = self.root / "cache" / f"{key}.json"
        temporary = path.with_suffix(f".{uuid.uuid4().hex[:8]}.tmp")
        try:
            _write_durably(temporary, json.dumps({"digest": artifact.digest, "facts": dict(facts)}))
            temporary.replace(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise _disk_error(error, self.root) from error

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Held by one process and thread at a time; freed by the system when its holder dies."""
        with FileLock(self.root / "locks" / f"{key}.lock"):
            yield

    def collect(self, keep: set[str]) -> list[str]:
        """Delete every artifact not in `keep`; returns their digests."""
        gone = []
        for manifest in sorted(self.root.glob(f"sha256/*/*/{MANIFEST}")):
            digest = f"sha256:{manifest.parent.parent.name}{manifest.parent.name}"
            if digest not in keep:
                with self.workspace() as trash:  # out of sight by one rename, then deleted
                    manifest.parent.rename(trash / "gone")
                gone.append(digest)
        return gone

    def digests(self) -> list[str]:
        """Every artifact there is."""
        return [f"sha256:{m.parent.parent.name}{m.parent.name}" for m in sorted(self.root.glob(f"sha256/*/*/{MANIFEST}"))]

    def _place(self, digest: str) -> Path:
        kind, _, code = digest.partition(":")
        if kind != "sha256" or len(code) != 64 or not set(code) <= set("0123456789abcdef"):
            raise NotFound(f"'{digest}' is not a digest; one looks like sha256:<64 hexadecimal digits>")
        return self.root / "sha256" / code[:2] / code[2:]

    def _move(self, folder: Path, place: Path) -> None:
        place.parent.mkdir(exist_ok=True)
        for path in folder.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        try:
            folder.rename(place)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            if not (place / MANIFEST).is_file():  # not ours: an artifact always has its manifest
                raise
            shutil.rmtree(folder, ignore_errors=True)  # another process was first with the same content
        _sync_folder(place.parent)

    def _sweep(self) -> None:
        for folder in (self.root / "tmp").iterdir():
            pid, _, rest = folder.name.partition("-")
            started, _, _ = rest.partition("-")
            if not pid.isdigit() or _started(int(pid)) != started:
                shutil.rmtree(folder, ignore_errors=True)


def _hash_files(folder: Path) -> list[dict[str, Any]]:
    files = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise InvalidModel(f"'{name}' is a link or a special file; artifacts hold plain files only")
        if path.is_file() and name != MANIFEST:
            code = hashlib.sha256()
            with path.open("rb") as file:
                while block := file.read(BLOCK):
                    code.update(block)
            files.append({"name": name, "size": path.stat().st_size, "sha256": code.hexdigest()})
    return files


def _digest(files: list[dict[str, Any]], described: Mapping[str, Any]) -> str:
    text = json.dumps({"files": files, **described}, sort_keys=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def _write_durably(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _started(pid: int) -> str:
    """When a process began, so that a reused process id is not taken for the old one; "" when there is none."""
    import psutil

    try:
        return f"{psutil.Process(pid).create_time():.2f}"
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return ""


def _disk_error(error: OSError, root: Path) -> MaasdamError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ServiceError(f"the disk of {root} is full; nothing was kept. Free some space and run it again")
    return ServiceError(f"can't write to the artifact store at {root}: {error}")
