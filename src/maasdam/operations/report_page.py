"""All versions of one model as one HTML file that needs nothing else. Says nothing that the stored reports do not say.

catalog --versions--> rows and points --plots, template--> page
"""

from __future__ import annotations

import importlib.resources
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from maasdam.artifacts.catalog import Version
from maasdam.artifacts.produced import PassFacts
from maasdam.core import split_name
from maasdam.errors import InvalidInput, NotFound
from maasdam.operations.pass_tables import IN_TABLES, pass_tables
from maasdam.operations.plots import Point, Spread, scatter, spreads
from maasdam.operations.reports import report_of, rows, verdict_of
from maasdam.operations.workspace import Workspace
from maasdam.pipeline.part import number
from maasdam.pipeline.report import MEGABYTE, Column, Report, between, ratio
from maasdam.tasks.scoring import METRICS
from maasdam.tasks.task import Metric

UNMEASURED = "\u2013"
_BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")
SPREADS = 12
"""Of how many versions every timed run is drawn, the newest."""


def report_page(workspace: Workspace, name: str) -> str:
    """The page of NAME; of NAME:VERSION or NAME@ALIAS with that version shown first.

    Raises NotFound (no such model or version), MissingExtra where matplotlib is not installed.
    """
    model, number, alias = split_name(name)
    versions = workspace.catalog.versions(model)
    chosen = _chosen(workspace, name, versions, bool(number or alias))
    return render(model, versions, chosen)


def write_report(workspace: Workspace, name: str, output: Path | None) -> dict[str, Any]:
    """Write the page to `output`, default MODEL.html here. {"path", "model", "versions", "bytes"}.

    Raises InvalidInput where there is no such folder, and what `report_page` raises; the file is written whole or not at all.
    """
    model = split_name(name)[0]
    path = Path(f"{model.replace('/', '-')}.html") if output is None else output
    if path.is_dir() or not path.parent.is_dir():
        raise InvalidInput(
            f"can't write {path}: " + ("it is a folder" if path.is_dir() else f"there is no folder {path.parent}")
        )
    page = report_page(workspace, name).encode()
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(page)
        workspace.shared(partial)
        partial.replace(path)  # whole or not at all
    finally:
        partial.unlink(missing_ok=True)
    return {"path": str(path), "model": model, "versions": len(workspace.catalog.versions(model)), "bytes": len(page)}


def render(model: str, versions: Sequence[Version], chosen: Version) -> str:
    """The page as text."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {"cell": cell, "flat": flat}
    template = importlib.resources.files("maasdam.operations").joinpath("pages/report.html.jinja").read_text(encoding="utf-8")
    first = [chosen, *(v for v in reversed(versions) if v.version != chosen.version)]
    return environment.from_string(template).render(
        model=model,
        chosen=chosen,
        task=chosen.task,
        plots=_plots(versions, chosen),
        versions=[_summary(v) for v in reversed(versions)],
        details=[_detail(v) for v in first],
        headline=_headline(report_of(chosen)),
    )


def cell(value: Any) -> str:
    """A number in few digits, a dash for what was not measured, anything else as text."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return UNMEASURED
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def flat(value: Any) -> str:
    """JSON in one line of words: {"before": 1, "after": 2} is "before 1, after 2"."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {flat(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return " ".join(flat(inner) for inner in value)
    return cell(value)


def _chosen(workspace: Workspace, name: str, versions: Sequence[Version], is_exact: bool) -> Version:
    try:
        return workspace.catalog.resolve(name)
    except NotFound:
        if is_exact:
            raise
        return versions[-1]  # none passed: the newest says why


def _headline(report: Report) -> list[tuple[str, str, str]]:
    """What matters of one version: (what, value, beside it)."""
    wanted = ("metric", "size", "p50", "joules")
    return [(row.what, cell(row.candidate), row.gain) for row in rows(report) if row.key in wanted]


def _head(version: Version) -> dict[str, Any]:
    runs_on, verdict = f"{version.format} on {version.engine}", verdict_of(version)
    names = ("version", "aliases", "recipe")
    return {name: getattr(version, name) for name in names} | {"runs_on": runs_on, "verdict": verdict}


def _summary(version: Version) -> dict[str, Any]:
    """One row of the table of versions."""
    report = report_of(version)
    made = report.candidate
    return _head(version) | {
        "deployed": version.deployed,
        "metric": report.metric,
        "accuracy": made.accuracy,
        "interval": between(report.interval("candidate")),
        "megabytes": ratio(made.size_bytes, MEGABYTE),
        "ratio": report.size_ratio,
        "p50": made.p50,
        "p99": made.p99,
        "speedup": report.speedup,
        "joules": made.joules,
        "created": f"{version.created_at:%Y-%m-%d %H:%M}",
    }


def _detail(version: Version) -> dict[str, Any]:
    """All that is shown of one version."""
    report = report_of(version)
    facts = [PassFacts.from_json(_group(step, "facts")) for step in version.passes]
    return _head(version) | {
        "digest": version.digest,
        "created": f"{version.created_at:%Y-%m-%d %H:%M} UTC",
        "source": version.source if version.source.startswith("hf:") else Path(version.source).name,
        "report": report,
        "measured": rows(report),
        "engines": [report.reference.engine, version.engine, report.source and report.source.engine],
        "passes": [_pass(step) for step in version.passes],
        "pass_tables": pass_tables(version.passes),
        "table_says": next((f.what for f in facts if f.what), ""),
        "certificates": [_certificate(f.certificate) for f in facts if isinstance(f.certificate, Mapping)],
        "calibration": (report.calibration or {}).get("says"),
        "drawn": [_drawn(sample) for sample in report.samples if "drawn" in sample],
        "has_report": version.report is not None,
    }


def _drawn(sample: Mapping[str, Any]) -> tuple[str, str, str]:
    """A picture's name, and what was found in it: base64, "" where nothing is kept or it is something else."""
    kept = _group(sample, "drawn")
    pictures = (str(kept.get(of) or "") for of in ("reference", "candidate"))
    one, other = (picture if _BASE64.fullmatch(picture) else "" for picture in pictures)
    return str(sample.get("name")), one, other


