"""Verify a registered version again, here: what came from elsewhere brings a report of whoever made it.

Knows the order. Refuses to know measuring. The work runs in a process that may die of the model.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from maasdam.children import Limits, run_limited
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
    workspace: Workspace, name: str, *, data: Path | None = None, limits: Limits | None = None, progress: Progress = silent
) -> Version:
    """Measure NAME:VERSION here and let that be its report. Its files, engine and answers are tried; with `data` its metric.

    With `limits` the work runs in a process of its own. A metric worse than the version's former report claims is a
    failure in the new one. Raises NotFound, InvalidModel (changed or broken files), VerificationFailed (it does not run),
    LimitExceeded, Crashed; the version is as it was then.
    """
    version = workspace.catalog.resolve(name)
    if data is not None and not data.exists():
        raise InvalidInput(f"--data: nothing is at {data}")
    given = (workspace.store.root, workspace.settings, version.digest, data)
    measured = run_limited(_measured, *given, limits=limits, progress=progress) if limits else _measured(*given, progress)
    return workspace.catalog.verified(f"{version.model}:{version.version}", _compared(measured, version.report or {}))


def _measured(root: Path, settings: Settings, digest: str, data: Path | None, progress: Progress) -> dict[str, Any]:
    from maasdam.accounts.energy import open_meter
    from maasdam.artifacts.store import Store
    from maasdam.pipeline.conditions import Conditions
    from maasdam.pipeline.examples import PreparedExamples, evaluation_examples
    from maasdam.pipeline.recipe import Limits as Asked
    from maasdam.pipeline.verify import verify

    progress("read the stored files")
    artifact = Store(root).intact(digest)
    examples = PreparedExamples([] if data is None else evaluation_examples(artifact, data))
    meter = open_meter(settings.watts_per_core)
    how = Conditions(threads=settings.threads, joules=meter.joules, progress=progress, notes=(BY_ITSELF,))
    return verify(artifact, (artifact,), artifact, examples, Asked(), how).to_json()


def _compared(report: dict[str, Any], claimed: dict[str, Any]) -> dict[str, Any]:
    """The new report, failed where the metric is worse than the old one says."""
    from maasdam.pipeline.report import drop_of

    now, then = (part if isinstance(part := r.get("accuracy"), dict) else {} for r in (report, claimed))
    metric, value, said = now.get("metric"), now.get("candidate"), then.get("candidate")
    if metric is None or metric != then.get("metric") or not isinstance(said, int | float) or value is None:
        return report
    drop = drop_of(metric, float(said), value)
    if drop is None or drop <= MOST_BELOW:
        return report
    failure = f"{metric} is {value:.4g} here, and {said:.4g} in the report that came with it"
    return report | {"passed": False, "failures": [*report["failures"], failure]}
