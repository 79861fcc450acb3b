"""`maasdam requests`: one request's row in the ledger and its lines in the log."""

from __future__ import annotations

import typer

from maasdam.cli.output import JSON, emit, in_workspace


def requests(
    request_id: str = typer.Argument(..., metavar="ID", help="The X-Request-Id of an answer."),
    as_json: bool = JSON,
) -> None:
    """Say what became of one request: who sent it, to which model, how it ended, and what the log says of it.

    Example: maasdam requests 019a2f6c1d2e5b7c8d9e0f1a2b3c4d5e
    """
    import json

    from maasdam.operations.requests import find_request

    with in_workspace() as workspace:
        facts = find_request(workspace, request_id)
        row = facts["ledger"]
        lines = ["No row in the ledger: it was refused without a valid key, or asked for no model."] if row is None else []
        lines += [f"{name:20} {value}" for name, value in (row or {}).items() if value is not None]
        lines += ["", *(json.dumps(line, ensure_ascii=True) for line in facts["log"])]
        if not facts["log"]:
            lines.append("No lines in the log: it is kept elsewhere, or they are gone.")
        emit(facts, as_json, "\n".join(lines))
