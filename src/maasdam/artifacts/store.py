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
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout

from maasdam.artifacts.produced import Produced
from maasdam.core import Artifact, Format, Layout, Signature
from maasdam.errors import InvalidModel, MaasdamError, NotFound, StorageFailure

MANIFEST = "artifact.json"
DESCRIBED = ("format", "layout", "task", "engine", "signature", "settings")
"""What a digest is over, beside the files."""
BLOCK = 1024 * 1024
NOTHING_LEFT_BYTES = 64 * 1024
"""Work that breaks with less than this left on the disk broke for that."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Store:
    """All artifacts below one folder. Safe for several processes at once."""

    def __init__(self, root: Path) -> None:
        """Open the store at `root`, made if missing; sweeps work of processes that are gone."""
        self.root = root
        self._proven: dict[str, Proof] = {}
        """Digests whose bytes were hashed by this process, with what the system said of the files then."""
        try:
            for part in ("sha256", "cache", "locks", "tmp"):
                (root / part).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageFailure(f"can't open the artifact store at {root}: {error}") from error
        self._sweep()

    @contextmanager
    def workspace(self) -> Iterator[Path]:
        """A fresh folder on the store's file system, removed afterwards whatever happens.

        Whatever breaks inside because the disk is full comes out as StorageFailure: libraries say it in ways of their own.
        """
        folder = self.root / "tmp" / uuid.uuid4().hex
        owner = _owner_of(folder)
        try:
            with FileLock(self.root / "tmp.lock"):  # a sweep must not come between the lock and the folder
                owner.acquire()
                folder.mkdir()
        except OSError as error:
            owner.release()
            raise _disk_error(error, self.root) from error
        try:
            yield folder
        except StorageFailure:
            raise
        except Exception as error:
            if _is_full(error, self.root):
                raise _full(self.root) from error
            raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            Path(owner.lock_file).unlink(missing_ok=True)
            owner.release()

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
        expect: str | None = None,
    ) -> Artifact:
        """Keep the files in `folder` as an artifact; the same content gives the one there is.

        A folder of `workspace` is moved away, any other is copied. With `expect`, a digest, other content is refused.
        Raises InvalidModel for symbolic links and other things that are not plain files, StorageFailure for a full disk.
        """
        described = {
            "format": format,
            "layout": layout,
            "task": task,
            "engine": engine,
            "signature": signature.to_json() if signature else None,
            "settings": dict(settings or {}),
        }
        if not folder.is_dir():
            raise InvalidModel(f"nothing to keep: {folder} is no folder")
        try:
            if not folder.resolve().is_relative_to((self.root / "tmp").resolve()):
                with self.workspace() as work:
                    for name, path in _plain_files(folder):  # not copytree: it hides that the disk is full
                        copy = work / "copy" / name
                        copy.parent.mkdir(parents=True, exist_ok=True)
                        shutil.copyfile(path, copy)
                    return self._keep(work / "copy", described, parents, expect)
            return self._keep(folder, described, parents, expect)
        except OSError as error:
            raise _disk_error(error, self.root) from error

    def add_as(self, folder: Path, what: Artifact | Produced, task: str | None, *parents: str) -> Artifact:
        """`add` with the facts of what was made, or of an artifact that was changed."""
        signature, settings = what.signature, what.settings
        return self.add(
            folder, format=what.format, layout=what.layout, task=task, engine=what.engine, signature=signature,
            settings=settings, parents=parents,
        )  # fmt: skip

    def _keep(self, folder: Path, described: dict[str, Any], parents: tuple[str, ...], expect: str | None) -> Artifact:
        files = _hash_files(folder) if folder.is_dir() else []
        if not files:
            raise InvalidModel(f"nothing to keep: {folder.name} holds no files")
        digest = _digest(files, described)
        if expect is not None and digest != expect:
            raise InvalidModel(f"the files of {expect} are not what they were: they are {digest}; nothing was kept")
        place = self._place(digest)
        self._make_way(digest)
        if not (place / MANIFEST).is_file():
            (folder / MANIFEST).unlink(missing_ok=True)
            manifest = described | {"digest": digest, "files": files, "parents": list(parents)}
            _write_durably(folder / MANIFEST, json.dumps(manifest, indent=1))
            self._move(folder, place)
        return self.get(digest)

    def get(self, digest: str) -> Artifact:
        """The artifact of this digest. Raises NotFound."""
        place = self._place(digest)
        try:
            manifest = json.loads((place / MANIFEST).read_text())
            return self._described(manifest, place)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise NotFound(f"no artifact '{digest}' in {self.root}; build it again") from error

    def _described(self, manifest: Mapping[str, Any], place: Path) -> Artifact:
        plain = {name: manifest[name] for name in ("digest", *DESCRIBED) if name != "signature"}
        signature = Signature.from_json(manifest["signature"]) if manifest["signature"] else None
        size = sum(file["size"] for file in manifest["files"])
        return Artifact(path=place, signature=signature, size_bytes=size, parents=tuple(manifest["parents"]), **plain)

    def intact(self, digest: str) -> Artifact:
        """The artifact, to be loaded: its bytes are what they were. Raises NotFound, InvalidModel.

        They are hashed the first time in this process, and again whenever a file's inode, size or times have changed.
        """
        artifact = self.get(digest)
        if self._proven.get(digest) != _stamps(artifact.path):
            self.check(digest)
        return artifact

    def proof(self, digest: str) -> Proof:
        """That the bytes are what they were, for another process of ours to `believe`. Raises as `intact`."""
        self.intact(digest)
        return self._proven[digest]

    def believe(self, digest: str, proof: Proof) -> None:
        """Another process hashed the bytes: they are hashed again only if their files have changed since."""
        self._proven[digest] = proof

    def check(self, digest: str) -> None:
        """Hash the bytes again. Raises InvalidModel when they are not what they were."""
        place = self.get(digest).path
        stamps = _stamps(place)
        try:
            described = json.loads((place / MANIFEST).read_text())
            now = _digest(_hash_files(place), {key: described[key] for key in DESCRIBED})
        except (OSError, ValueError, KeyError) as error:
            self._proven.pop(digest, None)
            raise InvalidModel(f"the files of artifact {digest} can't be read ({error}); {_AGAIN}") from error
        if now != digest:
            self._proven.pop(digest, None)
            raise InvalidModel(f"artifact {digest} has changed on disk (now {now}); {_AGAIN}")
        self._proven[digest] = stamps

    def _make_way(self, digest: str) -> None:
        """Take an artifact that is not what it was out of the place where its bytes are about to be put again."""
        place = self._place(digest)
        if not (place / MANIFEST).is_file():
            return
        try:
            self.intact(digest)
        except (InvalidModel, NotFound):
            with self.workspace() as trash:
                try:
                    place.rename(trash / "changed")
                except FileNotFoundError:
                    return  # another process does the same

    def cached(self, key: str) -> tuple[Artifact, dict[str, Any]] | None:
        """What a pass with this key made before, and the facts it reported; nothing where its bytes have changed since."""
        try:
            entry = json.loads((self.root / "cache" / f"{_file_name(key)}.json").read_text())
            return self.intact(entry["digest"]), entry["facts"]
        except (OSError, json.JSONDecodeError, KeyError, NotFound, InvalidModel):
            return None

    def remember(self, key: str, artifact: Artifact, facts: Mapping[str, Any]) -> None:
        """Note that the pass with this key made `artifact`."""
        path = self.root / "cache" / f"{_file_name(key)}.json"
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
        lock = FileLock(self._lock_file(key))
        try:
            lock.acquire()
        except OSError as error:
            raise _disk_error(error, self.root) from error
        try:
            yield
        finally:
            lock.release()

    def is_locked(self, key: str) -> bool | None:
        """Whether somebody holds the lock of `key` now; None where nobody here ever did."""
        path = self._lock_file(key)
        if not path.is_file():
            return None
        try:
            with FileLock(path, blocking=False):
                return False
        except Timeout:
            return True
        except OSError as error:
            raise _disk_error(error, self.root) from error

    def _lock_file(self, key: str) -> Path:
        return self.root / "locks" / f"{_file_name(key)}.lock"

    def collect(self, keep: set[str]) -> list[str]:
        """Delete every artifact not in `keep`; returns their digests."""
        gone = []
        with self.workspace() as trash:  # out of sight by one rename, then deleted
            for digest in self.digests():
                if digest in keep:
                    continue
                try:
                    self._place(digest).rename(trash / digest.partition(":")[2])
                except FileNotFoundError:
                    continue  # another process collects too
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
        for path in folder.rglob("*"):
            sync(path)
        sync(folder)
        if not place.parent.is_dir():
            place.parent.mkdir(exist_ok=True)
            sync(place.parent.parent)
        try:
            folder.rename(place)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            if not (place / MANIFEST).is_file():  # not ours: an artifact always has its manifest
                raise
            shutil.rmtree(folder, ignore_errors=True)  # another process was first with the same content
        sync(place.parent)

    def _sweep(self) -> None:
        """Remove what processes that are gone left behind: the system freed their locks."""
        try:
            with FileLock(self.root / "tmp.lock", blocking=False):
                for folder in {path.with_suffix("") for path in (self.root / "tmp").iterdir()}:
                    owner = _owner_of(folder)
                    try:
                        owner.acquire(blocking=False)
                    except Timeout:
                        continue
                    shutil.rmtree(folder, ignore_errors=True)
                    Path(owner.lock_file).unlink(missing_ok=True)
                    owner.release()
        except Timeout:
            return  # another process sweeps, or begins


_AGAIN = "build or import the model again, which puts the files right"
_Stamp = tuple[str, int, int, int, int]
Proof = tuple[_Stamp, ...]
"""What the system said of an artifact's files when their bytes were hashed."""


