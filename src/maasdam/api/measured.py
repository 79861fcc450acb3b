"""What an answer cost, as callers see it. Knows entries; never how anything was measured."""

from __future__ import annotations

from functools import lru_cache
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
    return [(name, value) for name, _, value in [line.partition(b": ") for line in measured_lines(entry).splitlines()]]


def measured_lines(entry: Entry) -> bytes:
    """Those headers as they are sent, each with its end."""
    return _lines(entry.compute_seconds, entry.joules, entry.energy_method, entry.grams_co2e)


@lru_cache(maxsize=16)
def _lines(compute_seconds: float | None, joules: float | None, method: str | None, grams_co2e: float | None) -> bytes:
    """Requests of one batch that are of one size cost the same."""
    return (
        f"maasdam-compute-seconds: {_text(_rounded(compute_seconds))}\r\nmaasdam-joules: {_text(_rounded(joules))}\r\n"
        f"maasdam-energy-method: {'null' if method is None else method}\r\n"
        f"maasdam-grams-co2e: {_text(_rounded(grams_co2e, 12))}\r\n"
    ).encode("ascii", "replace")


def _rounded(value: float | None, digits: int = 9) -> float | None:
    return None if value is None else round(value, digits)


def _text(value: float | None) -> str:
    return "null" if value is None else str(value)
