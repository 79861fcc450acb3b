"""Bringing a source into the store: checked, then copied, then checked again as copied.

Knows which engine runs a layout as it is, and which tasks are served. Refuses to load a model.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from maasdam.core import (
    CUSTOM,
    PAST,
    TEXT_CLASSIFICATION,
    TEXT_RANKING,
    ZERO_SHOT_IMAGES,
    Artifact,
    Classification,
    ReadPayload,
)
from maasdam.engines import engines_for
from maasdam.errors import InvalidInput, InvalidModel, UnsafeModel, Unsupported
from maasdam.sources.examine import Examined, examine, refuse_blocked
from maasdam.sources.finding import Inspection, Reading
from maasdam.sources.hfconfig import SEES_AND_WRITES
from maasdam.sources.likeness import keep_likeness
from maasdam.tasks import TASKS, custom_code, task_of

if TYPE_CHECKING:
    from maasdam.artifacts.store import Store

_KEY_VERSION = 2
"""Part of the cache key: grows when the same files come to be ingested differently."""


def ingest(
    source: str, store: Store, *, task: str | None = None, processor: Path | None = None, trust: bool = False
) -> Artifact:
    """Copy what serving needs of `source` into the store, in canonical names, and return the artifact.

    `task` is needed only where neither the source nor `processor` names an architecture. The same files come to the
    same artifact, and are copied once. Raises NotFound, InvalidModel, UnsafeModel, Unsupported (no such task), InvalidInput
    (a task that contradicts the architecture; labels that don't fit).
    """
    code = _code(task, trust)
    task = custom_code.task_name(task)
    if task not in (None, *TASKS):
        raise Unsupported(
            f"no task '{task}'; the tasks are: {', '.join(TASKS)}; your own is named path/to/task.py:ClassName, or as an "
            f"installed package calls it ({', '.join(custom_code.offered()) or 'none does'})"
        )
    examined = examine(source, trust=trust, processor=processor)
    refuse_blocked(examined.inspection)
    chosen = _choose_task(task, examined.inspection)
    _check_labels(chosen, examined.inspection)
    if chosen == CUSTOM and code is None:
        code = _code_within(examined, trust)
    if code is not None:
        custom_code.trust(store.root, code)
    key = _key(examined, chosen, code)
    known = store.cached(key)
    if known is not None:
        return known[0]
    with store.workspace() as work:
        folder = work / "files"
        folder.mkdir()
        _copy(examined.files, folder)
        copied = examine(str(folder), trust=trust)  # what is stored is what was looked at
        refuse_blocked(copied.inspection)
        if copied.inspection.layout != examined.inspection.layout or set(copied.files) != set(examined.files):
            raise InvalidModel(f"{source} changed while it was copied; try again")
        if code is not None:
            (folder / custom_code.CODE).write_bytes(code)
        reading = copied.reading
        if chosen == ZERO_SHOT_IMAGES:
            keep_likeness(folder)
        artifact = store.add(
            folder,
            format=reading.format,
            layout=reading.layout,
            task=chosen,
            engine=_engine(reading),
            signature=reading.signature,
            settings=dict(reading.settings),
        )
    store.remember(key, artifact, {"source": source})
    return artifact


def _code(task: str | None, trust: bool) -> bytes | None:
    """The code that --task names, packed; None where it names none. Raises UnsafeModel without --trust."""
    if task is None or not custom_code.is_named(task):
        return None
    if not trust:
        raise UnsafeModel(
            f"--task {task} names Python code, which the service would run; pass --trust if you know what it does"
        )
    return custom_code.packed(task)


def _code_within(examined: Examined, trust: bool) -> bytes:
    """The same of a folder that brings it, as a model does that was built here."""
    path = examined.files.get(custom_code.CODE)
    if path is None:
        raise InvalidInput("--task custom goes with code; name it: --task path/to/task.py:ClassName --trust")
    if not trust:
        raise UnsafeModel(f"{path} is Python code, which the service would run; pass --trust if you know what it does")
    return path.read_bytes()


def _engine(reading: Reading) -> str:
    """What runs it as it is: of GGUF llama.cpp, a process that is asked as other servers are, and no engine of this room's."""
    if reading.layout == "gguf":
        return "llama.cpp"
    return engines_for(reading.layout, has_signature=reading.signature is not None)[0]


def ingested(examined: Examined, store: Store) -> Artifact | None:
    """What the files came to when they were ingested with nothing said of their task; None where they were not."""
    known = store.cached(_key(examined, _choose_task(None, examined.inspection)))
    return known[0] if known else None


def _choose_task(task: str | None, inspection: Inspection) -> str | None:
    """The task asked for, else the architecture's where it is served; None is tensors only, as a bare decoder is."""
    if inspection.signature is not None and any(s.name.startswith(PAST) for s in inspection.signature.inputs):
        if task is not None:
            raise Unsupported(
                f"{inspection.source} is a decoder that takes its cache as tensors, and no engine here does '{task}' with one; "
                "leave --task out to serve its tensors, or build the Hugging Face model that it came from"
            )
        return None
    if inspection.task == SEES_AND_WRITES:
        raise Unsupported(
            f"{inspection.source} is a {inspection.architecture}, which sees pictures and writes text, as no engine here does; "
            "run it on a server that does and deploy that with --upstream URL"
        )
    chosen = task or (inspection.task if inspection.task in TASKS else None)
    if chosen not in (None, ZERO_SHOT_IMAGES) and ReadPayload in task_of(chosen).payloads and inspection.signature is None:
        what = inspection.architecture or "model"
        raise Unsupported(
            f"{inspection.source} is a {what}, which is no encoder of texts that is known here: {chosen} takes one"
        )
    if task is None:
        return chosen
    are_both_scores = {inspection.task, task} == {TEXT_CLASSIFICATION, TEXT_RANKING}  # of one class or of several
    if inspection.task is not None and inspection.task != task and not are_both_scores and task != CUSTOM:
        raise InvalidInput(
            f"{inspection.source} is a {inspection.architecture}, made for {inspection.task}, not '{task}'; leave --task out"
        )
    return task


def _check_labels(task: str | None, inspection: Inspection) -> None:
    """Labels that don't fit would name the wrong classes."""
    if task_of(task).answer is not Classification or inspection.signature is None or inspection.labels is None:
        return
    classes = {spec.shape[1] for spec in inspection.signature.outputs if len(spec.shape) == 2 and spec.shape[1] is not None}
    if classes and inspection.labels not in classes:
        raise InvalidInput(
            f"config.json names {inspection.labels} labels, but the model answers with {max(classes)} classes; "
            "give the --processor folder that belongs to this model"
        )


def _copy(files: Mapping[str, Path], folder: Path) -> None:
    for name, path in sorted(files.items()):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target, follow_symlinks=False)


def _key(examined: Examined, task: str | None, code: bytes | None = None) -> str:
    """Names the files by what the file system says of them: any write changes the change time, which nobody can set."""
    facts = []
    for name, path in sorted(examined.files.items()):
        state = path.stat()
        facts.append([name, str(path), state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns])
    of_code = [] if code is None else [hashlib.sha256(code).hexdigest()]
    text = json.dumps([_KEY_VERSION, task, examined.inspection.layout, facts, *of_code])
    return hashlib.sha256(b"ingest" + text.encode()).hexdigest()
