"""The report of a version, as who shows it reads it: typed, its rows beside it."""

from __future__ import annotations

from maasdam.artifacts.catalog import Version
from maasdam.pipeline.report import Report, Row, rows

__all__ = ["Row", "report_of", "rows", "verdict_of"]


def report_of(version: Version) -> Report:
    """What was measured of it; a report of nothing where it was never verified."""
    return Report.from_json(version.report)


def verdict_of(version: Version) -> str:
    """In words."""
    return "not verified" if version.passed is None else "passed" if version.passed else "failed"
