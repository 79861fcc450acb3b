"""`maasdam deploy`, `undeploy`, `status`: desired state. A running service follows within a second."""

from __future__ import annotations

from dataclasses import asdict

import typer

from maasdam.cli.output import emit, reporting, table

JSON = typer.Option(False, "--json", help="Print one JSON document.")


def deploy(
    name: str = typer.Argument(help="NAME (follows its alias prod), or NAME:VERSION (stays)."),
    replicas: int = typer.Option(1, "--replicas", min=1, help="Running copies."),
    traffic: list[str] = typer.Option([], "--traffic", help="VERSION=PERCENT of the requests; may be given more than once."),
    shadow: int = typer.Option(None, "--shadow", help="Not yet supported.", hidden=True),
    as_json: bool = JSON,
) -> None:
    """Bring a model up in the service, now and after every restart.

    Example: maasdam deploy photos --traffic 2=10
    """
    if shadow is not None:
        raise typer.BadParameter("shadow traffic is not supported yet; leave it out", param_hint="--shadow")
    shares = dict(_share(text) for text in traffic)
    from maasdam.operations.workspace import Workspace

    with reporting(), Workspace.open() as workspace:
        deployment = workspace.catalog.deploy(name, replicas, shares or None)
        what = f"version {deployment.version}" if deployment.version else "its alias prod, else the newest that passed"
        emit(asdict(deployment), as_json, f"{deployment.model} is deployed: {what}, {deployment.replicas} replica(s)")


def undeploy(name: str = typer.Argument(help="NAME"), as_json: bool = JSON) -> None:
    """Take a model out of the service; requests in flight finish.

    Example: maasdam undeploy photos
    """
    from maasdam.operations.workspace import Workspace

    with reporting(), Workspace.open() as workspace:
        workspace.catalog.undeploy(name)
        emit({"undeployed": name}, as_json, f"{name} is not deployed any more")


def status(as_json: bool = JSON) -> None:
    """Say what is deployed.

    Example: maasdam status
    """
    from maasdam.operations import release
    from maasdam.operations.workspace import Workspace

    with reporting(), Workspace.open() as workspace:
        rows = release.status(workspace)
        heads = ("model", "version", "follows", "task", "format", "engine", "replicas", "traffic")
        cells = [tuple(row[h] for h in heads) for row in rows]
        text = table(heads, cells) if rows else "Nothing is deployed; see: maasdam deploy"
        emit({"deployments": rows}, as_json, text)


def _share(text: str) -> tuple[int, float]:
    version, _, percent = text.partition("=")
    try:
        return int(version), float(percent)
    except ValueError:
        raise typer.BadParameter(f"'{text}' is not VERSION=PERCENT, such as 2=10", param_hint="--traffic") from None
