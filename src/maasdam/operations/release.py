"""From a registered version to a served one: show, promote, deploy, delete, carry between machines, and describe it.

Knows the catalog and the store together. Refuses to know how it looks on a terminal.
"""

from __future__ import annotations

import json
import shutil
import tarfile
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any

from maasdam.artifacts.catalog import Version
from maasdam.artifacts.names import check_name
from maasdam.artifacts.store import MANIFEST
from maasdam.core import Signature, split_name
from maasdam.errors import Conflict, InvalidInput, InvalidModel
from maasdam.operations.workspace import Workspace

EXPORT = "version.json"
MOST_MEMBERS = 10_000
MOST_BYTES = 200 * 1024**3


def listed(workspace: Workspace) -> list[dict[str, Any]]:
    """`models list --json`: one row a version."""
    names = ("name", "version", "task", "format", "engine", "digest", "aliases", "deployed")
    return [{n: getattr(v, "model" if n == "name" else n) for n in names} for v in workspace.catalog.versions()]


def shown(workspace: Workspace, name: str) -> dict[str, Any]:
    """One version whole: its report, passes, lineage and files."""
    version = workspace.catalog.resolve(name)
    artifact = workspace.store.get(version.digest)
    signature = artifact.signature.to_json() if artifact.signature else None
    lineage = [artifact.digest, *artifact.parents]
    extra = {"signature": signature, "settings": dict(artifact.settings), "lineage": lineage, "path": str(artifact.path)}
    return asdict(version) | {"created_at": version.created_at.isoformat()} | extra


def delete(workspace: Workspace, name: str) -> list[str]:
    """Delete NAME:VERSION or NAME with all versions; returns the digests whose files went too."""
    free = set(workspace.catalog.delete(name))
    keep = set(workspace.store.digests()) - free
    used = {v.digest for v in workspace.catalog.versions()}
    return workspace.store.collect(keep | used)


def status(workspace: Workspace) -> list[dict[str, Any]]:
    """Desired state with the version each name stands for now."""
    rows = []
    for deployment in workspace.catalog.deployments():
        name = deployment.model if deployment.version is None else f"{deployment.model}:{deployment.version}"
        version = workspace.catalog.resolve(name)
        facts = {"version": version.version, "task": version.task, "format": version.format, "engine": version.engine}
        rows.append(asdict(deployment) | facts | {"follows": deployment.version is None})
    return rows


def export(workspace: Workspace, name: str, path: Path) -> Path:
    """Write one version — files, report, passes — to a .tar at `path`. Raises Conflict when `path` exists."""
    version = workspace.catalog.resolve(name)
    workspace.store.check(version.digest)
    artifact = workspace.store.get(version.digest)
    if path.exists():
        raise Conflict(f"{path} exists; name another file")
    facts = {key: getattr(version, key) for key in ("model", "version", "digest", "source", "recipe", "report", "passes")}
    temporary = path.with_name(path.name + ".part")
    try:
        with workspace.store.workspace() as folder, tarfile.open(temporary, "w") as tar:
            (folder / EXPORT).write_text(json.dumps(facts))
            tar.add(folder / EXPORT, EXPORT)
            tar.add(artifact.path, "artifact")
        temporary.replace(path)
    except OSError as error:
        raise InvalidInput(f"can't write {path}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def import_(workspace: Workspace, path: Path, name: str | None = None) -> Version:
    """Register the version in a .tar made by `export`, as the next version of its name (or of `name`).

    The files must hash to the digest they were exported with. Raises InvalidModel for anything else.
    """
    with workspace.store.workspace() as folder:
        try:
            with tarfile.open(path, "r:") as tar:
                _check_members(tar, path)
                tar.extractall(folder, filter="data")
            facts = json.loads((folder / EXPORT).read_text())
            described = json.loads((folder / "artifact" / MANIFEST).read_text())
            signature = Signature.from_json(described["signature"]) if described["signature"] else None
            check_name(name or facts["model"])
            artifact = workspace.store.add(
                folder / "artifact",
                signature=signature,
                parents=tuple(described["parents"]),
                **{key: described[key] for key in ("format", "layout", "task", "engine", "settings")},
            )
        except (OSError, tarfile.TarError, ValueError, KeyError, TypeError) as error:
            raise InvalidModel(f"{path} is not an export of Maasdam: {error}; make one with: maasdam models export") from error
    if artifact.digest != facts["digest"]:
        raise InvalidModel(f"{path} was changed since its export: its files are {artifact.digest}, not {facts['digest']}")
    return workspace.catalog.register(
        name or facts["model"],
        artifact,
        source=facts["source"],
        recipe=facts["recipe"],
        report=facts["report"],
        passes=facts["passes"],
    )


def _check_members(tar: tarfile.TarFile, path: Path) -> None:
    total = 0
    for count, member in enumerate(tar):
        total += member.size
        parts = PurePosixPath(member.name).parts
        if not (member.isfile() or member.isdir()) or ".." in parts or member.name.startswith("/"):
            raise InvalidModel(f"{path}: member '{member.name}' is not a plain file inside it; nothing was imported")
        if count > MOST_MEMBERS or total > MOST_BYTES or total > shutil.disk_usage(path.parent).free + path.stat().st_size:
            raise InvalidModel(f"{path} holds more than fits; nothing was imported")


def card(workspace: Workspace, name: str) -> str:
    """A Hugging Face model card of one version, from what was measured."""
    version = workspace.catalog.resolve(name)
    model, _, _ = split_name(name)
    head = ["---", "library_name: maasdam"]
    head += [f"pipeline_tag: {version.task}"] if version.task else []
    head += ["---", "", f"# {model}:{version.version}", ""]
    passes = " → ".join(step["use"] for step in version.passes) or "none"
    lines = [
        f"Built from `{Path(version.source).name}` with the recipe `{version.recipe}` (passes: {passes}).",
        f"Format `{version.format}`, engine `{version.engine}`, digest `{version.digest}`, {version.created_at:%Y-%m-%d}.",
        "",
    ]
    report = version.report
    if not report:
        return "\n".join([*head, *lines, "Nothing was measured.", ""])
    verdict = "passed" if report["passed"] else "FAILED: " + "; ".join(report["failures"])
    accuracy, size, latency = report["accuracy"], report["size_bytes"], report["latency_ms"]
    energy = report["energy_joules"]
    rows = [
        ("metric", "reference", "this version"),
        ("---", "---", "---"),
        (f"{accuracy['metric']} ({accuracy['examples']} examples)", accuracy["reference"], accuracy["candidate"]),
        ("size, bytes", size["reference"], size["candidate"]),
        ("latency p50, ms", latency["reference"]["p50"], latency["candidate"]["p50"]),
        ("latency p99, ms", latency["reference"]["p99"], latency["candidate"]["p99"]),
        (f"joules per item ({energy['method']})", energy["reference"], energy["candidate"]),
    ]
    table = ["| " + " | ".join(_said(cell) for cell in row) + " |" for row in rows]
    return "\n".join([*head, *lines, f"Verification {verdict}.", "", *table, ""])


def _said(value: Any) -> str:
    return "not measured" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
