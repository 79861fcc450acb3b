"""A Hugging Face model card of one version, from what was measured. Says nothing that the catalog does not know."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from maasdam.artifacts.catalog import Version
from maasdam.artifacts.names import UNVERIFIED
from maasdam.operations.pass_tables import pass_tables
from maasdam.operations.reports import report_of, rows, verdict_of
from maasdam.operations.workspace import Workspace
from maasdam.pipeline.report import Report
from maasdam.tasks.scoring import METRICS
from maasdam.tasks.task import Metric


def card(workspace: Workspace, name: str) -> str:
    """Markdown with the front matter that Hugging Face reads."""
    version = workspace.catalog.resolve(name)
    report = report_of(version)
    parts = [_front(version, report), f"# {version.model}:{version.version}", _origin(version)]
    if version.report is None:
        parts.append("## Measured\n\nNothing: this version was never verified.")
    else:
        parts += [_verdict(version, report), _table(report), _details(report)]
    parts += [_passes(version)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front(version: Version, report: Report) -> str:
    lines = ["---", "library_name: maasdam"]
    lines += [f"pipeline_tag: {_quoted(version.task)}"] if version.task else []
    if version.source.startswith("hf:"):
        lines.append(f"base_model: {_quoted(version.source.removeprefix('hf:'))}")
        lines += ["base_model_relation: quantized"] if any(_use(step) == "quantize" for step in version.passes) else []
    lines += ["tags:", *(f"- {_quoted(tag)}" for tag in dict.fromkeys((version.format, version.engine)))]
    metric, value = METRICS.get(report.metric or "", Metric()), report.candidate.accuracy
    if metric.kind and value is not None and version.task:
        lines += [
            "model-index:",
            f"- name: {_quoted(version.model)}",
            "  results:",
            "  - task:",
            f"      type: {_quoted(version.task)}",
        ]
        lines += ["    dataset:", "      name: the --data of the build", "      type: private", "    metrics:"]
        lines += [f"    - type: {metric.kind}", f"      name: {metric.title}", f"      value: {value:.6g}"]
    return "\n".join([*lines, "---"])


def _origin(version: Version) -> str:
    steps = " → ".join(_use(step) for step in version.passes) or "none"
    source = version.source if version.source.startswith("hf:") else version.source.rstrip("/").rsplit("/", 1)[-1]
    return (
        f"Built by Maasdam on {version.created_at:%Y-%m-%d} from {_code(source)} with the recipe {_code(version.recipe)} "
        f"(passes: {_text(steps)}). Format {_code(version.format)}, engine {_code(version.engine)}, {_code(version.digest)}."
    )


def _verdict(version: Version, report: Report) -> str:
    lines = ["## Measured", "", f"Verification **{verdict_of(version)}**."]
    if version.imported is not None:
        elsewhere = "all that follows was measured elsewhere, by whoever made the file"
        lines[-1] += f" It was imported: {elsewhere if version.imported == UNVERIFIED else 'it was verified here since'}."
    lines += [f"- {_text(failure)}" for failure in report.failures]
    return "\n".join(lines)


def _table(report: Report) -> str:
    cells = [(_text(r.what), _cell(r.reference), _cell(r.candidate)) for r in rows(report)]
    lines = [("", "reference (uncompressed)", "this version"), ("---", "---", "---"), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _passes(version: Version) -> str:
    """What pruning and distillation reported of themselves."""
    blocks = []
    for each in pass_tables(version.passes):
        rows = [each.heads, ("---",) * len(each.heads), *each.rows]
        lines = ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows]
        blocks.append("\n".join([*lines, "", *(f"{_text(sentence)}." for sentence in each.says)]))
    return "\n\n".join(["## Compressed", *blocks]) if blocks else ""


def _details(report: Report) -> str:
    lines = [f"- {row.key}: {row.gain}" for row in rows(report) if row.gain]
    if lines and report.confidence:
        how = report.confidence
        lines.append(
            f"- intervals: {_text(how.get('method'))}, {_text(how.get('resamples'))} resamples of {_text(how.get('units'))} "
            f"{_text(how.get('over'))}"
        )
    if report.parity_numbers:
        lines.append(f"- against {_text(report.against)}: {_listed(report.parity_numbers)}")
    if report.batching.verdict:
        lines.append(f"- batching: {_text(report.batching.verdict)} ({_text(report.batching.how)})")
    if report.precisions:
        lines.append(f"- operators by the precision that ran: {_listed(report.precisions)}")
    lines.append(f"- energy: {_cell(report.energy_method or None)}")
    if conditions := {key: value for key, value in report.conditions.items() if isinstance(value, str | int | float)}:
        lines.append("- measured on: " + ", ".join(f"{_text(key)} {_text(value)}" for key, value in conditions.items()))
    return "\n".join([*lines, *(f"- {_text(note)}" for note in report.notes)])


def _listed(numbers: Mapping[str, Any]) -> str:
    return ", ".join(f"{_text(key)} {_cell(value)}" for key, value in numbers.items())


def _use(step: Any) -> str:
    return str((step.get("use") if isinstance(step, Mapping) else None) or "?")


def _cell(value: Any) -> str:
    if value is None:
        return "not measured"
    return f"{value:.4g}" if isinstance(value, float) else _text(value)


_MARKUP = re.compile(r"[\\`*\[\]|]")


def _text(value: Any) -> str:
    """One line of words in Markdown and HTML, whatever a file named something: nothing in it is markup."""
    line = "".join(c if c.isprintable() else "\ufffd" for c in " ".join(str(value).split()))
    return _MARKUP.sub(lambda match: f"\\{match[0]}", line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))


def _code(value: Any) -> str:
    """The same as a code span, in which only its own end means anything."""
    line = "".join(c if c.isprintable() else "\ufffd" for c in " ".join(str(value).split()))
    return f"`{line.replace('`', chr(39))}`"


def _quoted(text: str) -> str:
    return json.dumps(text)  # a YAML string, whatever it holds
