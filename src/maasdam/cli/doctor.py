"""`maasdam doctor`: what works here and what to install, as a page or as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from maasdam.cli.output import JSON, emit, progress_bar, reporting, table

if TYPE_CHECKING:
    from maasdam.operations.doctor import Diagnosis


def doctor(as_json: bool = JSON) -> None:
    """What works on this machine and what to install: engines, devices, energy counters, database, disk.

    Exits 1 where something every installation needs is broken.

    Example: maasdam doctor
    """
    with reporting():
        from maasdam import settings
        from maasdam.operations.doctor import examine

        with progress_bar() as progress:
            diagnosis = examine(settings.load(), progress)
        emit(diagnosis.to_json(), as_json, lambda: _page(diagnosis))
    if diagnosis.problems:
        raise typer.Exit(1)


def _page(diagnosis: Diagnosis) -> str:
    rows: list[tuple[object, ...]] = [
        (
            e.name,
            "yes" if e.works else "no",
            ", ".join(f"{library} {version}" for library, version in e.versions.items()),
            " ".join(e.devices),
            " ".join(e.layouts),
            e.problem or "",
        )
        for e in diagnosis.engines
    ]
    machine, disk = diagnosis.machine, diagnosis.disk
    instructions = machine["instructions"]
    lines = [
        table(("engine", "works", "versions", "devices", "opens", "to do"), rows),
        "",
        f"machine   {machine['system']}, Python {machine['python']}, {machine['cores']} cores, "
        f"{machine['memory_bytes'] / 2**30:.1f} GB; instructions for int8 and bf16: "
        f"{'not known' if instructions is None else ' '.join(instructions) or 'none'}"
        f"{'' if machine['has_int8'] else ' (none made for int8: it gains less here than on processors with VNNI)'}",
        f"energy    {diagnosis.energy['method']} (RAPL: {diagnosis.energy['rapl']})",
        f"database  {diagnosis.database['url']}: {diagnosis.database['state']}",
        f"disk      {disk['home']}: {disk['free_bytes'] / 2**30:.1f} GB free",
        "",
        *(diagnosis.problems or ("Everything that every installation needs works.",)),
    ]
    return "\n".join(lines)
