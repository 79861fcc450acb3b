"""What people stumble over on the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import httpx
import onnx
import pytest
from onnx import TensorProto, helper
from tests.served import add_mlp, open_home, record, serving

from maasdam import settings
from maasdam.accounts.prices import Prices
from maasdam.api.listening import bound_path
from maasdam.core import Entry
from maasdam.errors import InvalidInput
from maasdam.operations.card import card
from maasdam.operations.limits import memory_budget

ESCAPES = "\x1b[31mred\x1b]0;title\x07\x9b2J\u202e"


def maasdam(home: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    environ = os.environ | {"MAASDAM_HOME": str(home)} | environment
    command = [sys.executable, "-m", "maasdam", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environ, cwd=home)


def test_status_finds_the_service_wherever_it_listens_and_needs_no_key(tmp_path: Path) -> None:
    workspace = open_home(tmp_path)
    add_mlp(workspace)
    _, key = workspace.keys.create("tests", ["infer"])
    with serving(tmp_path, key) as running:  # on a port of its own, with keys
        told = json.loads(maasdam(tmp_path, "status", "--json").stdout)
        assert told["service"]["url"] == running.url and told["service"]["state"] == "running"
        assert [copy["version"] for copy in told["deployments"][0]["serving"]] == [1]
        file = tmp_path / "service.json"
        assert file.stat().st_mode & 0o777 == 0o600
        secret = json.loads(file.read_text())["secret"]
        wrong = httpx.get(f"{running.url}/admin/deployments", headers={"Authorization": f"Bearer {secret}x"})
        assert wrong.status_code == 401
        running.stop()
    assert not file.exists()
    told = json.loads(maasdam(tmp_path, "status", "--json").stdout)
    assert told["service"]["state"] == "not running"
    workspace.close()


def test_a_service_that_was_killed_leaves_no_rights_behind(tmp_path: Path) -> None:
    (tmp_path / "service.json").write_text(json.dumps({"url": "http://127.0.0.1:9", "pid": 1, "secret": "old"}))
    told = json.loads(maasdam(tmp_path, "status", "--json", MAASDAM_PORT="9").stdout)
    assert told["service"]["state"] == "not running"
    for broken in ("", "[]", "{}", '{"url": 1}'):
        (tmp_path / "service.json").write_text(broken)
        assert maasdam(tmp_path, "status", "--json", MAASDAM_PORT="9").returncode == 0


def test_models_list_and_build_say_what_a_person_needs_next(tmp_path: Path) -> None:
    with open_home(tmp_path) as workspace:
        add_mlp(workspace)
        artifact = workspace.store.get(workspace.catalog.resolve("mlp").digest)
        report = {
            "passed": False,
            "failures": ["drop is 0.2"],
            "accuracy": {"metric": "top1", "candidate": 0.5},
            "size_bytes": {"candidate": 2_500_000},
        }
        workspace.catalog.register("mlp", artifact, source="x", recipe="int8", report=report)
    head, *rows = maasdam(tmp_path, "models", "list").stdout.splitlines()
    assert all(word in head for word in ("VERDICT", "SIZE MB", "METRIC", "VALUE"))
    assert "passed" in rows[0] and all(word in rows[1] for word in ("failed", "2.5", "top1", "0.5"))
    assert "next: maasdam deploy mlp" not in maasdam(tmp_path, "models", "promote", "mlp:1").stdout  # it is deployed


def test_usage_shows_the_currency_and_counts_what_has_no_price(tmp_path: Path) -> None:
    (tmp_path / "maasdam.toml").write_text('[prices.bard]\ncurrency = "EUR"\nrequests = 0.5\n')
    with open_home(tmp_path) as workspace:  # the prices of the home folder
        entry = Entry("a", datetime.now(UTC), None, "anonymous", "bard", "/v1/completions", 200, 0.5, 1)
        others = [replace(entry, request_id="b", model="other"), replace(entry, request_id="c", model="other", status=400)]
        record(workspace, entry, *others)
    rows = {row["name"]: row for row in json.loads(maasdam(tmp_path, "usage", "--json").stdout)["usage"]}
    assert (rows["bard:1"]["price"], rows["bard:1"]["currency"], rows["bard:1"]["unpriced"]) == (0.5, "EUR", 0)
    assert (rows["other:1"]["price"], rows["other:1"]["currency"], rows["other:1"]["unpriced"]) == (None, None, 1)
    text = maasdam(tmp_path, "usage").stdout
    assert "CURRENCY" in text and "EUR" in text and "UNPRICED" in text and "[prices.MODEL]" in text


def test_a_misspelt_field_is_named_with_what_was_meant(tmp_path: Path) -> None:
    file = tmp_path / "maasdam.toml"
    file.write_text('[prices.bard]\ncurrency = "EUR"\nprompt_token = 1\n')
    with pytest.raises(InvalidInput, match=r"prices\.bard\.prompt_token.*did you mean prompt_tokens"):
        Prices.load(file)
    file.write_text('[price.bard]\ncurrency = "EUR"\n')
    with pytest.raises(InvalidInput, match=r"'price'; did you mean 'prices'"):
        settings.load({"home": tmp_path}, environ={})
    file.write_text("prot = 1\nport = 2\n")
    with pytest.raises(InvalidInput, match=r"'prot'; did you mean 'port'"):
        settings.load({"home": tmp_path}, environ={})


@pytest.mark.parametrize("line", ["uds_mode = 0o660", "uds_mode = 660", "log_level = false", "home = 5", "tls_cert = ['a']"])
def test_what_is_no_text_is_not_taken_for_one(tmp_path: Path, line: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(line)
    with pytest.raises(InvalidInput, match=rf"mine\.toml: setting '{line.split()[0]}' is .* no text; write it in quotes"):
        settings.load({}, environ={}, file=file)
    file.write_text("memory_budget = 4000000000")  # which takes words and numbers
    assert memory_budget(settings.load({}, environ={}, file=file)) == 4_000_000_000


@pytest.mark.parametrize(("mode", "given"), [("0660", 0o660), ("600", 0o600), ("432", 0o432)])
def test_a_socket_has_the_permissions_that_were_set(tmp_path: Path, mode: str, given: int) -> None:
    with bound_path(tmp_path / "s", mode):
        assert (tmp_path / "s").stat().st_mode & 0o7777 == given
    for wrong in ("-1", "0o660", "7777", "60", "0_600", " 0600", "0600\n", "888", ""):
        with pytest.raises(InvalidInput, match="permissions in octal, as 0600"), bound_path(tmp_path / "s", wrong):
            pass


def test_settings_of_the_home_stand_below_those_of_this_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir(), here.mkdir()
    monkeypatch.chdir(here)
    (home / "maasdam.toml").write_text("port = 1\nthreads = 3\n")
    (here / "maasdam.toml").write_text("port = 2\n")
    found = settings.load({"home": home}, environ={})
    assert (found.port, found.threads) == (2, 3)
    (here / "only.toml").write_text("port = 4\n")
    assert settings.load({"home": home}, environ={}, file=here / "only.toml").threads == 0


def test_the_doctor_says_what_it_is_doing(tmp_path: Path) -> None:
    done = maasdam(tmp_path, "doctor")
    assert "import engines" in done.stderr and "database" in done.stderr


@pytest.mark.parametrize("words", [("-h",), ("build", "-h"), ("models", "-h"), ("models", "list", "-h")])
def test_the_short_form_of_help_is_help(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = maasdam(tmp_path, *words)
    assert done.returncode == 0 and "Usage:" in done.stdout


def hostile_names(path: Path) -> None:
    name = f"x{ESCAPES}"
    node = helper.make_node("Relu", [name], [f"y{ESCAPES}"], name=f"n{ESCAPES}")
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["b", 4]) for n in (name, f"y{ESCAPES}")]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def drives_a_terminal(text: str) -> bool:
    return any(not c.isprintable() and c not in "\n\t\r" for c in text)


def test_what_a_file_names_something_drives_no_terminal(tmp_path: Path) -> None:
    model = tmp_path / "names.onnx"
    hostile_names(model)
    for words in (
        ("inspect", str(model)),
        ("inspect", str(model), "--json"),
        ("convert", str(model), "--to", "onnx", "-o", str(tmp_path / "out")),
        ("build", str(model), "--name", "names"),
        ("models", "show", "names:1"),
        ("models", "show", "names:1", "--json"),
        ("models", "card", "names:1"),
        ("models", "list"),
    ):
        done = maasdam(tmp_path, *words)
        assert not drives_a_terminal(done.stdout), words
        assert not drives_a_terminal(done.stderr), words


def test_a_card_holds_no_markup_of_a_files_making(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script> ![x](http://e/) `a` | b\n# head [l](javascript:1)"
    with open_home(tmp_path) as workspace:
        add_mlp(workspace)
        artifact = workspace.store.get(workspace.catalog.resolve("mlp").digest)
        report = {
            "passed": True,
            "failures": [evil],
            "notes": [evil],
            "accuracy": {"metric": evil, "candidate": 0.5, "reference": evil, "examples": evil},
            "parity": {evil: evil},
            "precisions": {evil: evil},
            "conditions": {evil: evil},
            "energy_joules": {"method": evil},
            "throughput": {"unit": evil},
        }
        workspace.catalog.register("mlp", artifact, source=f"/tmp/{evil}", recipe=evil, report=report, passes=[{"use": evil}])
        text = card(workspace, "mlp:2")
    body = text.split("---\n", 2)[2]
    in_no_code = "".join(body.split("`")[::2])
    assert "<script" not in in_no_code and "![x](" not in in_no_code and "\n# head" not in body
    table = [line for line in body.splitlines() if line.startswith("| ")]
    assert {line.replace("\\|", "").count("|") for line in table} == {4}
