"""What an answer cost, as callers see it. Knows entries; never how anything was measured."""

from __future__ import annotations

from typing import Any

from maasdam.core import Entry


def measured(entry: Entry) -> dict[str, Any]:
    """The object under "maasdam" in a usage block. null is unmeasured; the method says why or how."""
    return {
        "model": entry.model,
        "version": entry.version,
        "seconds": round(entry.seconds, 6),
        "compute_seconds": _rounded(entry.compute_seconds),
        "joules": _rounded(entry.joules),
        "energy_method": entry.energy_method,
        "grams_co2e": _rounded(entry.grams_co2e, 12),
    }


def measured_headers(entry: Entry) -> list[tuple[bytes, bytes]]:
    """The same as response headers, for bodies that have no usage block."""
    facts = measured(entry)
    names = ("compute_seconds", "joules", "energy_method", "grams_co2e")
    return [(f"maasdam-{name.replace('_', '-')}".encode(), _text(facts[name])) for name in names]


def _rounded(value: float | None, digits: int = 9) -> float | None:
    return None if value is None else round(value, digits)


def _text(value: float | str | None) -> bytes:
    return b"null" if value is None else str(value).encode("ascii", "replace")
