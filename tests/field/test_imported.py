"""What was imported brings a report of whoever made it: shown so, neither promoted nor deployed before it is verified here."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.served import add_mlp, open_home
from tests.service import maasdam

from maasdam.core import Artifact
from maasdam.errors import InvalidInput, NotFound, VerificationFailed
from maasdam.operations import carry, reverify
from maasdam.operations.card import card
from maasdam.operations.release import listed
from maasdam.operations.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    with open_home(tmp_path / "there") as there, open_home(tmp_path / "here") as here:
        add_mlp(there)
        carry.export(there, "mlp", tmp_path / "mlp.tar")
        carry.import_(here, tmp_path / "mlp.tar")
        yield here


def test_an_imported_report_allows_nothing_until_it_is_made_here(workspace: Workspace) -> None:
    assert workspace.catalog.resolve("mlp:1").imported == "unverified"
    assert listed(workspace)[0]["verdict"] == "imported"
    assert "measured elsewhere" in card(workspace, "mlp:1")
    with pytest.raises(NotFound, match="passed its verification here"):
        workspace.catalog.resolve("mlp")
    for refused in (workspace.catalog.promote, workspace.catalog.deploy):
        with pytest.raises(VerificationFailed, match="maasdam models verify mlp:1"):
            refused("mlp:1")
    with pytest.raises(NotFound):
        workspace.catalog.deploy("mlp")
    reverify.reverify(workspace, "mlp:1")
    assert workspace.catalog.resolve("mlp").imported == "verified"
    assert "verified here since" in card(workspace, "mlp")
    workspace.catalog.promote("mlp")
    workspace.catalog.deploy("mlp")


def test_trust_takes_the_report_at_its_word(workspace: Workspace) -> None:
    assert workspace.catalog.promote("mlp:1", trust=True).aliases == ("prod",)
    assert workspace.catalog.deploy("mlp").model == "mlp"


def test_what_was_made_here_needs_none_of_it(workspace: Workspace) -> None:
    add_mlp(workspace, width=8)
    assert workspace.catalog.resolve("mlp").version == 2, "a newer version of ours, not the imported one"
    workspace.catalog.promote("mlp")


def test_a_traffic_share_is_no_way_around(workspace: Workspace) -> None:
    add_mlp(workspace, width=8)
    with pytest.raises(VerificationFailed, match="imported"):
        workspace.catalog.deploy("mlp:2", traffic={1: 10})


def test_a_metric_worse_than_what_the_report_claims_fails() -> None:
    def report(value: float) -> dict:
        return {"passed": True, "failures": [], "accuracy": {"metric": "top1", "candidate": value}}

    assert reverify._compared(report(0.89), report(0.90))["passed"]
    found = reverify._compared(report(0.60), report(0.90))
    assert not found["passed"] and "0.6 here, and 0.9" in found["failures"][0]
    assert reverify._compared(report(0.60), {})["passed"], "nothing was claimed"


def test_what_was_built_here_keeps_its_report(workspace: Workspace) -> None:
    mlp = workspace.store.get(workspace.catalog.resolve("mlp:1").digest)
    failed = {"passed": False, "failures": ["worse than its source"]}
    workspace.catalog.register("mlp", mlp, source="x", recipe="x", report=failed)
    with pytest.raises(InvalidInput, match=r"built here.*maasdam build"):
        reverify.reverify(workspace, "mlp:2")
    with pytest.raises(InvalidInput, match="built here"):
        workspace.catalog.verified("mlp:2", {"passed": True, "failures": []})
    assert workspace.catalog.resolve("mlp:2").report == failed
    with pytest.raises(VerificationFailed, match="worse than its source"):
        workspace.catalog.promote("mlp:2")


@pytest.mark.parametrize("failures", [["worse than its source"], None])
def test_what_failed_where_it_was_made_fails_however_often_it_is_verified(workspace: Workspace, failures: list | None) -> None:
    mlp = workspace.store.get(workspace.catalog.resolve("mlp:1").digest)
    report = {"passed": False, "failures": failures, "accuracy": {"metric": "top1", "candidate": 0.9}}
    workspace.catalog.register("mlp", mlp, source="x", recipe="x", report=report, is_imported=True)
    for _ in range(2):
        version = reverify.reverify(workspace, "mlp:2")
        assert version.passed is False and len(version.report["failures"]) == 1
        assert "failed where it was made" in version.report["failures"][0]
        assert reverify._claimed(version) == report, "a worse metric here is no claim"
    with pytest.raises(VerificationFailed, match="worse than its source" if failures else "does not say why"):
        workspace.catalog.promote("mlp:2", trust=True)


def test_a_model_that_kills_its_engine_kills_the_verification_alone(tmp_path: Path) -> None:
    """A pad of 2^33 elements, whose address OpenVINO can't hold."""
    with open_home(tmp_path) as workspace:
        add_mlp(workspace)
        digest = workspace.catalog.resolve("mlp").digest
        mlp = workspace.store.get(digest)
        bad = as_crashing(workspace, mlp)
        workspace.catalog.register("bad", bad, source="x", recipe="x", report={"passed": True}, is_imported=True)
    said = maasdam(tmp_path, "models", "verify", "bad:1", expect=1)
    assert "crashed with SIG" in said or "step_memory_bytes" in said
    assert maasdam(tmp_path, "models", "promote", "bad:1", expect=1)
    with open_home(tmp_path) as workspace:
        workspace.catalog.register("good", mlp, source="x", recipe="x", report={"passed": True}, is_imported=True)
    assert maasdam(tmp_path, "models", "verify", "good:1")["passed"] is True


def as_crashing(workspace: Workspace, like: Artifact) -> Artifact:
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node("Pad", ["x", "pads"], ["p"]), helper.make_node("ReduceSum", ["p"], ["y"], keepdims=1)],
        "pad",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1])],
        [numpy_helper.from_array(np.array([0, 2**33, 0, 2**33], np.int64), "pads")],
    )
    with workspace.store.workspace() as folder:
        files = folder / "files"
        files.mkdir()
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), files / "model.onnx")
        signature = dataclasses.replace(like.signature, outputs=(dataclasses.replace(like.signature.outputs[0], shape=(1, 1)),))
        return workspace.store.add(
            files, format="onnx", layout="onnx", task=None, engine="openvino", signature=signature, settings={"threads": 1}
        )
