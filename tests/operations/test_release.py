"""Deleting frees what nothing needs, and never what something does; the card says what was measured."""

from __future__ import annotations

import http.server
import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from tests.served import add_mlp, open_home

from maasdam.core import Artifact
from maasdam.errors import Conflict
from maasdam.operations import release
from maasdam.operations.card import card
from maasdam.operations.workspace import Workspace
from maasdam.settings import Settings

PASSED = {"passed": True, "failures": []}


@pytest.fixture
def workspace(tmp_path: Path):
    with open_home(tmp_path / "home") as opened:
        yield opened


def add(workspace: Workspace, text: str, *parents: Artifact) -> Artifact:
    with workspace.store.workspace() as work:
        (work / "out").mkdir()
        (work / "out" / "model.onnx").write_text(text)
        digests = tuple(parent.digest for parent in parents)
        return workspace.store.add(
            work / "out", format="onnx", layout="onnx", task=None, engine="onnxruntime", signature=None, parents=digests
        )


def register(workspace: Workspace, name: str, artifact: Artifact) -> None:
    workspace.catalog.register(name, artifact, source="x", recipe="r", report=PASSED)


def left(workspace: Workspace, **artifacts: Artifact) -> set[str]:
    return {name for name, artifact in artifacts.items() if artifact.digest in workspace.store.digests()}


def test_deleting_the_last_version_frees_all_that_was_made_for_it(workspace: Workspace) -> None:
    source = add(workspace, "source")
    reference, converted = add(workspace, "reference", source), add(workspace, "converted", source)
    quantized = add(workspace, "quantized", converted)
    stranger = add(workspace, "stranger")
    register(workspace, "a", quantized)
    gone = release.delete(workspace, "a:1")
    assert set(gone) == {a.digest for a in (source, reference, converted, quantized)}
    assert workspace.store.digests() == [stranger.digest]


def test_what_another_version_was_made_from_stays(workspace: Workspace) -> None:
    source = add(workspace, "source")
    reference = add(workspace, "reference", source)
    one, two = add(workspace, "one", source), add(workspace, "two", source)
    register(workspace, "a", one)
    register(workspace, "b", two)
    assert release.delete(workspace, "a") == [one.digest]
    assert left(workspace, source=source, reference=reference, two=two) == {"source", "reference", "two"}
    release.delete(workspace, "b")
    assert workspace.store.digests() == []


def test_the_same_files_under_two_names_stay_until_both_are_gone(workspace: Workspace) -> None:
    only = add(workspace, "only")
    register(workspace, "a", only)
    register(workspace, "b", only)
    assert release.delete(workspace, "a") == []
    assert release.delete(workspace, "b") == [only.digest]


def test_a_version_made_from_another_version_keeps_it(workspace: Workspace) -> None:
    first = add(workspace, "first")
    second = add(workspace, "second", first)
    register(workspace, "a", first)
    register(workspace, "b", second)
    assert release.delete(workspace, "a") == []
    assert left(workspace, first=first, second=second) == {"first", "second"}


def test_while_a_build_runs_what_it_may_take_up_stays(workspace: Workspace) -> None:
    source = add(workspace, "source")
    register(workspace, "a", add(workspace, "made", source))
    build = workspace.catalog.start_build("other")
    release.delete(workspace, "a")
    assert workspace.store.digests() == [source.digest]
    workspace.catalog.finish_build(build)


def test_what_is_served_is_not_deleted(workspace: Workspace) -> None:
    add_mlp(workspace)
    with pytest.raises(Conflict):
        release.delete(workspace, "mlp")
    workspace.catalog.undeploy("mlp")
    assert len(release.delete(workspace, "mlp")) == 1


