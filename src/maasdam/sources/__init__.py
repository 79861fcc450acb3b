"""Models as the world keeps them: what a source is, and bringing it into the store.

    inspect(source) -> Inspection                     metadata only, bounded, no code of the model's
    ingest(source, store) -> Artifact                 the same checks, then copied in canonical names

Knows the layouts others save models in, and that their files may be hostile. Refuses to load or run a model.
"""

from __future__ import annotations

from pathlib import Path

from maasdam.sources.examine import examine, refuse_blocked
from maasdam.sources.finding import Inspection, Risk
from maasdam.sources.ingest import ingest, ingested

__all__ = ["Inspection", "Risk", "examine", "ingest", "ingested", "inspect", "refuse_blocked"]


def inspect(source: str, *, trust: bool = False, processor: Path | None = None) -> Inspection:
    """Say what `source` (a path or hf:org/name[@revision]) is, without running any of it.

    `trust` lifts the risks that can be lifted; `processor` is a Hugging Face folder with the processor files that the
    source lacks. Raises NotFound, InvalidModel (broken), UnsafeModel (would run code), Unsupported (known, not read).
    """
    inspection = examine(source, trust=trust, processor=processor).inspection
    refuse_blocked(inspection)
    return inspection