def _stamps(place: Path) -> Proof:
    """Name, inode, size, mtime and ctime of each file: what changes when bytes are written."""
    out = []
    for path in sorted(place.rglob("*")):
        try:
            status = path.lstat()
        except OSError:
            continue  # it goes away just now: the hash will tell
        if not path.is_dir():
            times = (status.st_mtime_ns, status.st_ctime_ns)
            out.append((path.relative_to(place).as_posix(), status.st_ino, status.st_size, *times))
    return tuple(out)


def _owner_of(folder: Path) -> BaseFileLock:
    return FileLock(f"{folder}.lock", thread_local=False)


def file_digests(artifact: Artifact) -> dict[str, str]:
    """sha256 by file, as the artifact's manifest says; empty for one that is in no store."""
    manifest = artifact.path / MANIFEST
    return {f["name"]: f["sha256"] for f in json.loads(manifest.read_text())["files"]} if manifest.is_file() else {}


def _plain_files(folder: Path) -> list[tuple[str, Path]]:
    """Every file by its name in the folder, save the manifest. Raises InvalidModel for anything but files and folders."""
    files = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise InvalidModel(f"'{name}' is a link or a special file; artifacts hold plain files only")
        if path.is_file() and name != MANIFEST:
            files.append((name, path))
    return files


def _hash_files(folder: Path) -> list[dict[str, Any]]:
    files = []
    for name, path in _plain_files(folder):
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


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk. Raises OSError."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _file_name(key: str) -> str:
    """The key itself where it can name a file, else its hash."""
    return key if re.fullmatch(r"[a-zA-Z0-9_-]{1,128}", key) else hashlib.sha256(key.encode()).hexdigest()


def _is_full(error: Exception, root: Path) -> bool:
    """Whether an error in the middle of writing is one of a full disk: by its number, else by what is left on the disk."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _FULL:
            return True
        cause = cause.__cause__ or cause.__context__
    try:
        return shutil.disk_usage(root).free < NOTHING_LEFT_BYTES
    except OSError:
        return False


def _full(root: Path) -> StorageFailure:
    return StorageFailure(f"the disk of {root} is full; nothing was kept. Free some space and run it again")


def _disk_error(error: OSError, root: Path) -> MaasdamError:
    if error.errno in _FULL:
        return _full(root)
    return StorageFailure(f"can't write to the artifact store at {root}: {error}")
