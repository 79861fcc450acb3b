"""`maasdam keys …`: who may call the service."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from maasdam.cli.output import emit, reporting, table

if TYPE_CHECKING:
    from maasdam.accounts.keys import Key

app = typer.Typer(rich_markup_mode=None, help="API keys: create, list, revoke.")

JSON = typer.Option(False, "--json", help="Print one JSON document.")


@app.command()
def create(
    name: str = typer.Argument(help="Who or what will use it."),
    scope: list[str] = typer.Option(["infer"], "--scope", help="infer, deploy or admin; give it more than once for more."),
    as_json: bool = JSON,
) -> None:
    """Make a key. Its secret is shown now and never again.

    Example: maasdam keys create web-app --scope infer
    """
    from maasdam.operations.workspace import Workspace

    with reporting(), Workspace.open() as workspace:
        key, secret = workspace.keys.create(name, scope)
        text = f"{secret}\n\nKey {key.id} ({', '.join(key.scopes)}). Keep it: it is shown only now."
        emit(_facts(key) | {"secret": secret}, as_json, text)


@app.command("list")
def list_(as_json: bool = JSON) -> None:
    """List every key, without its secret.

    Example: maasdam keys list
    """
    from maasdam.operations.workspace import Workspace

    with reporting(), Workspace.open() as workspace:
        keys = workspace.keys.list()
        rows = [(k.id, k.name, ", ".join(k.scopes), f"{k.created_at:%Y-%m-%d}", bool(k.revoked_at)) for k in keys]
        heads = ("id", "name", "scopes", "created", "revoked")
        text = table(heads, rows) if rows else "No keys; make one: maasdam keys create NAME"
        emit({"keys": [_facts(key) for key in keys]}, as_json, text)


@app.command()
def revoke(key: str = typer.Argument(help="A key's id, or its name."), as_json: bool = JSON) -> None:
    """Revoke a key; a running service refuses it within a second.

    Example: maasdam keys revoke web-app
    """
    from maasdam.operations.workspace import Workspace

    with reporting(), Workspace.open() as workspace:
        revoked = workspace.keys.revoke(key)
        emit(_facts(revoked), as_json, f"revoked {revoked.id} ({revoked.name})")


def _facts(key: Key) -> dict[str, Any]:
    times = {"created_at": key.created_at.isoformat(), "revoked_at": key.revoked_at.isoformat() if key.revoked_at else None}
    return asdict(key) | times
