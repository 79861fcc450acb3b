"""The shape of the package: rooms import downward only, and the light parts stay light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

LEVELS = [
    {"core", "errors", "settings", "children"},
    {"database", "telemetry", "grammars"},
    {"artifacts", "engines", "tasks", "accounts"},
    {"sources"},
    {"convert", "serving"},
    {"pipeline"},
    {"operations"},
    {"api"},
    {"workers"},
    {"cli"},
]
LEVEL = {room: i for i, rooms in enumerate(LEVELS) for room in rooms}
SHARED_NAMES = {"Outbox": "the Protocol of what inference needs, and the class that fulfils it"}
"""Names that two classes must share, and why."""
HEAVY = ("torch", "tensorflow", "openvino", "transformers", "onnxruntime", "numpy", "sqlalchemy", "fastapi", "ray")


def _package_imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "maasdam":
            names = [node.module.split(".")[1]] if "." in node.module else [a.name for a in node.names]
            found |= set(names)
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("maasdam.")}
    return found & LEVEL.keys()


def test_rooms_import_downward_only(repository: Path) -> None:
    package = repository / "src" / "maasdam"
    climbs = []
    for path in sorted(package.rglob("*.py")):
        room = path.relative_to(package).with_suffix("").parts[0]
        if room not in LEVEL:
            continue
        climbs += [
            f"{path.relative_to(package)} imports {other}"
            for other in _package_imports(path)
            if other != room and LEVEL[other] >= LEVEL[room] and not (LEVEL[room] == 0 and other == "errors")
        ]
    assert climbs == []


def test_doors_call_operations_only(repository: Path) -> None:
    """They may also use the nouns (core, errors, settings), what says how a task is shown, and the log."""
    allowed = {"api": {"operations", "tasks", "telemetry", *LEVELS[0]} - {"children"}}
    allowed["cli"] = {"api", "workers", *allowed["api"]}
    parts = {"router", "catalog", "keys", "ledger", "metrics", "presence", "compute", "meter", "batching", "store", "database"}
    wholes = ("service", "self._service", "workspace")
    package = repository / "src" / "maasdam"
    for door, rooms in allowed.items():
        for path in sorted((package / door).rglob("*.py")):
            assert _package_imports(path) - {door} <= rooms, path
            for node in ast.walk(ast.parse(path.read_text())):
                reaches = isinstance(node, ast.Attribute) and ast.unparse(node.value) in wholes
                assert not (reaches and node.attr in parts), f"{path}:{node.lineno} reaches into what operations work on"


@pytest.mark.parametrize(
    "words", [["-c", "import maasdam, maasdam.core, maasdam.errors, maasdam.settings"], ["-m", "maasdam", "--help"]]
)
def test_the_help_and_the_nouns_import_no_framework(words: list[str]) -> None:
    script = ["-X", "importtime", *words]
    result = subprocess.run([sys.executable, *script], capture_output=True, text=True, check=True)
    imported = {line.rsplit("|", 1)[-1].strip() for line in result.stderr.splitlines()}
    assert imported & set(HEAVY) == set()


def test_errors_of_ours_stand_in_one_file(repository: Path) -> None:
    from maasdam import errors

    ours = {name for name, kind in vars(errors).items() if isinstance(kind, type)}
    elsewhere = [
        f"{path.name}: {node.name}"
        for path in sorted((repository / "src" / "maasdam").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef) and path.name != "errors.py" and {ast.unparse(base) for base in node.bases} & ours
    ]
    assert elsewhere == []


def test_no_two_public_classes_share_a_name(repository: Path) -> None:
    """One word per idea: who reads a name need not ask which room it is of."""
    places: dict[str, list[str]] = {}
    for path in sorted((repository / "src" / "maasdam").rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(path.name)
    assert {name: files for name, files in places.items() if len(files) > 1 and name not in SHARED_NAMES} == {}
    assert {name for name in SHARED_NAMES if len(places.get(name, ())) < 2} == set(), "an exception that is none any more"


def test_the_operators_import_each_other_in_no_circle(repository: Path) -> None:
    """What is imported for types alone counts too."""
    folder = repository / "src" / "maasdam" / "convert" / "operators"
    files = {".".join(path.relative_to(folder).with_suffix("").parts): path for path in folder.rglob("*.py")}
    waiting = {}
    for name, path in files.items():
        imported = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("maasdam.convert.operators"):
                room = (node.module or "").split(".")[3:]
                imported |= {".".join(room)} | {".".join([*room, alias.name]) for alias in node.names}
        waiting[name] = imported & files.keys()
    while ready := {name for name, imported in waiting.items() if not imported & waiting.keys()}:
        waiting = {name: imported for name, imported in waiting.items() if name not in ready}
    assert waiting == {}


def test_every_exception_from_the_rules_has_its_reason_beside_it(repository: Path) -> None:
    exception = re.compile(r"#\s*(?:no" + r"qa: [A-Z]+\d+(?:, ?[A-Z]+\d+)*|type: ig" + r"nore\[[^\]]+\])")
    bare = [
        f"{path.relative_to(repository)}:{number}"
        for room in ("src", "tests", "tools", "benchmarks")
        for path in (repository / room).rglob("*.py")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if (found := exception.search(line)) and not exception.sub("", line[found.start() :]).strip(" #-")
    ]
    assert bare == []
