"""`maasdam usage`: the ledger, summed."""

from __future__ import annotations

from typing import Literal

import typer

from maasdam.cli.output import JSON, emit, in_workspace, table

COLUMNS = (
    *("requests", "errors", "items", "prompt_tokens", "completion_tokens", "audio_seconds"),
    *("seconds", "compute_seconds", "joules", "grams_co2e", "price", "currency", "unpriced"),
)


def usage(
    by: Literal["key", "model", "day"] = typer.Option("model", "--by", help="What to sum by."),
    since: str = typer.Option(None, "--since", help="2026-01-31, 2026-01-31T12:00 (UTC), or an age: 24h, 7d, 2w."),
    as_json: bool = JSON,
) -> None:
    """Say what was used: requests, units, seconds, joules (or none, where none were measured), money.

    Example: maasdam usage --by key --since 7d
    """
    from maasdam.operations.usage import bytes_behind
    from maasdam.operations.usage import usage as sums

    with in_workspace() as workspace:
        rows = sums(workspace, by, since)
        behind = bytes_behind(workspace)
        cells = [(row["name"], *(row[column] for column in COLUMNS)) for row in rows]
        text = table((by, *COLUMNS), cells) if rows else "Nothing was used yet."
        if any(row["unpriced"] for row in rows):
            text += "\n\nunpriced: answered while no price list covered the model; write [prices.MODEL] tables in maasdam.toml"
        if behind:
            text += f"\n\n{behind:,} bytes of what was answered are in journals still: the database takes no rows now"
        emit({"by": by, "since": since, "usage": rows, "bytes_behind": behind}, as_json, text)
