"""`maasdam quickstart`: how the whole main job looks on a terminal."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from maasdam.cli.output import JSON, emit, progress_bar, reporting

if TYPE_CHECKING:
    from maasdam.operations.quickstart import Answered, ServiceProcess, Version

PLAIN_WIDTH = 150
"""Columns of the table where stdout is not a terminal."""


def quickstart(
    check: bool = typer.Option(False, "--check", help="Stop at the end; exit 0 only if every verdict and answer is right."),
    port: int = typer.Option(0, "--port", help="Port of the service; default: 8080, with --check a free one."),
    as_json: bool = JSON,
) -> None:
    """Build, verify, deploy, serve and call one image, one text and one speech model that ship with the project.

    Example: maasdam quickstart --check
    """
    with reporting(), _home(temporary=check and "MAASDAM_HOME" not in os.environ) as home:
        from maasdam import settings
        from maasdam.operations import quickstart as job
        from maasdam.operations.workspace import Workspace

        resolved = settings.load({"home": home, "port": port or None})
        with Workspace.open(resolved) as workspace, progress_bar() as progress:
            versions = job.build_all(workspace, progress)
            with job.service(workspace, port if check else resolved.port, [v.model for v in versions]) as running:
                answers = job.ask_all(workspace, running, versions, progress)
                progress.close()
                right = all(v.passed for v in versions) and not any(a.wrong for a in answers)
                emit(_document(versions, answers, right), as_json, lambda: _table(versions) + _answers(answers, right))
                if not check:
                    _leave_up(running)
        if not right:
            raise typer.Exit(1)


@contextmanager
def _home(temporary: bool) -> Iterator[Path | None]:
    if not temporary:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="maasdam-quickstart-") as folder:
        yield Path(folder)


def _leave_up(running: ServiceProcess) -> None:
    from maasdam.operations.quickstart import starters

    images, _, speech = starters()
    image, sound = (next(iter(sorted(s.samples.glob(kind)))) for s, kind in ((images, "*.png"), (speech, "*.wav")))
    typer.echo(
        f"""
The service is up at {running.address} (Ctrl-C stops it). Try:

  export KEY={running.key}
  curl {running.address}/v1/images/classifications -H "Authorization: Bearer $KEY" \\
       -F model=digits -F file=@{image}
  curl {running.address}/v1/audio/transcriptions -H "Authorization: Bearer $KEY" \\
       -F model=spoken-digits -F file=@{sound}
  OPENAI_BASE_URL={running.address}/v1 OPENAI_API_KEY=$KEY python -c '
import openai
for event in openai.OpenAI().chat.completions.create(
        model="bard", stream=True, messages=[{{"role": "user", "content": "What news from Rome?"}}]):
    print(event.choices[0].delta.content or "", end="", flush=True)'

  {running.address}/docs    {running.address}/metrics    maasdam status    maasdam usage
"""
    )
    try:
        running.process.wait()
    except KeyboardInterrupt:
        typer.echo("stopping", err=True)


def _document(versions: Sequence[Version], answers: Sequence[Answered], right: bool) -> dict[str, Any]:
    return {
        "right": right,
        "models": [
            {
                "name": v.model,
                "version": v.version,
                "format": v.format,
                "engine": v.engine,
                "digest": v.digest,
                "report": {k: x for k, x in (v.report or {}).items() if k != "samples"},
                "asked": a.samples,
                "wrong": list(a.wrong),
                "shown": a.example,
            }
            for v, a in zip(versions, answers, strict=True)
        ],
    }


def _table(versions: Sequence[Version]) -> str:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from maasdam.operations.reports import report_of

    table = Table(title="Quickstart: before → after", box=box.SIMPLE_HEAD)
    for head in ("model", "format", "engine", "size", "accuracy", "latency p50", "energy per request", "verdict"):
        table.add_column(head, overflow="fold")
    for version in versions:
        table.add_row(*_row(version))
    table.caption = "energy: " + "; ".join(sorted({report_of(version).energy_method for version in versions}))
    console = Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def _row(version: Version) -> list[str]:
    from maasdam.operations.reports import report_of, rows

    report = report_of(version)
    cells = {r.key: f"{_number(r.reference)} → {_number(r.candidate)}" for r in rows(report) if r.key != "interval"}
    slower = next((f" — {note}" for note in report.notes if note.startswith("slower than the reference")), "")
    joules = report.candidate.joules
    return [
        f"{version.model}:{version.version}",
        version.format,
        version.engine,
        f"{cells['size']} MB",
        f"{report.metric} {cells['metric']} (n={report.examples})",
        f"{cells['p50']} ms",
        "not measured" if joules is None else f"{joules:.3g} J",
        ("passed" if version.passed else "FAILED: " + "; ".join(report.failures)) + slower,
    ]


def _number(value: Any) -> str:
    return "not measured" if value is None else f"{value:.3g}" if abs(value) >= 10 else f"{value:.3f}"


def _answers(answers: Sequence[Answered], right: bool) -> str:
    lines = [""]
    for a in answers:
        lines.append(f"{a.starter.name}: {a.samples} samples over HTTP, {len(a.wrong)} other than in the report. {a.example}")
        lines += [f"  WRONG {sentence}" for sentence in a.wrong[:10]]
    lines.append("Everything is right." if right else "NOT right; see above.")
    return "\n".join(lines)
