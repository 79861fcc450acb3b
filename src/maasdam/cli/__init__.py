"""The command line. Knows words and flags; each command's work is done in operations, imported when the command runs.

`COMMANDS` is the whole command line. Only the module of the command that was asked for is imported, so that
`maasdam --help` stays fast.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import typer

from maasdam import __version__

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
    "requests": ("requests", "requests", "What became of one request: its row and its log lines."),
    "doctor": ("doctor", "doctor", "What works on this machine and what to install."),
}


def command_line(command: str | None) -> typer.Typer:
    """The Typer application, with `command` imported and the others known by their line of help only."""
    app = typer.Typer(
        name="maasdam",
        help="Deploy, run and serve trained models, measured. Start with: maasdam quickstart",
        add_completion=False,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["--help", "-h"]},
    )

    @app.callback()
    def maasdam(
        version: bool = typer.Option(False, "--version", is_eager=True, callback=_print_version, help="Print it and exit."),
    ) -> None:
        """Deploy, run and serve trained models, measured. Start with: maasdam quickstart"""

    for name, (module, attribute, line) in COMMANDS.items():
        if name != command:
            app.command(name, help=line)(_not_asked_for)
            continue
        target = getattr(importlib.import_module(f"maasdam.cli.{module}"), attribute)
        if isinstance(target, typer.Typer):
            app.add_typer(target, name=name, help=line, no_args_is_help=True)
        else:
            app.command(name)(target)
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """The `maasdam` program."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = next((word for word in words if not word.startswith("-")), None)
    command_line(command if command in COMMANDS else None)(args=words, prog_name="maasdam")


def _not_asked_for() -> None:
    raise AssertionError("only the command that was asked for runs")


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(f"maasdam {__version__}")
        raise typer.Exit
