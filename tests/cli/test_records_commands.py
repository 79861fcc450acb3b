"""models, keys, usage, deploy, undeploy and status as their users and their users' scripts see them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.served import add_mlp, open_home, record
from typer.testing import CliRunner, Result

from maasdam.cli import command_line
from maasdam.core import Entry
from maasdam.operations.usage import moment
from maasdam.operations.workspace import Workspace

COMMANDS = ["models list", "models show", "models promote", "models rollback", "models delete", "models export"]
COMMANDS += ["models import", "models card", "keys create", "keys list", "keys revoke", "usage", "deploy", "undeploy", "status"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MAASDAM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MAASDAM_PORT", "9")  # nobody is there
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.fixture
def workspace(home: Path) -> Iterator[Workspace]:
    with open_home(home) as opened:
        yield opened


def run(*words: str) -> Result:
    return CliRunner().invoke(command_line(words[0]), list(words))


def document(*words: str) -> dict:
    result = run(*words, "--json")
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    return json.loads(result.stdout)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(command: str) -> None:
    result = run(*command.split(), "--help")
    assert result.exit_code == 0
    assert f"Example: maasdam {command}" in result.stdout and "--json" in result.stdout


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.split()[-1] not in ("list", "status", "usage")])
def test_a_missing_word_is_misuse(home: Path, command: str) -> None:
    assert run(*command.split()).exit_code == 2


@pytest.mark.parametrize(
    "words",
    [
        ("models", "show", "ghost"),
        ("models", "promote", "ghost:1"),
        ("models", "rollback", "ghost"),
        ("models", "delete", "ghost"),
        ("models", "export", "ghost", "-o", "x.tar"),
        ("models", "import", "ghost.tar"),
        ("models", "card", "ghost"),
        ("keys", "revoke", "ghost"),
        ("keys", "create", "x", "--scope", "root"),
        ("usage", "--since", "soon"),
        ("deploy", "ghost"),
        ("undeploy", "ghost"),
    ],
)
def test_a_failure_is_a_sentence_and_exit_1_with_json_too(home: Path, words: tuple[str, ...]) -> None:
    for flags in ((), ("--json",)):
        result = run(*words, *flags)
        assert result.exit_code == 1 and result.stdout == ""
        assert result.stderr.startswith("error: ") and len(result.stderr.splitlines()) == 1


def test_an_empty_home_is_an_answer_and_not_an_error(home: Path) -> None:
    assert document("models", "list") == {"models": []}
    assert document("keys", "list") == {"keys": []}
    assert document("usage")["usage"] == []
    assert document("status")["deployments"] == []
    for words in (("models", "list"), ("keys", "list"), ("usage",), ("status",)):
        assert run(*words).stdout.strip()


def test_models_list_has_exactly_the_promised_shape(workspace: Workspace) -> None:
    add_mlp(workspace)
    workspace.catalog.promote("mlp")
    digest = workspace.catalog.resolve("mlp").digest
    row = {"name": "mlp", "version": 1, "task": None, "format": "onnx", "engine": "onnxruntime", "digest": digest}
    measured = {"verdict": "passed", "size_bytes": None, "metric": None, "value": None}
    assert document("models", "list") == {"models": [row | {"aliases": ["prod"], "deployed": True} | measured]}


def test_the_life_of_a_model(workspace: Workspace, tmp_path: Path) -> None:
    add_mlp(workspace)
    add_mlp(workspace, width=32)
    assert document("models", "promote", "mlp:1") == {"name": "mlp", "version": 1, "alias": "prod"}
    assert document("models", "promote", "mlp:2")["version"] == 2
    assert document("models", "rollback", "mlp")["version"] == 1
    shown = document("models", "show", "mlp@prod")
    assert (shown["version"], shown["aliases"], shown["report"]["passed"]) == (1, ["prod"], True)
    assert "mlp:1" in run("models", "show", "mlp").stdout
    path = tmp_path / "mlp.tar"
    assert document("models", "export", "mlp@prod", "-o", str(path))["bytes"] == path.stat().st_size
    imported = document("models", "import", str(path), "--name", "copy")
    assert (imported["name"], imported["version"], imported["digest"]) == ("copy", 1, shown["digest"])
    assert document("models", "card", "mlp")["card"].startswith("---\n")
    assert run("models", "card", "mlp", "-o", str(tmp_path / "README.md")).exit_code == 0
    assert (tmp_path / "README.md").read_text().startswith("---\n")
    assert run("models", "delete", "mlp:1").exit_code == 1  # prod
    assert run("models", "delete", "mlp:1").stderr.startswith("error: 'mlp:1' is")
    assert document("models", "delete", "copy") == {"deleted": "copy", "digests": []}


def test_what_failed_is_not_promoted(workspace: Workspace) -> None:
    add_mlp(workspace)
    artifact = workspace.store.get(workspace.catalog.resolve("mlp").digest)
    report = {"passed": False, "failures": ["drop is 0.2; the recipe allows 0.01 at most"]}
    workspace.catalog.register("mlp", artifact, source="x", recipe="int8", report=report)
    result = run("models", "promote", "mlp:2")
    assert result.exit_code == 1 and "drop is 0.2" in result.stderr


def test_desired_state(workspace: Workspace) -> None:
    add_mlp(workspace)
    add_mlp(workspace, width=32)
    workspace.catalog.undeploy("mlp")
    assert document("deploy", "mlp:1", "--replicas", "2", "--traffic", "2=10")["traffic"] == {"2": 10.0}
    answer = document("status")
    (row,) = answer["deployments"]
    assert (row["model"], row["version"], row["replicas"], row["follows"], row["serving"]) == ("mlp", 1, 2, False, None)
    assert answer["service"]["state"] == "not running"
    assert "not running" in run("status").stdout
    assert document("deploy", "mlp", "--on-demand", "--idle", "90", "--isolate")["mode"] == "on-demand"
    assert document("status")["deployments"][0]["idle_seconds"] == 90.0
    assert "on-demand, idle 90 s, isolated" in run("status").stdout
    assert document("deploy", "mlp", "--pin")["mode"] == "pin"
    for wrong, said in ((("--prefix-cache", "key"), "prefix_cache"), (("--prompt-lookup", "4"), "prompt_lookup")):
        refused = run("deploy", "mlp", *wrong)
        assert refused.exit_code == 1 and f"engine onnxruntime has no {said}" in refused.stderr
    assert document("status")["deployments"][0]["mode"] == "pin"
    for wrong in (("--pin", "--on-demand"), ("--pin", "--idle", "9"), ("--idle", "0")):
        assert run("deploy", "mlp", *wrong).exit_code == 2
    assert document("undeploy", "mlp") == {"undeployed": "mlp"}
    for wrong in ("2", "two=10", "2=ten", "="):
        assert run("deploy", "mlp", "--traffic", wrong).exit_code == 2
    assert run("deploy", "mlp", "--replicas", "0").exit_code == 2


def test_a_secret_is_printed_once(home: Path) -> None:
    made = document("keys", "create", "web", "--scope", "infer", "--scope", "deploy")
    assert made["secret"].startswith("mdm_") and made["scopes"] == ["infer", "deploy"]
    text = run("keys", "create", "other").stdout
    assert text.count("mdm_") == 1
    listed = run("keys", "list", "--json").stdout
    assert "mdm_" not in listed and "hash" not in listed
    assert [key["name"] for key in json.loads(listed)["keys"]] == ["web", "other"]
    assert document("keys", "revoke", "web")["revoked_at"]
    assert run("keys", "list").stdout.count("yes") == 1
    with open_home(home) as workspace, pytest.raises(Exception, match="revoked"):
        workspace.keys.check(made["secret"])


def test_usage_by_and_since(workspace: Workspace) -> None:
    entry = Entry("r", datetime.now(UTC), None, "anonymous", "bard", "/v1/completions", 200, 0.5, 1, prompt_tokens=3)
    old = replace(entry, request_id="old", at=datetime(2025, 1, 1, tzinfo=UTC))
    record(workspace, entry, replace(entry, request_id="s", status=400, model="ghost"), old)
    answer = document("usage", "--by", "model", "--since", "7d")
    assert [(row["name"], row["requests"], row["errors"], row["joules"]) for row in answer["usage"]] == [
        ("bard:1", 1, 0, None),
        ("ghost:1", 1, 1, None),
    ]
    assert document("usage", "--by", "day")["usage"][0]["name"] == "2025-01-01"
    assert document("usage", "--by", "key")["usage"][0]["prompt_tokens"] == 9
    assert "bard:1" in run("usage").stdout
    assert run("usage", "--by", "moon").exit_code == 2


@pytest.mark.parametrize("text", ["", "d", "²d", "-1d", "99999999999999d", "2026-13-01", "0001-01-01T00:00+14:00", "x" * 1000])
def test_a_time_that_is_none_is_said_so(text: str) -> None:
    with pytest.raises(Exception, match="is no time") as caught:
        moment(text)
    assert len(str(caught.value)) < 250


def test_times_are_utc_unless_they_say_otherwise() -> None:
    noon = datetime(2026, 3, 1, 12, tzinfo=UTC)
    assert moment("2026-03-01T12:00") == moment("2026-03-01T13:00+01:00") == noon
    assert moment("36h", now=noon).isoformat() == "2026-02-28T00:00:00+00:00"


def test_a_home_that_cannot_be_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = subprocess.run(
        [sys.executable, "-m", "maasdam", "models", "list"],
        env={"MAASDAM_HOME": str(tmp_path / "file" / "home"), "PATH": ""},
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=60,
    )
    assert (
        done.returncode == 1 and done.stderr.startswith("error: can't make the home folder") and "MAASDAM_HOME" in done.stderr
    )
