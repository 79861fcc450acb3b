"""What a conversion or a pass wrote into a folder, before the store has it. Knows nouns; never how it was made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from maasdam.core import Format, Layout, Signature


@dataclass(frozen=True, slots=True)
class Produced:
    """What a pass wrote into `out`. `facts` is JSON: what was measured or chosen on the way, for the report."""

    format: Format
    layout: Layout
    engine: str
    signature: Signature | None
    settings: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
