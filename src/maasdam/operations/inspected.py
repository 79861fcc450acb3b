"""What is known of a source before anything loads it: its own metadata, and what was found of it here before.

Knows where findings are kept. Refuses to run a model: what reads one is a process of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from maasdam.children import run_limited
from maasdam.core import UNKNOWN, UNTRIED, Batching
from maasdam.errors import MaasdamError
from maasdam.operations.limits import inspect_limits
from maasdam.settings import Settings

if TYPE_CHECKING:
    from maasdam.artifacts.store import Store
    from maasdam.core import Artifact
    from maasdam.engines.batching_kept import Findings
    from maasdam.sources import Inspection as Inspection


def inspect(
    source: str,
    settings: Settings,
    show: Callable[[Inspection, Batching], None],
    *,
    trust: bool = False,
    processor: Path | None = None,
) -> None:
    """Let `show` tell what a path or hf:org/name is. Raises UnsafeModel after that where loading it is refused.

    Raises NotFound, InvalidModel, Unsupported, LimitExceeded, Crashed.
    """
    from maasdam.sources import hub, refuse_blocked

    if source.startswith(hub.PREFIX):
        hub.fetch(source)
    limits = inspect_limits(settings)
    inspection, batching = run_limited(_inspected, source, settings, trust=trust, processor=processor, limits=limits)
    show(inspection, batching)
    refuse_blocked(inspection)


def _inspected(source: str, settings: Settings, trust: bool, processor: Path | None) -> tuple[Inspection, Batching]:
    """The inspection, blocked risks listed in it; and whether callers may be computed together, as it was found here."""
    from maasdam.artifacts.store import Store
    from maasdam.engines.batching import why_never
    from maasdam.engines.batching_kept import OWN, Findings
    from maasdam.sources import examine, ingested

    examined = examine(source, trust=trust, processor=processor)
    signature = examined.inspection.signature
    if signature is None:
        return examined.inspection, OWN
    why = why_never(signature)
    if why is not None:
        return examined.inspection, Batching(UNKNOWN, why)
    try:
        if (settings.home / "artifacts").is_dir():  # inspecting makes no home
            store = Store(settings.home / "artifacts")
            artifact = ingested(examined, store)
            if artifact is not None:
                return examined.inspection, _findings_of(artifact, store, Findings(settings.home), settings.threads)
    except MaasdamError:  # a home that can't be read knows nothing of it
        pass
    return examined.inspection, UNTRIED


def _findings_of(artifact: Artifact, store: Store, findings: Findings, threads: int) -> Batching:
    """What was found of the source as it is, else of what was built from it here."""
    own = findings.told(artifact, threads=threads)
    if own != UNTRIED:
        return own
    built = [made for made in map(store.get, store.digests()) if artifact.digest in made.parents and made.signature is not None]
    by_build = {f"{made.engine} {made.digest[:19]}": findings.told(made, threads=threads) for made in built}
    tried = {name: batching for name, batching in by_build.items() if batching != UNTRIED}
    if not tried:
        return own
    verdicts = {batching.verdict for batching in tried.values()}
    how = "; ".join(f"as built for {name}, {batching.verdict}: {batching.how}" for name, batching in tried.items())
    return Batching(verdicts.pop() if len(verdicts) == 1 else UNKNOWN, how)
