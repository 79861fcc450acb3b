"""`maasdam inspect`: say what a model is before anything loads it.

Knows how an inspection is shown. Refuses to know how one is made.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from maasdam.cli.output import JSON, emit, printable, reporting

if TYPE_CHECKING:
    from maasdam.core import Batching, TensorSpec
    from maasdam.operations.inspected import Inspection


@reporting()
def inspect(
    source: str = typer.Argument(..., help="A path, or hf:org/name[@revision].", show_default=False),
    processor: Path | None = typer.Option(
        None, "--processor", help="Hugging Face folder with processor files the source lacks."
    ),
    trust: bool = typer.Option(False, "--trust", help="You know who made it: lift the risks that can be lifted."),
    as_json: bool = JSON,
) -> None:
    """Say what a model is: format, task, signature, size, risks.

    Reads metadata only; no code of the model's runs. Exits 1 where loading it is refused, after showing why.

    Example: maasdam inspect hf:google/mobilenet_v2_1.0_224
    """
    from maasdam import settings
    from maasdam.operations.inspected import inspect

    def show(inspection: Inspection, batching: Batching) -> None:
        emit(inspection.to_json() | batching.facts(), as_json, lambda: _table(inspection, batching), is_styled=True)

    inspect(source, settings.load(), show, trust=trust, processor=processor)


def _table(inspection: Inspection, batching: Batching) -> str:
    """The inspection as a table, as wide as the terminal."""
    import io

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in [*_rows(inspection), ("batching", f"{batching.verdict} ({batching.how})")]:
        table.add_row(name, value if isinstance(value, Text) else Text(printable(str(value))))
    wide = Console()
    console = Console(file=io.StringIO(), force_terminal=wide.is_terminal, width=wide.width if wide.is_terminal else 120)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def _rows(inspection: Inspection) -> list[tuple[str, Any]]:
    from rich.text import Text

    unknown = "not said"
    rows: list[tuple[str, Any]] = [
        ("source", inspection.source),
        ("format", f"{inspection.format} ({inspection.layout})"),
        ("task", inspection.task or f"{unknown} (give --task to build)"),
        ("architecture", inspection.architecture or unknown),
    ]
    if inspection.signature is None:
        rows.append(("signature", "takes no plain batch of tensors" if inspection.task else unknown))
    else:
        rows += [("takes" if i == 0 else "", _tensor(spec)) for i, spec in enumerate(inspection.signature.inputs)]
        rows += [("gives" if i == 0 else "", _tensor(spec)) for i, spec in enumerate(inspection.signature.outputs)]
    rows += [
        ("parameters", f"{inspection.parameters:,}" if inspection.parameters is not None else unknown),
        ("precision", inspection.precision or unknown),
        ("labels", f"{inspection.labels:,}" if inspection.labels is not None else unknown),
        ("size", f"{inspection.size_bytes:,} bytes in {len(inspection.files)} file{'s' * (len(inspection.files) != 1)}"),
    ]
    colours = {"blocked": "bold red", "warning": "yellow", "info": ""}
    risks: list[Any] = [
        Text.assemble(
            (risk.severity, colours[risk.severity]),
            f": {printable(risk.what)}",
            " (--trust lifts this)" if _can_lift(risk) else "",
        )
        for risk in inspection.risks
    ]
    rows += [("risks" if i == 0 else "", risk) for i, risk in enumerate(risks or ["none found: the files hold data, no code"])]
    rows += [("notes" if i == 0 else "", note) for i, note in enumerate(inspection.notes)]
    return rows


def _can_lift(risk: Any) -> bool:
    return bool(risk.liftable) and risk.severity == "blocked"


def _tensor(spec: TensorSpec) -> str:
    return f"{spec.name}: {spec.dtype} {spec.sizes}" + (f" {spec.layout}" if spec.layout else "")
