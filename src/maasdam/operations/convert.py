"""Conversion alone: source -> another format, proven, then put where the caller wants it.

Knows the order, and that the folder appears whole or not at all. Needs no catalog and no home: it works in a folder of
its own beside the target, which goes away whatever happens; what a killed run left is swept by the next.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from maasdam.children import ChildLimits, run_limited
from maasdam.core import FORMATS, Artifact, Format, Progress, Tensors, silent
from maasdam.errors import Conflict, InvalidInput, MaasdamError, StorageFailure

if TYPE_CHECKING:
    from maasdam.artifacts.store import Store

CERTIFICATE = "certificate.json"


def convert_model(
    source: str,
    to: str,
    out: Path,
    *,
    processor: Path | None = None,
    data: Path | None = None,
    task: str | None = None,
    part: str | None = None,
    trust: bool = False,
    limits: ChildLimits | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Convert `source` (a path or hf:org/name) to the format `to` into the new folder `out`, with its certificate.

    `data` adds real inputs to the comparison; `part` takes one network of a model that generates. Returns {"path",
    "format", "layout", "engine", "task", "signature", "digest", "seconds", "certificate"}. Raises Conflict (`out` is in
    use), InvalidInput, Unsupported (no such direction), VerificationFailed (over tolerance); `out` is then as it was.
    With `limits` the work runs in a process of its own: LimitExceeded, Crashed.
    """
    from maasdam.sources import hub

    if part not in (None, "encoder", "decoder"):
        raise InvalidInput(f"--part is '{part}'; it takes: encoder, decoder")
    if part is not None and data is not None:
        raise InvalidInput(
            "--data are inputs of the whole model; a --part is compared on random ones: leave one of the two out"
        )
    if to not in FORMATS:
        raise InvalidInput(f"--to is '{to}'; it takes: {', '.join(FORMATS)}")
    out = Path(os.path.abspath(Path(out).expanduser()))  # noqa: PTH100 - resolve() would follow a link at `out`
    _check_free(out)
    began = time.perf_counter()
    with _beside(out) as folder:
        try:
            given = (source, to, folder, processor, data, task, part, trust)
            if limits is None:
                candidate, certificate = _proven(*given, progress=progress)
            else:
                if source.startswith(hub.PREFIX):
                    hub.fetch(source)  # however slow the network is: it is no work of the model's
                candidate, certificate = run_limited(_proven, *given, limits=limits, progress=progress)
        except StorageFailure as error:  # the working folder is nobody's business
            raise StorageFailure(str(error).replace(str(folder / "store"), str(out.parent))) from error
        _put(candidate.path, out, certificate)
    signature = candidate.signature
    facts = {name: getattr(candidate, name) for name in ("format", "layout", "engine", "task")}
    facts |= {"signature": signature.to_json() if signature else None, "digest": candidate.digest}
    return {"path": str(out), **facts, "seconds": round(time.perf_counter() - began, 3), "certificate": certificate}


def _proven(
    source: str,
    to: Format,
    folder: Path,
    processor: Path | None,
    data: Path | None,
    task: str | None,
    part: str | None,
    trust: bool,
    progress: Progress,
) -> tuple[Artifact, dict[str, Any]]:
    from maasdam.artifacts.store import Store
    from maasdam.convert import find_direction
    from maasdam.convert.asking import of_one, with_signatures
    from maasdam.convert.networks import Part, take_part
    from maasdam.pipeline.examples import real_inputs
    from maasdam.sources import ingest

    store = Store(folder / "store")
    progress("read the source")
    artifact = ingest(source, store, task=task, processor=processor, trust=trust)
    if part is not None:
        artifact = take_part(artifact, cast(Part, part))
    find_direction(artifact, to)  # a direction that doesn't exist is said before the data are read
    real = real_inputs(artifact, data, progress) if data is not None else []
    candidates = with_signatures(artifact, real)
    for number, each in enumerate(candidates, 1):
        try:
            return _certified(each, to, store, real, progress)
        except MaasdamError:
            if number < len(candidates):
                continue
            if part is None and (single := of_one(each)) is not None:
                return _certified(single, to, store, real, progress)
            raise
    raise AssertionError("asked gives at least one")


def _certified(
    artifact: Artifact, to: Format, store: Store, real: Sequence[Tensors], progress: Progress
) -> tuple[Artifact, dict[str, Any]]:
    from maasdam.convert import convert
    from maasdam.convert.directions.openvino_file import hold_precision
    from maasdam.convert.proof.certificate import certify

    began = time.perf_counter()
    with store.workspace() as work:
        files = work / "files"
        files.mkdir()
        made = convert(artifact, to, files, progress=progress)
        if made.layout == "ir":  # somebody else may open it, with nothing said
            hold_precision(files)
        candidate = store.add_as(files, made, artifact.task, artifact.digest)
    converted = time.perf_counter()
    certificate = certify(artifact, candidate, inputs=real, progress=progress).to_json()
    seconds = {"convert": round(converted - began, 3), "certify": round(time.perf_counter() - converted, 3)}
    return candidate, certificate | {"seconds": seconds}


def _check_free(out: Path) -> None:
    """Raise Conflict unless `out` is new or an empty folder, InvalidInput when it can't be made."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise Conflict(f"{out} is there already and is no folder; name a new one with -o")
    if out.is_dir() and any(out.iterdir()):
        raise Conflict(f"{out} is there already and holds files; name a new folder with -o, or empty it")
    if out.parent.exists() and not out.parent.is_dir():
        raise InvalidInput(f"{out.parent} is no folder; name another with -o")
    if not out.parent.is_dir():
        raise InvalidInput(f"there is no folder {out.parent}; make it first")


@contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """A working folder on the file system of `out`, removed afterwards; those of dead processes are removed first."""
    _sweep(out)
    folder = out.parent / f".{out.name}.partial-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    try:
        folder.mkdir()
    except OSError as error:
        raise InvalidInput(f"can't write to {out.parent}: {error.strerror}; name another folder with -o") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sweep(out: Path) -> None:
    import psutil

    for left in out.parent.glob(f".{out.name}.partial-*-*"):
        pid = left.name.rsplit("-", 2)[1]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(left, ignore_errors=True)


def _put(made: Path, out: Path, certificate: dict[str, Any]) -> None:
    """Add the certificate and let the folder appear by one rename, its bytes already on disk."""
    from maasdam.artifacts.store import MANIFEST, sync

    try:
        (made / MANIFEST).unlink()
        (made / CERTIFICATE).write_text(json.dumps(certificate, indent=2) + "\n")
        for path in (made / CERTIFICATE, made):
            sync(path)
        made.rename(out)  # onto nothing or an empty folder
        sync(out.parent)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise Conflict(f"{out} was filled by somebody else in the meantime; name a new folder with -o") from error
        raise _disk_error(error, out) from error


def _disk_error(error: OSError, out: Path) -> MaasdamError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFailure(f"the disk of {out.parent} is full; nothing was written. Free some space and run it again")
    return StorageFailure(f"can't write {out}: {error}")
