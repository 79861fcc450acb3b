"""`maasdam keys …`: who may call the service."""

from __future__ import annotations

import typer

from maasdam.cli.output import JSON, emit, in_workspace, table

app = typer.Typer(rich_markup_mode=None, help="API keys: create, list, revoke.")


@app.command()
def create(
    name: str = typer.Argument(help="Who or what will use it."),
    scope: list[str] = typer.Option(["infer"], "--scope", help="infer, deploy or admin; give it more than once for more."),
    as_json: bool = JSON,
) -> None:
    """Make a key. Its secret is shown now and never again.

    Example: maasdam keys create web-app --scope infer
    """
    from maasdam.operations.keys import create_key

    with in_workspace() as workspace:
        key = create_key(workspace, name, scope)
        emit(key, as_json, f"{key['secret']}\n\nKey {key['id']} ({', '.join(key['scopes'])}). Keep it: it is shown only now.")


@app.command("list")
def list_(as_json: bool = JSON) -> None:
    """List every key, without its secret.

    Example: maasdam keys list
    """
    from maasdam.operations.keys import list_keys

    with in_workspace() as workspace:
        keys = list_keys(workspace)
        rows = [
            (key["id"], key["name"], ", ".join(key["scopes"]), f"{key['created_at']:%Y-%m-%d}", bool(key["revoked_at"]))
            for key in keys
        ]
        heads = ("id", "name", "scopes", "created", "revoked")
        text = table(heads, rows) if rows else "No keys; make one: maasdam keys create NAME"
        emit({"keys": keys}, as_json, text)


@app.command()
def revoke(key: str = typer.Argument(help="A key's id, or its name."), as_json: bool = JSON) -> None:
    """Revoke a key; a running service refuses it within a second.

    Example: maasdam keys revoke web-app
    """
    from maasdam.operations.keys import revoke_key

    with in_workspace() as workspace:
        revoked = revoke_key(workspace, key)
        emit(revoked, as_json, f"revoked {revoked['id']} ({revoked['name']})")
