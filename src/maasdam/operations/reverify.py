"""Verify a registered version again, here: what came from elsewhere brings a report of whoever made it.

Knows the order. Refuses to know measuring. The work runs in a process that may die of the model.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from maasdam.artifacts.catalog import built_here
from maasdam.artifacts.names import UNVERIFIED
from maasdam.children import ChildLimits, run_limited
from maasdam.core import Progress, silent
from maasdam.errors import InvalidInput

if TYPE_CHECKING:
    from maasdam.artifacts.catalog import Version
    from maasdam.operations.workspace import Workspace
    from maasdam.settings import Settings

MOST_BELOW = 0.02
"""A metric may be so much worse than the report that came with the model says: other examples, another processor."""
BY_ITSELF = (
    "it was imported: what it was made from is not here, so it is compared with itself, and its figures are of this machine"
)


def reverify(
    workspace: Workspace,
    name: str,
    *,
    data: Path | None = None,
    limits: ChildLimits | None = None,
    progress: Progress = silent,
) -> Version:
    """Measure NAME:VERSION here and let that be its report. Its files, engine and answers are tried; with `data` its metric.

    With `limits` the work runs in a process of its own. What failed where it was made, and a metric worse than the report
    that came with it claims, are failures in the new one. Raises NotFound, InvalidInput (it was built here), InvalidModel
    (changed or broken files), VerificationFailed (it does not run), LimitExceeded, Crashed; the version is as it was then.
    """
    version = workspace.catalog.resolve(name)
    if version.imported is None:
        raise built_here(version.model, version.version)
    if data is not None and not data.exists():
        raise InvalidInput(f"--data: nothing is at {data}")
    given = (workspace.store.root, workspace.settings, version.digest, data)
    measured = run_limited(_measured, *given, limits=limits, progress=progress) if limits else _measured(*given, progress)
    return workspace.catalog.verified(f"{version.model}:{version.version}", _compared(measured, _claimed(version)))


def _measured(root: Path, settings: Settings, digest: str, data: Path | None, progress: Progress) -> dict[str, Any]:
    from maasdam.artifacts.store import Store
    from maasdam.pipeline.conditions import Conditions
    from maasdam.pipeline.examples import PreparedExamples, evaluation_examples
    from maasdam.pipeline.recipe import Limits
    from maasdam.pipeline.verify import verify
    from maasdam.telemetry.energy import open_meter

    progress("read the stored files")
    artifact = Store(root).intact(digest)
    examples = PreparedExamples([] if data is None else evaluation_examples(artifact, data))
    meter = open_meter(settings.watts_per_core)
    how = Conditions(
        threads=settings.threads,
        measure_seconds=settings.measure_seconds,
        joules=meter.joules,
        progress=progress,
        notes=(BY_ITSELF,),
    )
    return verify(artifact, (artifact,), artifact, examples, Limits(), how).to_json()


def _claimed(version: Version) -> dict[str, Any]:
    """What the report that came with a version says; one that was made here since has kept it."""
    report = version.report or {}
    kept = None if version.imported == UNVERIFIED else report.get("claimed")
    claims = kept if isinstance(kept, dict) else report
    return {key: claims[key] for key in ("passed", "failures", "accuracy") if key in claims}


def _compared(report: dict[str, Any], claimed: dict[str, Any]) -> dict[str, Any]:
    """The new report, failed where the old one failed, or says a better metric: alone, a model has nothing to fall short of."""
    failures = [*_failed_before(claimed), *_worse(report, claimed)]
    report = report | {"claimed": claimed}
    return report | {"passed": False, "failures": [*report["failures"], *failures]} if failures else report


def _failed_before(claimed: dict[str, Any]) -> list[str]:
    if claimed.get("passed", True) is True:
        return []
    failures = claimed.get("failures")
    reasons = "; ".join(map(str, failures)) if isinstance(failures, list) else ""
    return [f"it failed where it was made: {reasons or 'its report does not say why'}"]


def _worse(report: dict[str, Any], claimed: dict[str, Any]) -> list[str]:
    from maasdam.pipeline.report import drop_of

    now, then = (part if isinstance(part := r.get("accuracy"), dict) else {} for r in (report, claimed))
    metric, value, claim = now.get("metric"), now.get("candidate"), then.get("candidate")
    if metric is None or metric != then.get("metric") or not isinstance(claim, int | float) or value is None:
        return []
    drop = drop_of(metric, float(claim), value)
    if drop is None or drop <= MOST_BELOW:
        return []
    return [f"{metric} is {value:.4g} here, and {claim:.4g} in the report that came with it"]
