"""A certificate is given only for what agrees, on outputs that vary, under the names that were."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maasdam.convert.proof.certificate import certify
from maasdam.convert.proof.differences import Tolerance
from maasdam.core import Artifact, Signature, TensorSpec
from maasdam.errors import VerificationFailed
from tests.engines.networks import CNN, WORDS, W, artifact


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Artifact, Artifact]:
    """The same small network as ONNX and as OpenVINO IR."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    source = artifact(tmp_path / "a", CNN, "onnx", "onnxruntime")
    return source, replace(artifact(tmp_path / "b", CNN, "ir", "openvino"), digest="sha256:candidate")


def change(source: Artifact, edit: Any) -> None:
    """Edit the ONNX file in place."""
    import onnx

    model = onnx.load(source.path / "model.onnx")
    edit(model.graph)
    onnx.save(model, source.path / "model.onnx")


def set_weight(graph: Any, name: str, array: np.ndarray[Any, Any]) -> None:
    """Replace one initializer."""
    from onnx import numpy_helper

    weight = next(w for w in graph.initializer if w.name == name)
    weight.CopyFrom(numpy_helper.from_array(array, name))


def test_a_certificate_is_bound_to_both_digests_and_says_what_was_compared(pair: tuple[Artifact, Artifact]) -> None:
    source, candidate = pair
    real = [{"image": np.full((1, 3, 8, 8), 0.5, np.float32)}]
    document = certify(source, candidate, seeds=(0, 1), inputs=real).to_json()
    assert document["passed"] is True
    assert document["source"] == {"digest": "sha256:cnn", "engine": "onnxruntime"}
    assert document["candidate"]["digest"] == "sha256:candidate"
    assert document["real_inputs"] == 1
    assert {case["shapes"]["image"][0] for case in document["cases"]} == {1, 2, 3, 4, 8, 17}, "several batches"
    (output,) = document["outputs"]
    assert output["name"] == "logits"
    assert output["max_abs_diff"] <= output["limit"] < output["spread"]
    assert output["cosine"] == pytest.approx(1.0)


def test_one_changed_weight_fails_and_the_message_says_which_output_and_by_how_much(pair: tuple[Artifact, Artifact]) -> None:
    source, candidate = pair
    head = W["head"].copy()
    head[2, 3] += 0.05
    change(source, lambda graph: set_weight(graph, "head", head))
    with pytest.raises(VerificationFailed, match=r"output 'logits' differs by 0\.\d+ where .* is allowed"):
        certify(source, candidate)


def test_the_tolerance_decides(pair: tuple[Artifact, Artifact]) -> None:
    source, candidate = pair
    head = W["head"].copy()
    head[2, 3] += 0.001
    change(source, lambda graph: set_weight(graph, "head", head))
    found = certify(source, candidate, tolerance=Tolerance(relative=0.0, absolute=0.02)).outputs[0].max_abs_diff
    assert 0.0005 < found < 0.02
    with pytest.raises(VerificationFailed):
        certify(source, candidate, tolerance=Tolerance(relative=0.0, absolute=found * 0.99))


def test_an_output_that_never_varies_proves_nothing(pair: tuple[Artifact, Artifact]) -> None:
    source, candidate = pair
    change(source, lambda graph: set_weight(graph, "head", np.zeros_like(W["head"])))
    import openvino as ov

    ov.save_model(ov.convert_model(source.path / "model.onnx"), candidate.path / "model.xml", compress_to_fp16=False)
    with pytest.raises(VerificationFailed, match="varies by 0 only"):
        certify(source, candidate)


def test_nan_in_the_source_proves_nothing(pair: tuple[Artifact, Artifact]) -> None:
    source, candidate = pair
    change(source, lambda graph: set_weight(graph, "head", np.full_like(W["head"], np.nan)))
    with pytest.raises(VerificationFailed, match="NaN"):
        certify(source, candidate)


def test_nan_in_the_candidate_fails(pair: tuple[Artifact, Artifact]) -> None:
    source, candidate = pair
    change(source, lambda graph: set_weight(graph, "head", np.full_like(W["head"], np.nan)))
    with pytest.raises(VerificationFailed, match="differs by inf"):
        certify(candidate, source)


def test_a_lost_name_fails(pair: tuple[Artifact, Artifact]) -> None:
    source, candidate = pair
    renamed = Signature(CNN.signature.inputs, (TensorSpec("output_0", "float32", (None, 5)),))
    with pytest.raises(VerificationFailed, match="the outputs were 'logits' and are now 'output_0'"):
        certify(source, replace(candidate, signature=renamed))


def test_a_fixed_batch_fails(tmp_path: Path, pair: tuple[Artifact, Artifact]) -> None:
    source, candidate = pair
    fixed = Signature((TensorSpec("image", "float32", (1, 3, 8, 8)),), CNN.signature.outputs)
    with pytest.raises(VerificationFailed, match="lost its dynamic axis 0"):
        certify(source, replace(candidate, signature=fixed))


def test_every_output_is_judged_by_itself(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    source = artifact(tmp_path / "a", WORDS, "onnx", "onnxruntime")
    candidate = artifact(tmp_path / "b", WORDS, "ir", "openvino")
    change(source, lambda graph: set_weight(graph, "axis", np.array([-2])))  # the same axis: still equal
    assert {o.name for o in certify(source, candidate, seeds=(0,)).outputs} == {"states", "mean"}
