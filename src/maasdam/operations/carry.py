"""Carry one version between machines as a .tar. Knows archives, and that one may be hostile; runs nothing in it.

version.json      what the catalog knew: name, source, recipe, report, passes, digest
artifact/…        the files of the artifact, with artifact.json
"""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from maasdam.artifacts.catalog import Version
from maasdam.artifacts.names import check_name
from maasdam.artifacts.store import MANIFEST
from maasdam.core import FORMATS, Artifact, Signature
from maasdam.errors import Conflict, InvalidModel, NotFound, StorageFailure, UnsafeModel, Unsupported
from maasdam.operations.workspace import Workspace
from maasdam.serving.upstreams.place import UPSTREAM
from maasdam.tasks import custom_code
from maasdam.tasks.custom_code import CODE

FACTS = "version.json"
CARRIED = ("model", "version", "digest", "source", "recipe", "report", "passes")
MOST_MEMBERS = 10_000
MOST_FACTS_BYTES = 64 * 1024**2
MOST_HEADER_BYTES = 1024**2
"""Of a member's extended header, which the reader of archives holds whole in memory."""
_EXTENDED = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


def export(workspace: Workspace, name: str, path: Path) -> Path:
    """Write one version (files, report, passes) to a .tar at `path`; the same version gives the same bytes.

    Raises Conflict when `path` exists, InvalidModel when the files are not what they were, StorageFailure.
    """
    version = workspace.catalog.resolve(name)
    if version.engine == UPSTREAM:  # nor is one imported: whose address and key's name it would hold is not known
        raise Unsupported(f"{version.model}:{version.version} is run by another server; deploy it there too, with --upstream")
    workspace.store.check(version.digest)
    artifact = workspace.store.get(version.digest)
    if path.exists():
        raise Conflict(f"{path} exists; name another file")
    temporary = path.with_name(path.name + ".part")
    try:
        with workspace.store.workspace() as folder:
            (folder / FACTS).write_text(json.dumps({key: getattr(version, key) for key in CARRIED}, indent=1))
            with tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as tar:
                tar.add(folder / FACTS, FACTS, filter=_nameless)
                for file in sorted(artifact.path.rglob("*")):
                    if file.is_file():
                        tar.add(file, f"artifact/{file.relative_to(artifact.path).as_posix()}", filter=_nameless)
        workspace.shared(temporary)
        temporary.replace(path)
    except OSError as error:
        raise StorageFailure(f"can't write {path}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def import_(workspace: Workspace, path: Path, name: str | None = None, *, trust: bool = False) -> Version:
    """Register the version in a .tar made by `export`, as the next version of its name (or of `name`).

    The files must hash to the digest they were exported with, and must be what any model given to `build` must be:
    what could run code when loaded is refused; `trust` lifts what it lifts there. The report is kept as it came: it is
    as true as whoever made the file, so the version counts as unverified until `reverify` made another. Raises NotFound,
    InvalidModel, UnsafeModel, StorageFailure; nothing is kept then.
    """
    if not path.is_file():
        raise NotFound(f"no file {path}; make one with: maasdam models export NAME -o {path.name}")
    with workspace.store.workspace() as folder:
        try:
            _unpack(path, folder, shutil.disk_usage(folder).free)
            facts = _facts(json.loads((folder / FACTS).read_text()), path)
            described = json.loads((folder / "artifact" / MANIFEST).read_text())
            model = name or facts["model"]
            check_name(model)
            artifact = _kept(workspace, folder / "artifact", described, facts["digest"], trust)
        except (OSError, tarfile.TarError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            why = f"{type(error).__name__}: {error}"[:300]
            raise InvalidModel(f"{path} is not an export of Maasdam ({why}); make one with: maasdam models export") from error
    carried = {key: facts[key] for key in ("source", "recipe", "report", "passes")}
    return workspace.catalog.register(model, artifact, **carried, is_imported=True)


class _Member(tarfile.TarInfo):
    """Refuses an extended header that would fill the memory before anything of it is read."""

    def _proc_member(self, tarfile_: tarfile.TarFile) -> tarfile.TarFile:
        if self.type in _EXTENDED and self.size > MOST_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {self.size:,} bytes; at most {MOST_HEADER_BYTES:,} are taken")
        processed: tarfile.TarFile = super()._proc_member(tarfile_)  # type: ignore[misc]  # made to be overridden, by its comment
        return processed


def _unpack(path: Path, folder: Path, room: int) -> None:
    with tarfile.open(path, "r:", tarinfo=_Member) as tar:
        members = _checked(tar, path, room)
        tar.extractall(folder, members, filter="data")


def _checked(tar: tarfile.TarFile, path: Path, room: int) -> list[tarfile.TarInfo]:
    """The members, each a plain file of the two places an export has. Raises InvalidModel, StorageFailure."""
    members: list[tarfile.TarInfo] = []
    names: set[str] = set()
    total = 0
    for member in tar:
        parts = PurePosixPath(member.name).parts
        is_ours = member.name == FACTS or (len(parts) > 1 and parts[0] == "artifact")
        is_plain = member.isreg() and not member.issparse() and "/".join(parts) == member.name and ".." not in parts
        if not (is_ours and is_plain and member.name.isprintable() and "\\" not in member.name):
            raise InvalidModel(f"{path}: '{_printable(member.name)}' is no plain file of an export; nothing was imported")
        if member.name in names:
            raise InvalidModel(f"{path}: '{member.name}' is in it twice; nothing was imported")
        if len(members) >= MOST_MEMBERS or (member.name == FACTS and member.size > MOST_FACTS_BYTES):
            raise InvalidModel(f"{path} holds more than an export does; nothing was imported")
        total += member.size
        if total > room:
            raise StorageFailure(f"{path} unpacks to more than the {room} bytes that are free; make room, or move MAASDAM_HOME")
        names.add(member.name)
        members.append(member)
    return members


def _facts(facts: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    kinds: dict[str, tuple[type, ...]] = {key: (str,) for key in ("model", "digest", "source", "recipe")}
    kinds |= {"report": (dict, type(None)), "passes": (list,)}
    for key, kind in kinds.items():
        if not isinstance(facts[key], kind):
            raise InvalidModel(f"{path}: '{key}' in {FACTS} is no {kind[0].__name__}; export it again")
    report = facts["report"]
    if report is not None and not isinstance(report.get("passed"), bool):
        raise InvalidModel(f"{path}: the report in {FACTS} does not say whether it passed; export it again")
    return facts


def _kept(workspace: Workspace, folder: Path, described: Mapping[str, Any], digest: str, trust: bool) -> Artifact:
    from maasdam.engines import ENGINES

    layout, engine = described["layout"], described["engine"]
    if engine not in ENGINES or layout not in ENGINES[engine].layouts or described["format"] not in FORMATS:
        raise InvalidModel(f"no engine '{engine}' opens the layout '{layout}'; update Maasdam, or export the model again")
    _refuse_unsafe(folder, layout, trust)
    code = folder / CODE
    if code.is_file() and not trust:
        raise UnsafeModel(
            "the model comes with Python code of its own task, which the service would run; pass --trust if you know it"
        )
    artifact = workspace.store.add(
        folder,
        format=described["format"],
        layout=layout,
        task=described["task"],
        engine=engine,
        signature=Signature.from_json(described["signature"]) if described["signature"] else None,
        settings=dict(described["settings"]),
        parents=tuple(str(parent) for parent in described["parents"]),
        expect=digest,
    )
    if (artifact.path / CODE).is_file():
        custom_code.trust(workspace.store.root, (artifact.path / CODE).read_bytes())
    return artifact


def _refuse_unsafe(folder: Path, layout: str, trust: bool) -> None:
    """What `build` would refuse to take is refused here too."""
    from maasdam.sources import inspect

    if layout == "ctranslate2":
        return  # not a layout that sources know: a table of numbers and a vocabulary, read by CTranslate2 without pickles
    inspection = inspect(str(folder), trust=trust)
    if inspection.layout != layout:
        raise InvalidModel(f"its files are '{inspection.layout}' and it says that they are '{layout}'; export the model again")


def _nameless(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Without who and when, so that the same version gives the same bytes."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mtime, member.mode = 0, 0o644
    return member


def _printable(name: str) -> str:
    return "".join(c if c.isprintable() else "\ufffd" for c in name[:200])
