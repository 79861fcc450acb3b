"""All versions of one model as one HTML file that needs nothing else. Says nothing that the stored reports do not say.

catalog --versions--> rows and points --plots, template--> page
"""

from __future__ import annotations

import importlib.resources
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from maasdam.artifacts.catalog import Version
from maasdam.core import split_name
from maasdam.errors import InvalidInput, NotFound
from maasdam.operations.pass_tables import SHOWN, pass_tables
from maasdam.operations.plots import Point, Spread, scatter, spreads
from maasdam.operations.workspace import Workspace
from maasdam.pipeline.fidelity import part_of

LOWER_IS_BETTER = frozenset({"wer", "perplexity"})
SHARES = frozenset({"top1", "top5"})
"""Metrics that end at 1."""
MEASURED = (
    ("size", "size_bytes", "MB", 1e-6),
    ("throughput", "throughput", "", 1.0),
    ("memory", "memory_bytes", "MB", 1e-6),
    ("energy per item", "energy_joules", "J", 1.0),
)
"""(what, key of the report, unit, factor): what stands in the report as {"reference": …, "candidate": …}."""
UNMEASURED = "\u2013"
SPREADS = 12
"""Of how many versions every timed run is drawn, the newest."""
HIDDEN_FACTS = frozenset({"table", "calibration", "what", "certificate", *SHOWN})
"""Facts of a pass that have a place of their own in the page, or are long."""


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
    environment.filters |= {"said": said, "flat": flat}
    template = importlib.resources.files("maasdam.operations").joinpath("pages/report.html.jinja").read_text(encoding="utf-8")
    first = [chosen, *(v for v in reversed(versions) if v.version != chosen.version)]
    return environment.from_string(template).render(
        model=model,
        chosen=chosen,
        task=chosen.task,
        plots=_plots(versions, chosen),
        versions=[_summary(v) for v in reversed(versions)],
        details=[_detail(v) for v in first],
        headline=_headline(chosen),
    )


def said(value: Any) -> str:
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
    return said(value)


def _chosen(workspace: Workspace, name: str, versions: Sequence[Version], is_exact: bool) -> Version:
    try:
        return workspace.catalog.resolve(name)
    except NotFound:
        if is_exact:
            raise
        return versions[-1]  # none passed: the newest says why


def _at(value: Any, *keys: str) -> Any:
    """What lies at `keys`; None where the report has no such thing: reports made elsewhere may hold less."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _mapping(value: Any, key: str) -> Mapping[str, Any]:
    found = _at(value, key)
    return found if isinstance(found, Mapping) else {}


def _number(value: Any) -> float | None:
    """A finite number, else None: a report from elsewhere may hold anything."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None


def _interval(value: Any) -> tuple[float, float] | None:
    if not isinstance(value, list | tuple) or len(value) != 2:
        return None
    low, high = _number(value[0]), _number(value[1])
    return None if low is None or high is None else (low, high)


def _between(ends: tuple[float, float] | None) -> str | None:
    return None if ends is None else f"{said(ends[0])} to {said(ends[1])}"


def _headline(version: Version) -> list[tuple[str, str, str]]:
    """What matters of one version: (what, value, beside it)."""
    report = version.report or {}
    metric, drop = _at(report, "accuracy", "metric"), _number(_at(report, "accuracy", "drop"))
    interval = _between(_interval(_at(report, "accuracy", "confidence", "candidate")))
    ratio, speedup = _number(_at(report, "size_bytes", "ratio")), _number(_at(report, "latency_ms", "speedup"))
    size, p50 = _number(_at(report, "size_bytes", "candidate")), _number(_at(report, "latency_ms", "candidate", "p50"))
    joules = _number(_at(report, "energy_joules", "candidate"))
    found = [
        (str(metric or "accuracy"), said(_number(_at(report, "accuracy", "candidate"))), interval and f"95 %: {interval}"),
        ("drop", said(drop), "positive is worse"),
        ("size", _with(size and size / 1e6, "MB"), _smaller(ratio)),
        ("latency p50", _with(p50, "ms"), _with(speedup, "times as fast")),
        ("energy per item", _with(joules, "J"), "not measured" if joules is None else None),
    ]
    return [(what, value, beside or "") for what, value, beside in found]


def _with(value: float | None, unit: str) -> str:
    return UNMEASURED if value is None else f"{said(value)} {unit}"


def _smaller(ratio: float | None) -> str:
    """Reference over candidate, in words that read right both ways."""
    return _with(1 / ratio, "times larger") if ratio and ratio < 1 else _with(ratio, "times smaller")


