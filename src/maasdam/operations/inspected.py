"""What is known of a source before anything loads it: its own metadata, and what was found of it here before.

Knows where findings are kept. Refuses to run a model.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from maasdam.core import UNKNOWN, UNTRIED, Batching
from maasdam.errors import MaasdamError
from maasdam.settings import Settings

if TYPE_CHECKING:
    from maasdam.artifacts.sources import Inspection


def inspected(
    source: str, settings: Settings, *, trust: bool = False, processor: Path | None = None
) -> tuple[Inspection, Batching]:
    """The inspection, blocked risks listed in it; and whether callers may be computed together, as it was found here.

    Raises NotFound, InvalidModel, Unsupported.
    """
    from maasdam.artifacts.sources import examine, ingested
    from maasdam.artifacts.store import Store
    from maasdam.engines.batching import why_never
    from maasdam.engines.batching_kept import OWN, Findings

    examined = examine(source, trust=trust, processor=processor)
    signature = examined.inspection.signature
    if signature is None:
        return examined.inspection, OWN
    why = why_never(signature)
    if why is not None:
        return examined.inspection, Batching(UNKNOWN, why)
    try:
        if (settings.home / "artifacts").is_dir():  # inspecting makes no home
            artifact = ingested(examined, Store(settings.home / "artifacts"))
            if artifact is not None:
                return examined.inspection, Findings(settings.home).told(artifact, threads=settings.threads)
    except MaasdamError:  # a home that can't be read knows nothing of it
        pass
    return examined.inspection, UNTRIED
