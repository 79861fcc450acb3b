"""A Hugging Face model card of one version, from what was measured. Says nothing that the catalog does not know."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from maasdam.artifacts.catalog import Version
from maasdam.artifacts.names import UNVERIFIED
from maasdam.operations.pass_tables import pass_tables
from maasdam.operations.workspace import Workspace

METRICS = {
    "top1": ("accuracy", "Top-1 accuracy"),
    "wer": ("wer", "Word error rate"),
    "perplexity": ("perplexity", "Perplexity"),
}
"""Our metric -> Hugging Face's type, and its name."""


def card(workspace: Workspace, name: str) -> str:
    """Markdown with the front matter that Hugging Face reads."""
    version = workspace.catalog.resolve(name)
    report = version.report or {}
    parts = [_front(version, report), f"# {version.model}:{version.version}", _origin(version)]
    if not report:
        parts.append("## Measured\n\nNothing: this version was never verified.")
    else:
        parts += [_verdict(report, version.imported), _table(report), _details(report)]
    parts += [_passes(version)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front(version: Version, report: Mapping[str, Any]) -> str:
    lines = ["---", "library_name: maasdam"]
    lines += [f"pipeline_tag: {_quoted(version.task)}"] if version.task else []
    if version.source.startswith("hf:"):
        lines.append(f"base_model: {_quoted(version.source.removeprefix('hf:'))}")
        lines += ["base_model_relation: quantized"] if any(_use(step) == "quantize" for step in version.passes) else []
    lines += ["tags:", *(f"- {_quoted(tag)}" for tag in dict.fromkeys((version.format, version.engine)))]
    metric, value = _at(report, "accuracy", "metric"), _at(report, "accuracy", "candidate")
    if metric in METRICS and value is not None and version.task:
        kind, title = METRICS[metric]
        lines += [
            "model-index:",
            f"- name: {_quoted(version.model)}",
            "  results:",
            "  - task:",
            f"      type: {_quoted(version.task)}",
        ]
        lines += ["    dataset:", "      name: the --data of the build", "      type: private", "    metrics:"]
        lines += [f"    - type: {kind}", f"      name: {title}", f"      value: {value:.6g}"]
    return "\n".join([*lines, "---"])


def _origin(version: Version) -> str:
    steps = " → ".join(_use(step) for step in version.passes) or "none"
    source = version.source if version.source.startswith("hf:") else version.source.rstrip("/").rsplit("/", 1)[-1]
    return (
        f"Built by Maasdam on {version.created_at:%Y-%m-%d} from {_code(source)} with the recipe {_code(version.recipe)} "
        f"(passes: {_text(steps)}). Format {_code(version.format)}, engine {_code(version.engine)}, {_code(version.digest)}."
    )


def _verdict(report: Mapping[str, Any], imported: str | None) -> str:
    said = ["## Measured", "", f"Verification **{'passed' if report.get('passed') else 'failed'}**."]
    if imported is not None:
        elsewhere = "all that follows was measured elsewhere, by whoever made the file"
        said[-1] += f" It was imported: {elsewhere if imported == UNVERIFIED else 'it was verified here since'}."
    said += [f"- {_text(failure)}" for failure in report.get("failures") or []]
    return "\n".join(said)


def _table(report: Mapping[str, Any]) -> str:
    examples = _at(report, "accuracy", "examples")
    metric = _at(report, "accuracy", "metric")
    rows = [("", "reference (uncompressed)", "this version")]
    if metric:
        rows.append((f"{_said(metric)} on {_said(examples)} examples", *_both(report, "accuracy")))
        certain = {side: _interval(_at(report, "accuracy", "confidence", side)) for side in ("reference", "candidate")}
        if all(certain.values()):
            rows.append(("95 % interval", certain["reference"], certain["candidate"]))
    rows.append(("size, bytes", *_both(report, "size_bytes")))
    for point in ("p50", "p99"):
        reference, candidate = (_said(_at(report, "latency_ms", side, point)) for side in ("reference", "candidate"))
        rows.append((f"latency {point}, ms", reference, candidate))
    rows.append((f"throughput, {_text(_at(report, 'throughput', 'unit') or 'per second')}", *_both(report, "throughput")))
    rows.append(("memory, bytes", *_both(report, "memory_bytes")))
    rows.append(("joules per example", *_both(report, "energy_joules")))
    rows.insert(1, ("---", "---", "---"))
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _passes(version: Version) -> str:
    """What pruning and distillation reported of themselves."""
    blocks = []
    for told in pass_tables(version.passes):
        rows = [told.heads, ("---",) * len(told.heads), *told.rows]
        lines = ["| " + " | ".join(_said(cell) for cell in row) + " |" for row in rows]
        blocks.append("\n".join([*lines, "", *(f"{_text(sentence)}." for sentence in told.says)]))
    return "\n\n".join(["## Compressed", *blocks]) if blocks else ""


def _details(report: Mapping[str, Any]) -> str:
    lines = []
    drop, speedup = _at(report, "accuracy", "drop"), _at(report, "latency_ms", "speedup")
    if drop is not None:
        interval = _interval(_at(report, "accuracy", "confidence", "drop"))
        certain = f", 95 % interval {interval} ({_how_certain(report)})" if interval else ""
        lines.append(f"- drop on the metric (positive is worse): {_said(drop)}{certain}")
    if speedup is not None:
        lines.append(f"- latency of the reference over this version's: {_said(speedup)}")
    parity = {key: value for key, value in (_at(report, "parity") or {}).items() if isinstance(value, int | float)}
    if parity:
        against = _at(report, "parity", "against") or "the source"
        lines.append(
            f"- against {_text(against)}: " + ", ".join(f"{_text(key)} {_said(value)}" for key, value in parity.items())
        )
    if _at(report, "batching"):
        lines.append(f"- batching: {report['batching']} ({_at(report, 'batching_how')})")
    precisions = _at(report, "precisions")
    if precisions:
        lines.append(
            "- operators by the precision that ran: " + ", ".join(f"{_text(k)} {_said(v)}" for k, v in precisions.items())
        )
    lines.append(f"- energy: {_said(_at(report, 'energy_joules', 'method'))}")
    conditions = {
        key: value for key, value in (_at(report, "conditions") or {}).items() if isinstance(value, str | int | float)
    }
    if conditions:
        lines.append("- measured on: " + ", ".join(f"{_text(key)} {_text(value)}" for key, value in conditions.items()))
    lines += [f"- {_text(note)}" for note in report.get("notes") or []]
    return "\n".join(lines)


def _interval(ends: Any) -> str:
    """[low, high] in words; empty where there is none."""
    return f"{_said(ends[0])} to {_said(ends[1])}" if isinstance(ends, list | tuple) and len(ends) == 2 else ""


def _how_certain(report: Mapping[str, Any]) -> str:
    said = _at(report, "accuracy", "confidence") or {}
    return f"{said.get('method')}, {said.get('resamples')} resamples of {said.get('units')} {said.get('over')}"


def _both(report: Mapping[str, Any], what: str) -> tuple[str, str]:
    return _said(_at(report, what, "reference")), _said(_at(report, what, "candidate"))


def _at(value: Any, *keys: str) -> Any:
    """What lies at `keys`, or None where the report has no such thing: reports made elsewhere may hold less."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _use(step: Any) -> str:
    return str(_at(step, "use") or "?")


def _said(value: Any) -> str:
    if value is None:
        return "not measured"
    return f"{value:.4g}" if isinstance(value, float) else _text(value)


_MARKUP = re.compile(r"[\\`*\[\]|]")


def _text(value: Any) -> str:
    """One line of words in Markdown and HTML, whatever a file named something: nothing in it is markup."""
    line = "".join(c if c.isprintable() else "\ufffd" for c in " ".join(str(value).split()))
    return _MARKUP.sub(lambda found: f"\\{found[0]}", line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))


def _code(value: Any) -> str:
    """The same as a code span, in which only its own end means anything."""
    line = "".join(c if c.isprintable() else "\ufffd" for c in " ".join(str(value).split()))
    return f"`{line.replace('`', chr(39))}`"


def _quoted(text: str) -> str:
    return json.dumps(text)  # a YAML string, whatever it holds
