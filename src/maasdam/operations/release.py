"""From a registered version to a served one: list, show, promote, deploy, delete, and say what is deployed and running.

Knows the catalog and the store together. Refuses to know how it looks on a terminal.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from maasdam.artifacts.catalog import Deployment, Version
from maasdam.artifacts.names import UNVERIFIED
from maasdam.artifacts.store import Store
from maasdam.core import Progress, silent
from maasdam.engines import check_options
from maasdam.errors import InvalidModel, NotFound
from maasdam.operations.address import Address, asked, whereabouts
from maasdam.operations.builds import builds
from maasdam.operations.workspace import Workspace
from maasdam.settings import Settings


def listed(workspace: Workspace) -> list[dict[str, Any]]:
    """`models list --json`: one row a version: what was measured, and passed, failed, unverified or imported as its verdict."""
    names = ("name", "version", "task", "format", "engine", "digest", "aliases", "deployed")
    return [
        {n: getattr(v, "model" if n == "name" else n) for n in names} | _measured(v, v.report or {})
        for v in workspace.catalog.versions()
    ]


def _measured(version: Version, report: Mapping[str, Any]) -> dict[str, Any]:
    """Reports may have been made elsewhere: what is not there is None."""
    accuracy, size = (part if isinstance(part := report.get(key), dict) else {} for key in ("accuracy", "size_bytes"))
    verdict = "unverified" if version.passed is None else "passed" if version.passed else "failed"
    if version.imported == UNVERIFIED:
        verdict = "imported"
    return {
        "verdict": verdict,
        "size_bytes": size.get("candidate"),
        "metric": accuracy.get("metric"),
        "value": accuracy.get("candidate"),
    }


def details(workspace: Workspace, name: str) -> dict[str, Any]:
    """One version whole: its report, passes, lineage and files."""
    from maasdam.engines.batching_kept import Findings

    version = workspace.catalog.resolve(name)
    artifact = workspace.store.get(version.digest)
    facts = Findings(workspace.settings.home).told(artifact, threads=workspace.settings.threads).facts() | {
        "created_at": version.created_at.isoformat(),
        "signature": artifact.signature.to_json() if artifact.signature else None,
        "settings": dict(artifact.settings),
        "size_bytes": artifact.size_bytes,
        "lineage": [version.digest, *_ancestors(workspace.store, [version.digest])],
        "path": str(artifact.path),
        "files": sorted(p.relative_to(artifact.path).as_posix() for p in artifact.path.rglob("*") if p.is_file()),
    }
    return asdict(version) | facts


def promote(workspace: Workspace, name: str, alias: str, trust: bool) -> Version:
    """Let NAME@alias be this version; `trust` takes the report of an imported one at its word. Raises VerificationFailed."""
    return workspace.catalog.promote(name, alias, trust)


def rollback(workspace: Workspace, model: str, alias: str) -> Version:
    """Let NAME@alias be the version it was before. Raises NotFound when it was none."""
    return workspace.catalog.rollback(model, alias)


def deploy(workspace: Workspace, name: str, replicas: int, traffic: Mapping[int, float], trust: bool, **how: Any) -> Deployment:
    """Desired state: a running service follows. `how`, and what is raised: see `Catalog.deploy`."""
    check_options(workspace.catalog.resolve(name).engine, how.get("options") or {})
    return workspace.catalog.deploy(name, replicas, traffic or None, trust=trust, **how)


def undeploy(workspace: Workspace, model: str) -> None:
    """Take a name out of the desired state. Raises NotFound when it is not in it."""
    workspace.catalog.undeploy(model)


def delete(workspace: Workspace, name: str) -> list[str]:
    """Delete NAME:VERSION or NAME with all versions; returns the digests whose files went too.

    What a version was made from goes with it, unless another version was made from the same. While a build runs only
    the version's own files go, since the build may take up the rest.
    """
    free = set(workspace.catalog.delete(name))
    store = workspace.store
    with workspace.catalog.held() as used:
        kept = used | set(_ancestors(store, used))
        gone = free - kept
        if not _is_building(workspace):
            origins = free | set(_ancestors(store, free))
            ancestors = {digest: set(_ancestors(store, [digest])) for digest in store.digests()}
            related = {digest for digest, above in ancestors.items() if digest in origins or above & origins}
            gone |= {digest for digest in related - kept if not ancestors[digest] & kept}
        return store.collect(set(store.digests()) - gone)


def checked(workspace: Workspace, progress: Progress = silent) -> dict[str, Any]:
    """Read every stored byte: {"artifacts", "bytes", "damaged": [{"digest", "versions", "reason"}]}."""
    store = workspace.store
    versions: dict[str, list[str]] = {}
    for version in workspace.catalog.versions():
        versions.setdefault(version.digest, []).append(f"{version.model}:{version.version}")
    digests = sorted({*versions, *store.digests()})
    damaged, size = [], 0
    for number, digest in enumerate(digests):
        progress("read the stored files", number, len(digests))
        try:
            size += store.get(digest).size_bytes
            store.check(digest)
        except (InvalidModel, NotFound) as error:
            damaged.append({"digest": digest, "versions": versions.get(digest, []), "reason": str(error)})
    return {"artifacts": len(digests), "bytes": size, "damaged": damaged}


def status(workspace: Workspace) -> list[dict[str, Any]]:
    """Desired state with the version each name stands for now (null where it stands for none any more)."""
    from maasdam.engines.batching_kept import Findings

    findings, rows = Findings(workspace.settings.home), []
    for deployment in workspace.catalog.deployments():
        facts: dict[str, Any] = {}
        name = deployment.model if deployment.version is None else f"{deployment.model}:{deployment.version}"
        try:
            version = workspace.catalog.resolve(name)
            facts = {key: getattr(version, key) for key in ("version", "task", "format", "engine")}
            facts |= findings.told(workspace.store.get(version.digest), threads=workspace.settings.threads).facts()
        except NotFound:
            facts = dict.fromkeys(("version", "task", "format", "engine", "batching", "batching_how")) | facts
        rows.append(asdict(deployment) | facts | {"follows": deployment.version is None})
    return rows


def unfinished(workspace: Workspace) -> list[dict[str, Any]]:
    """Builds that run, and those that were killed and not built again since: `status` shows them, newest first."""
    rows, seen = [], set()
    for build in builds(workspace.catalog, workspace.store):
        if build.state == "running" or (build.state == "interrupted" and build.name not in seen):
            rows.append(asdict(build))
        seen.add(build.name)
    return rows


def running(settings: Settings, key: str | None, seconds: float = 2.0) -> dict[str, Any]:
    """What this home's service says of itself: "state", and "serving" by model.

    It is asked where it says it listens, with the operator's own rights, else at the settings' address with `key`, an API key
    with the scope deploy (a service with --no-auth needs none).
    """
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    set_url = f"unix:{Path(settings.uds).absolute()}" if settings.uds else f"{_scheme(settings)}://{host}:{settings.port}"
    address, own = whereabouts(settings.home), Address(set_url, 0, key or "", settings.tls_cert)
    hint = "set MAASDAM_API_KEY to a key with the scope deploy to see its models"
    for one in [*([address] if address else []), own]:
        answer: dict[str, Any] = {"url": one.url, "state": "running", "serving": None, "hint": None}
        try:
            status, body = asked(one, "/admin/deployments", one.secret, seconds)
            if status in (401, 403):
                if one is address:
                    continue  # another service took the place of one that was killed
                return answer | {"hint": hint}
            if status != 200:
                return answer | {"hint": f"it answered with status {status}"}
            said = json.loads(body)
            serving = {row["model"]: list(row["serving"]) for row in said["deployments"]}
            return answer | {"serving": serving, "memory_budget_bytes": said.get("memory_budget_bytes")}
        except (OSError, http.client.HTTPException, ValueError, TypeError, KeyError):  # nobody, or another program
            continue
    return {"url": own.url, "state": "not running", "serving": None, "hint": "start it with: maasdam serve"}


def _scheme(settings: Settings) -> str:
    return "https" if settings.tls_cert else "http"


def _ancestors(store: Store, digests: Iterable[str]) -> list[str]:
    """What these artifacts were made from, nearest first, as far as the store still knows."""
    ancestors: list[str] = []
    queue = list(digests)
    seen = set(queue)
    while queue:
        try:
            parents = store.get(queue.pop(0)).parents
        except NotFound:
            continue
        new = [parent for parent in dict.fromkeys(parents) if parent not in seen]
        ancestors += new
        queue += new
        seen.update(new)
    return ancestors


def _is_building(workspace: Workspace) -> bool:
    return any(build.state == "running" for build in builds(workspace.catalog, workspace.store))
