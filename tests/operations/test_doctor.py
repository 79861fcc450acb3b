"""What doctor finds, on machines that are well and on machines that are not."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from maasdam.cli import main
from maasdam.engines import ENGINES
from maasdam.operations import doctor
from maasdam.settings import Settings


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines' libraries are taken to import."""
    monkeypatch.setattr(doctor, "run_python", lambda *_, **__: subprocess.CompletedProcess([], 0, b"cpu\n", b""))


def test_it_makes_nothing(quick: None, tmp_path: Path) -> None:
    home = tmp_path / "home"
    found = doctor.examine(Settings(home=home))
    assert not home.exists()
    assert "not made yet" in found.database["state"]
    assert found.disk["free_bytes"] > 0 and found.machine["cores"] >= 1
    assert {e.name for e in found.engines} == ENGINES.keys()
    assert found.problems == ()
    json.dumps(found.to_json())


def test_it_says_where_energy_comes_from(quick: None, tmp_path: Path) -> None:
    assert "estimate" in doctor.examine(Settings(home=tmp_path, watts_per_core=9.0)).energy["method"]


def test_a_missing_library_names_the_extra(quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = doctor.installed_version
    monkeypatch.setattr(
        doctor, "installed_version", lambda library: None if library in ("torch", "openvino") else known(library)
    )
    found = doctor.examine(Settings(home=tmp_path))
    engines = {e.name: e for e in found.engines}
    assert not engines["pytorch"].works and "pip install 'maasdam[pytorch]'" in str(engines["pytorch"].problem)
    assert engines["onnxruntime"].works
    assert len(found.problems) == 2  # torch is optional; openvino and openvino-genai are not


def test_a_library_that_crashes_is_told_apart_from_one_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = {name: replace(info, probe="import os; os.abort()") for name, info in ENGINES.items()}
    monkeypatch.setattr(doctor, "ENGINES", broken)
    found = doctor.examine(Settings(home=tmp_path))
    assert all(not e.works and "does not import" in str(e.problem) for e in found.engines)


def test_the_core_engines_really_import_here() -> None:
    for name in ("onnxruntime", "openvino", "openvino-genai"):
        found = doctor._engine(name)
        assert found.works, found.problem
        assert "cpu" in found.devices and all(found.versions.values())


def test_a_database_that_is_none_is_a_problem(quick: None, tmp_path: Path) -> None:
    (tmp_path / "maasdam.db").write_bytes(b"nothing of the kind" * 100)
    found = doctor.examine(Settings(home=tmp_path))
    assert any("database does not open" in p for p in found.problems)


def test_a_password_is_not_shown(quick: None, tmp_path: Path) -> None:
    found = doctor.examine(Settings(home=tmp_path, database_url="postgresql+nosuch://me:secret@localhost/x"))
    assert "secret" not in json.dumps(found.to_json())


def test_the_command_prints_a_page_or_json_and_exits_by_what_it_found(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MAASDAM_HOME", str(tmp_path))

    def status(*words: str) -> int:
        with pytest.raises(SystemExit) as ended:
            main(["doctor", *words])
        return int(ended.value.code or 0)

    assert status() == 0
    page = capsys.readouterr().out
    assert all(name in page for name in ENGINES) and "energy" in page
    assert status("--json") == 0
    assert json.loads(capsys.readouterr().out)["problems"] == []
    (tmp_path / "maasdam.db").write_bytes(b"nothing of the kind" * 100)
    assert status("--json") == 1