def _group(value: Any, key: str) -> Mapping[str, Any]:
    """What lies at `key`; passes of a version from elsewhere may hold anything."""
    inner = value.get(key) if isinstance(value, Mapping) else None
    return inner if isinstance(inner, Mapping) else {}


def _pass(step: Any) -> dict[str, Any]:
    facts = {key: value for key, value in PassFacts.from_json(_group(step, "facts")).others.items() if key not in IN_TABLES}
    facts = {key: value for key, value in facts.items() if key != "says" or not pass_tables([step])}
    step = step if isinstance(step, Mapping) else {}
    return {
        "use": step.get("use") or "?",
        "settings": {key: _pathless(value) for key, value in _group(step, "settings").items() if value is not None},
        "seconds": number(step.get("seconds")),
        "cached": step.get("cached"),
        "facts": facts,
        "digest": str(step.get("digest") or "")[:19],
    }


def _pathless(value: Any) -> Any:
    """A folder of the machine that built it is told by its name alone: pages are passed on."""
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _certificate(certificate: Mapping[str, Any]) -> dict[str, Any]:
    """Its verdict and how far each output was off."""
    outputs = [output for output in certificate.get("outputs") or [] if isinstance(output, Mapping)]
    return {"passed": certificate.get("passed"), "seeds": certificate.get("seeds"), "outputs": [dict(o) for o in outputs]}


def _plots(versions: Sequence[Version], chosen: Version) -> list[tuple[str, str]]:
    """(title, svg) of each plot that has at least one point."""
    reports = {v.version: report_of(v) for v in (*versions, chosen)}
    metric = reports[chosen.version].metric
    way = METRICS.get(metric or "", Metric())
    accuracy = f"{metric} ({way.better})"
    size, latency = "size, MB (smaller is better)", "latency p50, ms (lower is better)"
    of_metric = [v for v in versions if reports[v.version].metric == metric]
    wanted: tuple[tuple[str, str, list[Point], str, str], ...] = (
        ("size-accuracy", "Size against accuracy", _points(of_metric, chosen, _size, _accuracy), size, accuracy),
        ("latency-accuracy", "Latency against accuracy", _points(of_metric, chosen, _latency, _accuracy), latency, accuracy),
        ("size-latency", "Size against latency", _points(versions, chosen, _size, _latency), size, latency),
    )
    drawn = [
        (title, scatter(name, points, x, y, y_most=way.most if y == accuracy else None))
        for name, title, points, x, y in wanted
        if points
    ]
    rows = _spreads(versions[-SPREADS:], chosen)
    return [*drawn, ("Every timed run", spreads("runs", rows, "latency, ms"))] if rows else drawn


Axis = Callable[[Column], float | None]


def _size(of: Column) -> float | None:
    return ratio(of.size_bytes, MEGABYTE)


def _latency(of: Column) -> float | None:
    return of.p50


def _accuracy(of: Column) -> float | None:
    return of.accuracy


def _points(versions: Sequence[Version], chosen: Version, x: Axis, y: Axis) -> list[Point]:
    """Each version that has both numbers, and the reference of the chosen one."""
    points = []
    for version, side, column in _columns(versions, chosen):
        at_x, at_y = x(column), y(column)
        if at_x is None or at_y is None:
            continue
        low, high = (report_of(version).interval(side) if y is _accuracy else None) or (None, None)
        is_reference, label = side == "reference", _label(version, side)
        title = f"{label}: {cell(at_x)}, {cell(at_y)}" + ("" if is_reference else f"; {version.recipe}, {verdict_of(version)}")
        points.append(Point(label, at_x, at_y, low, high, version.passed is not False, is_reference, title))
    return points


def _spreads(versions: Sequence[Version], chosen: Version) -> list[Spread]:
    boxes = []
    for version, side, column in reversed(_columns(versions[::-1], chosen)):
        is_reference, label = side == "reference", _label(version, side)
        if column.latency_ms:
            boxes.append(Spread(label, column.latency_ms, version.passed is not False, is_reference))
    return boxes


def _label(version: Version, side: str) -> str:
    return "reference" if side == "reference" else f"v{version.version}"


def _columns(versions: Sequence[Version], chosen: Version) -> list[tuple[Version, str, Column]]:
    """What is drawn: each version, and the reference of the chosen one."""
    return [*((v, "candidate", report_of(v).candidate) for v in versions), (chosen, "reference", report_of(chosen).reference)]
