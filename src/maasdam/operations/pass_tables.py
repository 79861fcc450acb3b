"""What a pass reported that a reader should weigh, as tables: what shrank, and a student beside itself trained alone.

Knows the facts that passes keep. Refuses to know terminals, Markdown and HTML: who shows a table lays it out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

IN_TABLES = ("shrank", "scores", "alone")
"""The facts that stand in these tables, and need not be told again."""


@dataclass(frozen=True, slots=True)
class PassTable:
    """One table: its first column names the row."""

    heads: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    says: tuple[str, ...] = ()
    """Sentences that belong below it."""


def pass_tables(passes: Sequence[Any]) -> list[PassTable]:
    """Of every pass that has one, in order. A version that was imported brings what its maker wrote: it may hold anything."""
    tables = []
    for step in passes:
        facts = step.get("facts") if isinstance(step, Mapping) else None
        if isinstance(facts, Mapping):
            tables += [_shrank(str(step.get("use")), facts), _scores(facts)]
    return [table for table in tables if table is not None]


def _shrank(use: str, facts: Mapping[str, Any]) -> PassTable | None:
    shrank = facts.get("shrank")
    if not isinstance(shrank, Mapping):
        return None
    pairs = {what: pair for what, pair in shrank.items() if isinstance(pair, Mapping) and pair.keys() >= {"before", "after"}}
    rows = [(what.replace("_", " "), p["before"], p["after"], _times(p["before"], p["after"])) for what, p in pairs.items()]
    says = (str(shrank["says"]),) if "says" in shrank else ()
    return PassTable((f"what {use} shrank", "before", "after", "times smaller"), tuple(rows), says)


def _scores(facts: Mapping[str, Any]) -> PassTable | None:
    scores = facts.get("scores")
    if not isinstance(scores, Mapping):
        return None
    whose = [(str(name), own) for name, own in scores.items() if isinstance(own, Mapping)]
    metrics = tuple(dict.fromkeys(str(metric) for _, own in whose for metric in own))
    says = tuple(str(facts[key]) for key in ("alone", "says") if key in facts)
    rows = [(name, *(own.get(metric) for metric in metrics)) for name, own in whose]
    return PassTable(("held-back samples", *metrics), tuple(rows), says)


def _times(before: Any, after: Any) -> str | None:
    numbers = all(isinstance(n, int | float) for n in (before, after))
    return f"{before / after:.2f}" if numbers and after else None
