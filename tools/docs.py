"""Regenerate the pages that are made from the code: docs/cli.md, docs/settings.md, and the table of docs/compression.md.

python tools/docs.py            write them
python tools/docs.py --check    exit 1 and name the page that is out of date
"""

from __future__ import annotations

import ast
import inspect
import sys
from pathlib import Path

from typer.testing import CliRunner

from maasdam import settings
from maasdam.cli import COMMANDS, command_line
from maasdam.pipeline.quantize import NAMES, SCHEMES

BEGIN, END = "<!-- made by tools/docs.py from pipeline/quantize -->", "<!-- end -->"
DOCS = Path(__file__).resolve().parent.parent / "docs"


def command_page() -> str:
    """Every command's own help, as it prints it at 100 columns."""
    parts = ["# Command line", "", "Made from the program by `python tools/docs.py`. Every command takes `--help`.", ""]
    for name in COMMANDS:
        app = command_line(name)
        parts += [f"## {name}", "", "```", _help(app, [name]), "```", ""]
        for sub in _subcommands(name):
            parts += [f"### {name} {sub}", "", "```", _help(app, [name, sub]), "```", ""]
    return "\n".join(parts)


def settings_page() -> str:
    """Every setting: name, environment variable, default, meaning (the field's docstring)."""
    parts = [
        "# Settings",
        "",
        "Made from `settings.py` by `python tools/docs.py`. "
        "Default < `maasdam.toml` of the home folder < `./maasdam.toml` < environment < flag.",
        "",
        "| `maasdam.toml` | environment | default | meaning |",
        "|---|---|---|---|",
    ]
    body = ast.parse(inspect.getsource(settings.Settings)).body[0]
    assert isinstance(body, ast.ClassDef)
    for field, doc in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(doc, ast.Expr) and field.value is not None:
            assert isinstance(field.target, ast.Name)
            default = ast.unparse(field.value).removeprefix("Path(").removesuffix(")")
            meaning = " ".join(ast.literal_eval(doc.value).split())
            parts.append(f"| `{field.target.id}` | `MAASDAM_{field.target.id.upper()}` | `{default}` | {meaning} |")
    return "\n".join([*parts, "", *BESIDE, ""])


BESIDE = (
    "Beside them:",
    "",
    "- `MAASDAM_API_KEY`: the key with which `maasdam status` asks a running service how its copies do.",
    "- `[prices.MODEL]` in either `maasdam.toml` (`*` is every other model): money per unit, noted on each ledger row.",
    "",
    "```toml",
    "[prices.bard]",
    'currency = "EUR"',
    "prompt_tokens = 2e-7",
    "completion_tokens = 6e-7   # also: requests, items, audio_seconds, compute_seconds",
    "```",
)


def compression_page() -> str:
    """The page as it is, with the table of schemes made anew: one line a scheme, a column a format or kind of model."""
    lines = [
        "| `scheme` | OpenVINO | ONNX Runtime | PyTorch | Whisper | language models | reads |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in NAMES:
        rows = [row for row in SCHEMES if row.name == name]
        tensors = {row.format: row.says for row in rows if "tensors" in row.kinds}
        text = [
            row.format + (f": {row.says}" if row.kinds == ("text-generation",) else "")
            for row in rows
            if "text-generation" in row.kinds
        ]
        cells = [tensors.get(format, "") for format in ("openvino", "onnx", "pytorch")]
        cells += [next((row.says for row in rows if "speech" in row.kinds), ""), ", ".join(text)]
        reads = "calibration data" if rows[0].reads else ""
        cells.append(reads + ("; labelled `--train` with `max_drop`" if any(row.held for row in rows) else ""))
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    before, _, rest = (DOCS / "compression.md").read_text().partition(BEGIN)
    return before + BEGIN + "\n".join(["", *lines, ""]) + END + rest.partition(END)[2]


def _help(app: object, words: list[str]) -> str:
    result = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "100"}, prog_name="maasdam")
    if result.exit_code:
        raise SystemExit(f"maasdam {' '.join(words)} --help failed: {result.output}")
    return "\n".join(line.rstrip() for line in result.output.strip().splitlines())


def _subcommands(name: str) -> list[str]:
    import importlib

    import typer

    found = getattr(importlib.import_module(f"maasdam.cli.{COMMANDS[name][0]}"), COMMANDS[name][1])
    if not isinstance(found, typer.Typer):
        return []
    return [command.name or str(command.callback.__name__) for command in found.registered_commands if command.callback]


PAGES = {"cli.md": command_page, "settings.md": settings_page, "compression.md": compression_page}


def main() -> None:
    """Write the pages, or with --check compare them."""
    stale = []
    for name, make in PAGES.items():
        path, text = DOCS / name, make()
        if "--check" in sys.argv:
            stale += [name] if not path.is_file() or path.read_text() != text else []
        else:
            path.write_text(text)
    if stale:
        raise SystemExit(f"out of date: {', '.join(stale)}; run: python tools/docs.py")


if __name__ == "__main__":
    main()
