"""`maasdam models …`: the catalog on a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from maasdam.cli.output import JSON, emit, in_workspace, table

app = typer.Typer(
    rich_markup_mode=None,
    help="The catalog: list, show, promote, rollback, delete, check, export, import, verify, card, report.",
)

NAME = typer.Argument(help="NAME, NAME:VERSION or NAME@ALIAS.")


@app.command("list")
def list_(as_json: bool = JSON) -> None:
    """List every version of every model.

    Example: maasdam models list --json
    """
    from maasdam.operations import release

    with in_workspace() as workspace:
        rows = release.listed(workspace)
        facts = ("name", "version", "task", "format", "engine", "verdict")
        heads = (*facts, "size MB", "metric", "value", "aliases", "deployed")
        cells = [
            (
                *(row[fact] for fact in facts),
                None if row["size_bytes"] is None else row["size_bytes"] / 1e6,
                row["metric"],
                row["value"],
                ", ".join(row["aliases"]) or None,
                row["deployed"],
            )
            for row in rows
        ]
        text = table(heads, cells) if rows else "The catalog is empty; begin with: maasdam build"
        emit({"models": rows}, as_json, text)


@app.command()
def show(name: str = NAME, as_json: bool = JSON) -> None:
    """Show one version: its report, passes, lineage and files.

    Example: maasdam models show photos:1
    """
    from maasdam.operations import release
    from maasdam.operations.card import card as described

    with in_workspace() as workspace:
        facts = release.details(workspace, name)
        emit(facts, as_json, lambda: _text(facts, described(workspace, name)))


@app.command()
def promote(
    name: str = NAME,
    alias: str = typer.Option("prod", "--alias", help="The alias that will name this version."),
    trust: bool = typer.Option(False, "--trust", help="Take the report of an imported version at its word."),
    as_json: bool = JSON,
) -> None:
    """Let NAME@prod be this version; refused when its report failed, or was made elsewhere and not here again.

    Example: maasdam models promote photos:2
    """
    from maasdam.operations import release

    with in_workspace() as workspace:
        version = release.promote(workspace, name, alias, trust)
        facts = {"name": version.model, "version": version.version, "alias": alias}
        then = f"\nnext: maasdam deploy {version.model}" if alias == "prod" and not version.deployed else ""
        emit(facts, as_json, f"{version.model}@{alias} is version {version.version}{then}")


@app.command()
def rollback(
    name: str = typer.Argument(help="NAME"),
    alias: str = typer.Option("prod", "--alias", help="The alias to take back."),
    as_json: bool = JSON,
) -> None:
    """Let NAME@prod be the version it was before.

    Example: maasdam models rollback photos
    """
    from maasdam.operations import release

    with in_workspace() as workspace:
        version = release.rollback(workspace, name, alias)
        facts = {"name": version.model, "version": version.version, "alias": alias}
        emit(facts, as_json, f"{version.model}@{alias} is version {version.version} again")


@app.command()
def delete(name: str = typer.Argument(help="NAME:VERSION, or NAME for all its versions."), as_json: bool = JSON) -> None:
    """Delete a version (or a model) and the files nothing else uses.

    Example: maasdam models delete photos:1
    """
    from maasdam.operations import release

    with in_workspace() as workspace:
        gone = release.delete(workspace, name)
        emit({"deleted": name, "digests": gone}, as_json, f"deleted {name}, and {len(gone)} artifact(s) nothing else used")


@app.command()
def check(as_json: bool = JSON) -> None:
    """Read every stored file and say which are not what they were; exit status 1 where there are any.

    Example: maasdam models check
    """
    from maasdam.cli.output import progress_bar
    from maasdam.operations import release

    with in_workspace() as workspace:
        with progress_bar() as progress:
            result = release.checked(workspace, progress)
        damaged = result["damaged"]
        lines = [f"{row['reason']} (it is {', '.join(row['versions']) or 'no version itself'})" for row in damaged]
        count, size = result["artifacts"], result["bytes"] / 1e6
        whole = f"{count - len(damaged)} of {count} artifacts are whole, {size:,.1f} MB"
        emit(result, as_json, "\n".join([*lines, whole]))
        if damaged:
            raise typer.Exit(1)


@app.command()
def export(
    name: str = NAME,
    output: Path = typer.Option(..., "-o", "--output", help="The .tar to write."),
    as_json: bool = JSON,
) -> None:
    """Write one version with its report to a .tar that `models import` reads.

    Example: maasdam models export photos@prod -o photos.tar
    """
    from maasdam.operations import carry

    with in_workspace() as workspace:
        path = carry.export(workspace, name, output)
        emit({"path": path, "bytes": path.stat().st_size}, as_json, f"wrote {path}")


@app.command("import")
def import_(
    path: Path = typer.Argument(help="A .tar made by `models export`."),
    name: str = typer.Option(None, "--name", help="Register under this name; default: the name it had."),
    trust: bool = typer.Option(False, "--trust", help="Take files that could run code when loaded, where that can be allowed."),
    as_json: bool = JSON,
) -> None:
    """Register a version from a .tar; its files must be what they were when it was written.

    The report comes with it and is as true as whoever made the file: `models verify` makes one here, which `promote` and
    `deploy` ask for.

    Example: maasdam models import photos.tar
    """
    from maasdam.operations import carry

    with in_workspace() as workspace:
        version = carry.import_(workspace, path, name, trust=trust)
        facts = {"name": version.model, "version": version.version, "digest": version.digest}
        name = f"{version.model}:{version.version}"
        emit(facts, as_json, f"registered {name}\n\nnext: maasdam models verify {name}")


@app.command()
def verify(
    name: str = NAME,
    data: Path = typer.Option(None, "--data", help="Labelled examples to evaluate on."),
    as_json: bool = JSON,
) -> None:
    """Measure a version again, here, and let that be its report; for what was imported.

    A version that was built here is refused: its report says more.
    What failed where it was made fails here too.

    It runs in a process of its own, which ends at the limits of `build`, and may die of the model.

    Example: maasdam models verify photos:1 --data photos/
    """
    from maasdam.cli.output import progress_bar
    from maasdam.operations.limits import step_limits
    from maasdam.operations.reverify import reverify

    with in_workspace() as workspace:
        with progress_bar() as progress:
            version = reverify(workspace, name, data=data, limits=step_limits(workspace.settings), progress=progress)
        failures = (version.report or {}).get("failures", [])
        named = f"{version.model}:{version.version}"
        facts = {"name": version.model, "version": version.version, "passed": version.passed, "report": version.report}
        emit(facts, as_json, f"{named} did not pass: {'; '.join(failures)}" if failures else f"{named} passed")
        if failures:
            raise typer.Exit(1)


@app.command()
def card(
    name: str = NAME,
    output: Path = typer.Option(None, "-o", "--output", help="Write it here instead of stdout."),
    as_json: bool = JSON,
) -> None:
    """Write a Hugging Face model card from what was measured.

    Example: maasdam models card photos -o README.md
    """
    from maasdam.operations.card import card as described

    with in_workspace() as workspace:
        text = described(workspace, name)
        if output is not None:
            output.write_text(text)
            workspace.shared(output)
        emit({"card": text}, as_json, text if output is None else f"wrote {output}")


@app.command()
def report(
    name: str = NAME,
    output: Path = typer.Option(None, "-o", "--output", help="The file to write; default: MODEL.html here."),
    as_json: bool = JSON,
) -> None:
    """Write one HTML page of all versions: plots, limits, passes, what the optimiser measured. It needs no network.

    Example: maasdam models report photos -o photos.html
    """
    from maasdam.operations.report_page import write_report

    with in_workspace() as workspace:
        facts = write_report(workspace, name, output)
        emit(facts, as_json, f"wrote {facts['path']}: {facts['versions']} versions, {facts['bytes'] / 1000:.0f} kB")


def _text(facts: dict[str, Any], card: str) -> str:
    body = card.split("---\n", 2)[-1].strip()
    steps = facts["passes"]
    passes = [(step["use"], round(float(step["seconds"]), 1), bool(step["cached"]), step["digest"][:19]) for step in steps]
    parts = [body, "", table(("pass", "seconds", "cached", "digest"), passes) if passes else "no passes", ""]
    if facts["imported"]:
        parts += [f"imported, {'and verified here since' if facts['imported'] == 'verified' else 'not verified here'}"]
    parts += [f"aliases: {', '.join(facts['aliases']) or 'none'}   deployed: {'yes' if facts['deployed'] else 'no'}"]
    return "\n".join([*parts, f"files: {facts['path']}"])