def _summary(version: Version) -> dict[str, Any]:
    """One row of the table of versions."""
    report = version.report
    return {
        "version": version.version,
        "aliases": version.aliases,
        "deployed": version.deployed,
        "verdict": _verdict(version),
        "recipe": version.recipe,
        "runs_on": f"{version.format} on {version.engine}",
        "metric": _at(report, "accuracy", "metric"),
        "accuracy": _number(_at(report, "accuracy", "candidate")),
        "interval": _between(_interval(_at(report, "accuracy", "confidence", "candidate"))),
        "megabytes": _scaled(_at(report, "size_bytes", "candidate"), 1e-6),
        "ratio": _number(_at(report, "size_bytes", "ratio")),
        "p50": _number(_at(report, "latency_ms", "candidate", "p50")),
        "p99": _number(_at(report, "latency_ms", "candidate", "p99")),
        "speedup": _number(_at(report, "latency_ms", "speedup")),
        "joules": _number(_at(report, "energy_joules", "candidate")),
        "created": f"{version.created_at:%Y-%m-%d %H:%M}",
    }


def _verdict(version: Version) -> str:
    return "not verified" if version.passed is None else "passed" if version.passed else "failed"


def _scaled(value: Any, factor: float) -> float | None:
    number = _number(value)
    return None if number is None else number * factor


def _detail(version: Version) -> dict[str, Any]:
    """All that is shown of one version."""
    report = version.report or {}
    facts = [_at(step, "facts") or {} for step in version.passes]
    return {
        "version": version.version,
        "aliases": version.aliases,
        "verdict": _verdict(version),
        "digest": version.digest,
        "runs_on": f"{version.format} on {version.engine}",
        "recipe": version.recipe,
        "created": f"{version.created_at:%Y-%m-%d %H:%M} UTC",
        "source": version.source if version.source.startswith("hf:") else Path(version.source).name,
        "failures": report.get("failures") or [],
        "notes": report.get("notes") or [],
        "measured": _measured(report),
        "engines": [_at(report, "reference", "engine"), version.engine, _at(report, "source", "engine")],
        "checks": _checks(report),
        "confidence": _at(report, "accuracy", "confidence"),
        "passes": [_pass(step) for step in version.passes],
        "pass_tables": pass_tables(version.passes),
        "table": report.get("optimization") or [],
        "table_says": next((f["what"] for f in facts if "what" in f), ""),
        "certificates": [_certificate(f["certificate"]) for f in facts if isinstance(f.get("certificate"), Mapping)],
        "energy": _at(report, "energy_joules", "method"),
        "precisions": report.get("precisions"),
        "batching": report.get("batching"),
        "batching_how": report.get("batching_how"),
        "calibration": _at(report, "calibration", "says"),
        "parity": {key: n for key, value in _mapping(report, "parity").items() if (n := _number(value)) is not None},
        "against": str(_at(report, "parity", "against") or "the reference"),
        "parts": _parts(report),
        "conditions": _mapping(report, "conditions"),
        "has_report": version.report is not None,
    }


def _measured(report: Mapping[str, Any]) -> list[tuple[str, Any, Any, Any, str]]:
    """Rows of (what, reference, this version, source on its own engine, what it brings)."""
    rows: list[tuple[str, Any, Any, Any, str]] = []
    accuracy, latency, own = (_mapping(report, key) for key in ("accuracy", "latency_ms", "source"))
    if accuracy.get("metric"):
        drop = _with(_number(accuracy.get("drop")), "drop")
        sides = (_number(accuracy.get("reference")), _number(accuracy.get("candidate")))
        rows.append((f"{accuracy['metric']} on {accuracy.get('examples')} examples", *sides, own.get("accuracy"), drop))
        certain = {side: _between(_interval(_at(accuracy, "confidence", side))) for side in ("reference", "candidate", "drop")}
        if certain["candidate"]:
            drop = f"drop {certain['drop']}" if certain["drop"] else ""
            rows.append(("95 % interval", certain["reference"], certain["candidate"], None, drop))
    for point in ("p50", "p99"):
        sides = (_number(_at(latency, "reference", point)), _number(_at(latency, "candidate", point)))
        faster = _with(_number(latency.get("speedup")), "times as fast") if point == "p50" else ""
        rows.append((f"latency {point}, ms", *sides, _at(own, "latency_ms", point), faster))
    for what, key, unit, factor in MEASURED:
        cells = _mapping(report, key)
        named = f"{what}, {unit or cells.get('unit') or 'per second'}"
        sides = (_scaled(cells.get("reference"), factor), _scaled(cells.get("candidate"), factor))
        smaller = _smaller(_number(cells.get("ratio"))) if key == "size_bytes" else ""
        rows.append((named, *sides, _scaled(own.get(key), factor), smaller))
    return rows


