"""`maasdam build`: how a build is asked for and how it looks. The work is done in operations.build."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from maasdam.cli.output import JSON, emit, in_workspace, progress_bar, table

if TYPE_CHECKING:
    from maasdam.operations.build import Version


def build(
    source: str = typer.Argument(help="A path, or hf:org/name."),
    name: str = typer.Option(..., "--name", help="The model's name in the catalog."),
    task: str = typer.Option(
        None, "--task", help="Hugging Face's name of the task, or your own: task.py:Class; default: the source's."
    ),
    recipe: str = typer.Option("fp32", "--recipe", help="A built-in recipe, or a TOML file."),
    to: str = typer.Option(None, "--to", help="Result's format: onnx, pytorch, tensorflow or openvino; default: the fastest."),
    data: Path = typer.Option(None, "--data", help="Labelled examples to evaluate on."),
    calibrate: Path = typer.Option(
        None, "--calibrate", help="Examples for static quantisation, and to judge by without --data."
    ),
    train: Path = typer.Option(None, "--train", help="Labelled examples for passes that train; none of them in --data."),
    processor: Path = typer.Option(None, "--processor", help="A Hugging Face folder with the processor and the labels."),
    lora: Path = typer.Option(None, "--lora", help="The folder of a LoRA adapter (peft), merged into the source's weights."),
    device: str = typer.Option("cpu", "--device", help="cpu or cuda."),
    trust: bool = typer.Option(False, "--trust", help="Load what could run code."),
    as_json: bool = JSON,
) -> None:
    """Run a recipe on a model, verify the result, register a version.

    Example: maasdam build hf:google/mobilenet_v2_1.0_224 --name photos --recipe int8 --data photos/
    """
    from typing import cast

    from maasdam.core import Format
    from maasdam.operations.build import BuildSpec, document
    from maasdam.operations.build import build as run
    from maasdam.operations.limits import step_limits

    wanted = cast("Format | None", to)
    spec = BuildSpec(name, source, task, recipe, wanted, data, calibrate, train, processor, device, trust, lora)
    with in_workspace() as workspace:
        with progress_bar() as progress:
            try:
                version = run(workspace, spec, limits=step_limits(workspace.settings), progress=progress)
            except KeyboardInterrupt:
                progress.close()
                typer.echo("interrupted: nothing was registered; run it again to go on after the last finished pass", err=True)
                raise
        emit(document(version), as_json, lambda: _text(version))
        failures = (version.report or {}).get("failures", [])
    if failures:
        typer.echo(f"error: {version.model}:{version.version} did not pass: {'; '.join(failures)}", err=True)
        raise typer.Exit(1)


def _text(version: Version) -> str:
    from maasdam.operations.reports import report_of, rows

    report = report_of(version)
    name, verdict = f"{version.model}:{version.version}", "passed" if version.passed else "FAILED"
    own = report.source.engine if report.source else "-"
    engines = (f"reference ({report.reference.engine})", "candidate", f"source ({own})")
    cells = [(r.what, r.reference, r.candidate, r.source, r.gain) for r in rows(report) if r.key != "interval"]
    lines = [
        f"{name}  {version.format} on {version.engine}  {verdict}  {version.digest}",
        "",
        table(("pass", "seconds", "cached"), [(p["use"], p["seconds"], p["cached"]) for p in version.passes]),
        "",
        table(("measured", *engines, "gain"), cells),
        "",
        f"energy: {report.energy_method}",
        f"parity with {report.against}: "
        + ", ".join(f"{k.replace('_', ' ')} {v:.5g}" for k, v in report.parity_numbers.items()),
        "",
        f"batching: {report.batching.verdict} ({report.batching.how})",
    ]
    if report.precisions:
        lines += ["", "operators by precision: " + ", ".join(f"{n} at {kind}" for kind, n in report.precisions.items())]
    if report.calibration:
        lines += [f"calibrated on {report.calibration['says']}"]
    lines += [f"note: {note}" for note in report.notes] + [f"FAILED: {failure}" for failure in report.failures]
    return "\n".join([*lines, "", f"next: maasdam models {'promote' if version.passed else 'report'} {name}"])