def test_show_tells_the_whole_lineage(workspace: Workspace) -> None:
    source = add(workspace, "source")
    converted = add(workspace, "converted", source)
    made = add(workspace, "made", converted)
    register(workspace, "a", made)
    facts = release.details(workspace, "a")
    assert facts["lineage"] == [made.digest, converted.digest, source.digest]
    assert facts["files"] == ["artifact.json", "model.onnx"] and facts["size_bytes"] == 4
    json.dumps(facts)


def test_status_follows_the_name(workspace: Workspace) -> None:
    add_mlp(workspace)
    (row,) = release.status(workspace)
    assert (row["model"], row["version"], row["follows"], row["engine"]) == ("mlp", 1, True, "onnxruntime")


def test_no_service_is_an_answer_too() -> None:
    settings = replace(Settings(), port=9)
    assert release.running(settings, None)["state"] == "not running"


@pytest.mark.parametrize("reply", [b"<html>", b"[]", b'{"deployments": 3}', b"\xff\xfe"])
def test_another_program_at_the_port_is_not_taken_for_ours(reply: bytes) -> None:
    class Other(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *words: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            assert release.running(replace(Settings(), port=server.server_port), None)["state"] == "not running"
        finally:
            server.shutdown()


REPORT = {
    "passed": True,
    "failures": [],
    "notes": ["calibrated on a sample of --data"],
    "parity": {"max_abs_diff": 0.5, "cosine": 0.999, "agreement": 0.99},
    "accuracy": {"metric": "top1", "reference": 0.9972, "candidate": 0.9944, "drop": 0.0028, "examples": 360},
    "size_bytes": {"reference": 2_800_000, "candidate": 800_000, "ratio": 3.5},
    "latency_ms": {"reference": {"p50": 0.61, "p99": 0.9}, "candidate": {"p50": 0.42, "p99": 0.8}, "speedup": 1.45},
    "throughput": {"reference": 1600.0, "candidate": 2400.0, "unit": "items/s"},
    "energy_joules": {"reference": None, "candidate": None, "method": "no energy counter on this machine"},
    "memory_bytes": {"reference": 1, "candidate": 2},
    "precisions": {"i8": 20, "f32": 3},
}


def test_a_card_is_what_hugging_face_reads_and_what_was_measured(workspace: Workspace) -> None:
    import yaml

    artifact = replace(add(workspace, "made"), task="image-classification")
    passes = [{"use": "quantize", "seconds": 1.0, "cached": False, "digest": artifact.digest}]
    workspace.catalog.register("digits", artifact, source="hf:org/digits", recipe="int8", report=REPORT, passes=passes)
    text = card(workspace, "digits")
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["pipeline_tag"] == "image-classification" and front["base_model"] == "org/digits"
    assert front["model-index"][0]["results"][0]["metrics"] == [{"type": "accuracy", "name": "Top-1 accuracy", "value": 0.9944}]
    assert "| top1 on 360 examples | 0.9972 | 0.9944 |" in text
    assert "| joules per example | not measured | not measured |" in text
    assert "i8 20, f32 3" in text and "Verification **passed**" in text and "calibrated on a sample" in text


@pytest.mark.parametrize(
    "report", [None, PASSED, {"passed": False, "failures": ["drop is 0.2; the recipe allows 0.01 at most"]}]
)
def test_a_card_of_little_says_little(workspace: Workspace, report: dict | None) -> None:
    workspace.catalog.register("a", add(workspace, "made"), source="/home/me/secret-project/model", recipe="r", report=report)
    text = card(workspace, "a:1")
    assert "secret-project" not in text  # a path of the builder's machine is nobody's business
    assert ("never verified" in text) == (report is None)
    assert ("0.2" in text) == bool(report and report["failures"])


def test_a_card_survives_hostile_names(workspace: Workspace) -> None:
    import yaml

    workspace.catalog.register("a", add(workspace, "made"), source='hf:x"\n---\nevil: true', recipe="r", report=None)
    assert "evil" not in yaml.safe_load(card(workspace, "a:1").split("\n---\n")[0].removeprefix("---\n"))