def _checks(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Limits with what was measured; reports of before they were kept name the limits alone."""
    if "checks" in report:
        return list(report["checks"])
    asked = _mapping(report, "limits")
    return [{"limit": key, "what": key, "asked": value, "measured": None, "holds": None} for key, value in asked.items()]


def _parts(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Outputs and slices with how they came through; none where the report was made elsewhere and tells them otherwise."""
    try:
        rows = [(part_of(row), row) for row in _at(report, "parity", "parts") or []]
        return [
            {
                "where": part.where,
                "measure": part.measure,
                "value": _number(part.value),
                "cosine": _number(_at(row, "cosine")),
                "max_abs_diff": _number(_at(row, "max_abs_diff")),
                "spread": _number(_at(row, "spread")),
                "is_constant": part.is_constant,
            }
            for part, row in rows
        ]
    except (KeyError, TypeError):
        return []


def _pass(step: Any) -> dict[str, Any]:
    facts = {key: value for key, value in _mapping(step, "facts").items() if key not in HIDDEN_FACTS}
    facts = {key: value for key, value in facts.items() if key != "says" or not pass_tables([step])}
    settings = {key: _pathless(value) for key, value in _mapping(step, "settings").items() if value is not None}
    return {
        "use": _at(step, "use") or "?",
        "settings": settings,
        "seconds": _number(_at(step, "seconds")),
        "cached": _at(step, "cached"),
        "facts": facts,
        "digest": str(_at(step, "digest") or "")[:19],
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
    metric = _at(chosen.report, "accuracy", "metric")
    better = "lower is better" if metric in LOWER_IS_BETTER else "higher is better"
    accuracy = f"{metric} ({better})"
    size, latency = "size, MB (smaller is better)", "latency p50, ms (lower is better)"
    of_metric = [v for v in versions if _at(v.report, "accuracy", "metric") == metric]
    wanted: tuple[tuple[str, str, list[Point], str, str], ...] = (
        ("size-accuracy", "Size against accuracy", _points(of_metric, chosen, _size, _accuracy), size, accuracy),
        ("latency-accuracy", "Latency against accuracy", _points(of_metric, chosen, _latency, _accuracy), latency, accuracy),
        ("size-latency", "Size against latency", _points(versions, chosen, _size, _latency), size, latency),
    )
    drawn = [
        (title, scatter(name, points, x, y, y_most=1.0 if y == accuracy and metric in SHARES else None))
        for name, title, points, x, y in wanted
        if points
    ]
    rows = _spreads(versions[-SPREADS:], chosen)
    return [*drawn, ("Every timed run", spreads("runs", rows, "latency, ms"))] if rows else drawn


Axis = Callable[[Mapping[str, Any], str], float | None]


def _size(report: Mapping[str, Any], side: str) -> float | None:
    return _scaled(_at(report, "size_bytes", side), 1e-6)


def _latency(report: Mapping[str, Any], side: str) -> float | None:
    return _number(_at(report, "latency_ms", side, "p50"))


def _accuracy(report: Mapping[str, Any], side: str) -> float | None:
    return _number(_at(report, "accuracy", side))


def _points(versions: Sequence[Version], chosen: Version, x: Axis, y: Axis) -> list[Point]:
    """Each version that has both numbers, and the reference of the chosen one."""
    wanted = [(v, "candidate") for v in versions] + [(chosen, "reference")]
    found = []
    for version, side in wanted:
        report = version.report or {}
        at_x, at_y = x(report, side), y(report, side)
        if at_x is None or at_y is None:
            continue
        low, high = (_interval(_at(report, "accuracy", "confidence", side)) if y is _accuracy else None) or (None, None)
        is_reference = side == "reference"
        label = "reference" if is_reference else f"v{version.version}"
        title = f"{label}: {said(at_x)}, {said(at_y)}" + ("" if is_reference else f"; {version.recipe}, {_verdict(version)}")
        found.append(Point(label, at_x, at_y, low, high, version.passed is not False, is_reference, title))
    return found


def _spreads(versions: Sequence[Version], chosen: Version) -> list[Spread]:
    found = []
    for version, side in [(chosen, "reference"), *((v, "candidate") for v in versions)]:
        samples = _at(version.report, "latency_ms", "samples", side)
        values = [n for s in samples if (n := _number(s)) is not None] if isinstance(samples, list) else []
        if values:
            is_reference = side == "reference"
            label = "reference" if is_reference else f"v{version.version}"
            found.append(Spread(label, tuple(values), version.passed is not False, is_reference))
    return found
