"""What a conversion or a pass wrote into a folder, before the store has it. Knows nouns; never how it was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from maasdam.core import Format, Layout, Signature


@dataclass(frozen=True, slots=True)
class PassFacts:
    """What was measured or chosen on the way, for the report; all of it JSON."""

    others: Mapping[str, Any] = field(default_factory=dict)
    """What one pass alone tells."""
    calibration: Mapping[str, Any] | None = None
    """Which examples ranges were taken from."""
    table: Sequence[Mapping[str, Any]] = ()
    """Every way of running it that was measured, a row each."""
    what: str = ""
    """What the table's numbers are."""
    certificate: Mapping[str, Any] | None = None
    """Proof that it computes what it was made of."""

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PassFacts:
        """The inverse of `to_json`."""
        own = {name: data[name] for name in ("calibration", "table", "what", "certificate") if name in data}
        return cls({key: value for key, value in data.items() if key not in own}, **own)

    def to_json(self) -> dict[str, Any]:
        """As `build --json` shows it: what there is."""
        own = {"calibration": self.calibration, "table": self.table, "what": self.what, "certificate": self.certificate}
        return {**self.others, **{name: value for name, value in own.items() if value}}


@dataclass(frozen=True, slots=True)
class Produced:
    """What a pass wrote into `out`."""

    format: Format
    layout: Layout
    engine: str
    signature: Signature | None
    settings: dict[str, Any] = field(default_factory=dict)
    facts: PassFacts = field(default_factory=PassFacts)
