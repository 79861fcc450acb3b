"""The command line. Knows words and flags; each command's work is done in operations, imported when the command runs.

`COMMANDS` is the whole command line: a name, the module and function behind it. Help texts of the overview are read
from the source without importing it, so that `maasdam --help` stays fast.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click
import typer
from typer.core import TyperGroup

COMMANDS: dict[str, tuple[str, str, str]] = {
    # name: (module, attribute, one line of help)
    "quickstart": ("quickstart", "quickstart", "Build, verify, serve and call three models that ship with the project."),
    "inspect": ("inspect", "inspect", "Say what a model is: format, task, signature, size, risks."),
    "build": ("build", "build", "Run a recipe on a model, verify the result, register a version."),
    "convert": ("convert", "convert", "Convert a model to another format, with a certificate."),
    "models": ("models", "app", "The catalog: list, show, promote, rollback, delete, export, import, card."),
    "run": ("run", "run", "Answer inputs in this process."),
    "serve": ("serve", "serve", "Run the service."),
    "deploy": ("deploy", "deploy", "Bring a model up in the service."),
    "undeploy": ("deploy", "undeploy", "Take a model out of the service."),
    "status": ("deploy", "status", "What is deployed, and how it does."),
    "keys": ("keys", "app", "API keys: create, list, revoke."),
    "usage": ("usage", "usage", "What was used, by key, model or day."),
    "bench": ("bench", "bench", "Throughput, latency, CPU and energy per request."),
    "doctor": ("doctor", "doctor", "What works on this machine and what to install."),
}


class LazyGroup(TyperGroup):
    """Loads a command's module when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        """All names, in the order of a model's way."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The Click command behind a name, imported now; for the overview only its line of help."""
        if cmd_name not in COMMANDS:
            return None
        module, attribute, line = COMMANDS[cmd_name]
        if not getattr(ctx, "protected_args", None) and not _is_asked_for(cmd_name):
            return click.Command(cmd_name, help=line)
        found = getattr(importlib.import_module(f"maasdam.cli.{module}"), attribute)
        if isinstance(found, typer.Typer):
            command: Any = typer.main.get_group(found)
        else:
            single = typer.Typer(add_completion=False)
            single.command(cmd_name)(found)
            command = typer.main.get_command(single)
        command.name = cmd_name
        return command


def _is_asked_for(name: str) -> bool:
    return name in sys.argv[1:]


app = typer.Typer(cls=LazyGroup, add_completion=False, no_args_is_help=True)
