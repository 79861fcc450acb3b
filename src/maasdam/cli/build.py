"""`maasdam build`: how a build is asked for and how it looks. The work is done in operations.build."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from maasdam.cli.output import emit, progress_bar, reporting, table

if TYPE_CHECKING:
    from maasdam.artifacts.catalog import Version


def build(
    source: str = typer.Argument(help="A path, or hf:org/name."),
    name: str = typer.Option(..., "--name", help="The model's name in the catalog."),
    task: str = typer.Option(None, "--task", help="Hugging Face's name of the task; default: what the source says."),
    recipe: str = typer.Option("fp32", "--recipe", help="A built-in recipe, or a TOML file."),
    to: str = typer.Option(None, "--to", help="Result's format: onnx, pytorch, tensorflow or openvino; default: the fastest."),
    data: Path = typer.Option(None, "--data", help="Labelled examples to evaluate on."),
    calibrate: Path = typer.Option(None, "--calibrate", help="Examples for static quantisation; default: a sample of --data."),
    train: Path = typer.Option(None, "--train", help="Labelled examples for passes that train; none of them in --data."),
    processor: Path = typer.Option(None, "--processor", help="A Hugging Face folder with the processor and the labels."),
    device: str = typer.Option("cpu", "--device", help="cpu or cuda."),
    trust: bool = typer.Option(False, "--trust", help="Load what could run code."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON document."),
) -> None:
    """Run a recipe on a model, verify the result, register a version.

    Example: maasdam build hf:google/mobilenet_v2_1.0_224 --name photos --recipe int8 --data photos/
    """
    with reporting():
        from typing import cast

        from maasdam import settings
        from maasdam.core import Format
        from maasdam.operations.build import build as run
        from maasdam.operations.build import document
        from maasdam.operations.limits import step_limits
        from maasdam.operations.workspace import Workspace

        with Workspace.open(settings.load()) as workspace, progress_bar() as progress:
            try:
                version = run(
                    workspace,
                    source,
                    name=name,
                    task=task,
                    recipe=recipe,
                    to=cast("Format | None", to),
                    data=data,
                    calibrate=calibrate,
                    train=train,
                    processor=processor,
                    device=device,
                    trust=trust,
                    limits=step_limits(workspace.settings),
                    progress=progress,
                )
            except KeyboardInterrupt:
                progress.close()
                typer.echo("interrupted: nothing was registered; run it again to go on after the last finished pass", err=True)
                raise
        emit(document(version), as_json, lambda: _shown(version))
        failures = (version.report or {}).get("failures", [])
    if failures:
        typer.echo(f"error: {version.model}:{version.version} did not pass: {'; '.join(failures)}", err=True)
        raise typer.Exit(1)


def _shown(version: Version) -> str:
    report = version.report or {}
    verdict = "passed" if report.get("passed") else "FAILED"
    lines = [f"{version.model}:{version.version}  {version.format} on {version.engine}  {verdict}  {version.digest}", ""]
    lines.append(table(("pass", "seconds", "cached"), [(p["use"], p["seconds"], p["cached"]) for p in version.passes]))
    lines += ["", _measured(report)]
    if report.get("batching"):
        lines += ["", f"batching: {report['batching']} ({report['batching_how']})"]
    if report.get("precisions"):
        lines += ["", "operators by precision: " + ", ".join(f"{n} at {kind}" for kind, n in report["precisions"].items())]
    if report.get("calibration"):
        lines += ["calibrated on " + report["calibration"]["says"]]
    lines += [f"note: {note}" for note in report.get("notes", [])]
    lines += [f"FAILED: {failure}" for failure in report.get("failures", [])]
    named = f"{version.model}:{version.version}"
    then = f"maasdam models promote {named}" if report.get("passed") else f"maasdam models report {named}"
    lines += ["", f"next: {then}"]
    return "\n".join(lines)


def _measured(report: dict[str, Any]) -> str:
    """Reference, candidate and source beside each other."""
    source = report.get("source") or {}
    accuracy, size, latency = report["accuracy"], report["size_bytes"], report["latency_ms"]
    throughput, energy, memory = report["throughput"], report["energy_joules"], report["memory_bytes"]

    def three(what: str, cells: dict[str, Any], key: str, better: Any = None) -> tuple[Any, ...]:
        return what, cells["reference"], cells["candidate"], source.get(key), better

    def times(value: float | None) -> str | None:
        return None if value is None else f"{value:.2f}x"

    name = accuracy["metric"] or "accuracy"
    p50 = {k: latency[k]["p50"] for k in ("reference", "candidate")}
    p99 = {k: latency[k]["p99"] for k in ("reference", "candidate")}
    own = source.get("latency_ms") or {}
    megabytes = {k: None if v is None else v / 1e6 for k, v in memory.items()}
    rows = [
        three(f"{name} (n={accuracy['examples']})", accuracy, "accuracy", _drop(accuracy)),
        ("size MB", size["reference"] / 1e6, size["candidate"] / 1e6, _mega(source.get("size_bytes")), times(size["ratio"])),
        ("latency p50 ms", p50["reference"], p50["candidate"], own.get("p50"), times(latency["speedup"])),
        ("latency p99 ms", p99["reference"], p99["candidate"], own.get("p99"), None),
        three(f"throughput {throughput['unit']}", throughput, "throughput"),
        ("memory MB", megabytes["reference"], megabytes["candidate"], _mega(source.get("memory_bytes")), None),
        three("joules per item", energy, "energy_joules", None),
    ]
    engines = (f"reference ({report['reference']['engine']})", "candidate", f"source ({source.get('engine', '-')})")
    parity = report["parity"]
    lines = [table(("measured", *engines, "gain"), rows), "", f"energy: {energy['method']}"]
    numbers = ", ".join(f"{k.replace('_', ' ')} {v:.5g}" for k, v in parity.items() if isinstance(v, int | float))
    lines.append(f"parity with {parity.get('against', 'the reference')}: {numbers}")
    return "\n".join(lines)


def _drop(accuracy: dict[str, Any]) -> str | None:
    if accuracy["drop"] is None:
        return None
    interval = (accuracy.get("confidence") or {}).get("drop")
    return f"drop {accuracy['drop']:+.4f}" + (f" [{interval[0]:+.4f}, {interval[1]:+.4f}]" if interval else "")


def _mega(value: float | None) -> float | None:
    return None if value is None else value / 1e6
