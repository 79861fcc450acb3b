"""What is compared are inputs that the source takes and answers differently to; how closely depends on what it computes in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maasdam.convert.proof.certificate import certify
from maasdam.convert.proof.differences import Proof, Tolerance
from maasdam.convert.proof.precision import HALF, ROUNDED, WHOLE, tolerance_of
from maasdam.convert.proof.trials import trials
from maasdam.core import Artifact, Signature, Tensors, TensorSpec
from maasdam.errors import EngineFailure, Unsupported, VerificationFailed
from tests.engines.networks import CNN, artifact

PIXELS = Signature((TensorSpec("image", "float32", (None, None, None, 3)),), (TensorSpec("y", "float32", (None, 3)),))


class FakeSource:
    """An engine that is one function of its only input."""

    def __init__(self, signature: Signature, function: Callable[[Any], Any]) -> None:
        self.signature = signature
        self.function = function

    def run(self, batch: Tensors) -> dict[str, Any]:
        (array,) = batch.values()
        return {"y": self.function(array)}

    def precisions(self) -> dict[str, int]:
        return {}

    def close(self) -> None:
        pass


def cases(source: FakeSource) -> list[tuple[int, Tensors, Tensors]]:
    return list(trials(source, (0, 1), None, Tolerance()))


def test_a_model_that_wants_pixels_up_to_255_gets_them() -> None:
    tried = cases(FakeSource(PIXELS, lambda image: 1 + (image / 255).clip(1e-2, 1).mean((1, 2))))
    assert max(batch["image"].max() for _, batch, _ in tried) > 100
    plain = cases(FakeSource(PIXELS, lambda image: image.mean((1, 2))))
    assert max(batch["image"].max() for _, batch, _ in plain) < 20


def test_a_model_whose_numbers_must_be_positive_gets_such() -> None:
    for _, batch, answer in cases(
        FakeSource(PIXELS, lambda image: np.where(image < 0, np.nan, abs(image) ** 0.5).mean((1, 2)))
    ):
        assert batch["image"].min() >= 0
        assert np.isfinite(answer["y"]).all()


def test_sides_that_must_halve_several_times_are_found() -> None:
    def halving(image: Any) -> Any:
        if image.shape[1] % 32 or image.shape[2] % 32:
            raise EngineFailure("the sides don't fit")
        return image.mean((1, 2))

    sides = {batch["image"].shape[1:3] for _, batch, _ in cases(FakeSource(PIXELS, halving))}
    assert len(sides) == 3
    assert all(a != b for a, b in sides)


def test_a_sequence_that_may_not_be_long_is_tried_shorter() -> None:
    def short(ids: Any) -> Any:
        if ids.shape[1] > 8:
            raise EngineFailure("too long")
        return ids.astype(np.float32).mean(1, keepdims=True)

    signature = Signature((TensorSpec("ids", "int64", (None, None)),), (TensorSpec("y", "float32", (None, 1)),))
    assert {batch["ids"].shape[0] for _, batch, _ in cases(FakeSource(signature, short))} == {1, 2, 3}


def test_a_length_is_never_longer_than_what_it_measures() -> None:
    from maasdam.convert.probes import PROOF_SIZES, probe

    specs = (TensorSpec("series", "float32", (None, None, 4)), TensorSpec("lengths", "int64", (None,)))
    for sizes in PROOF_SIZES:
        batch = probe(Signature(specs, ()), sizes, seed=0)
        assert batch["lengths"].shape == (sizes.batch,)
        assert batch["lengths"].min() >= 1
        assert batch["lengths"].max() == batch["series"].shape[1]


def test_a_source_that_takes_nothing_random_asks_for_real_inputs(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Expand", ["w", "s"], ["e"]),
        helper.make_node("Add", ["x", "e"], ["y"]),
    ]
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 4]) for n in "xy"]
    weight = numpy_helper.from_array(np.ones((7, 4), np.float32), "w")  # only batches of seven can run
    model = helper.make_model(
        helper.make_graph(nodes, "g", info[:1], info[1:], [weight]), opset_imports=[helper.make_opsetid("", 18)], ir_version=9
    )
    onnx.save(model, tmp_path / "model.onnx")
    spec = TensorSpec("x", "float32", (None, 4))
    signature = Signature((spec,), (TensorSpec("y", "float32", (None, 4)),))
    source = Artifact("sha256:x", tmp_path, "onnx", "onnx", None, "onnxruntime", signature, 1)
    with pytest.raises(Unsupported, match="--data"):
        certify(source, source)
    x = np.random.default_rng(0).normal(size=(2, 7, 4)).astype(np.float32)
    assert certify(source, source, inputs=[{"x": each} for each in x]).real_inputs == 2


def proof_of(wanted: Any, found: Any) -> Proof:
    proof = Proof(Tolerance(), ["y"])
    proof.add(0, {}, {"y": np.asarray(wanted)}, {"y": np.asarray(found)})
    return proof


def source() -> Artifact:
    return Artifact("sha256:x", Path(), "onnx", "onnx", None, "onnxruntime", CNN.signature, 1)


def test_an_infinity_that_both_give_is_agreement_and_one_that_is_missing_is_not() -> None:
    inf = np.inf
    wanted = np.array([[1.0, -inf], [2.0, -inf]], np.float32)
    assert proof_of(wanted, wanted).certificate(source(), source(), (0,)).outputs[0].max_abs_diff == 0
    for wrong in ([[1.0, 0.0], [2.0, -inf]], [[1.0, inf], [2.0, -inf]], [[-inf, -inf], [2.0, -inf]]):
        with pytest.raises(VerificationFailed, match="differs by inf"):
            proof_of(wanted, np.array(wrong, np.float32)).certificate(source(), source(), (0,))


def test_a_token_that_is_one_off_fails_however_large_the_others_are() -> None:
    wanted = np.array([50_000, 17, 3])
    with pytest.raises(VerificationFailed, match="differs by 1 where 0 is allowed"):
        proof_of(wanted, [50_000, 18, 3]).certificate(source(), source(), (0,))
    assert proof_of(wanted, wanted).certificate(source(), source(), (0,)).outputs[0].limit == 0


def test_a_class_that_is_the_same_for_all_inputs_agrees_where_another_output_varies() -> None:
    best, scores = np.array([1, 1]), np.array([[0.1, 0.9], [0.3, 0.7]], np.float32)
    for outputs, is_proof in (({"best": best, "scores": scores}, True), ({"best": best}, False)):
        proof = Proof(Tolerance(), list(outputs))
        proof.add(0, {}, outputs, outputs)
        if is_proof:
            proof.certificate(source(), source(), (0,))
        else:
            with pytest.raises(VerificationFailed, match="varies by 0 only"):
                proof.certificate(source(), source(), (0,))


def test_an_output_of_text_is_refused_in_words() -> None:
    with pytest.raises(VerificationFailed, match="only numbers and booleans"):
        proof_of(np.array(["a"], object), np.array(["a"], object))


def test_only_what_computes_in_halves_or_8_bits_may_differ_more(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    found = artifact(tmp_path, CNN, "onnx", "onnxruntime")
    assert tolerance_of(found) == WHOLE
    plain = onnx.load(tmp_path / "model.onnx")
    stored = onnx.ModelProto()
    stored.CopyFrom(plain)
    head = next(w for w in stored.graph.initializer if w.name == "head")
    head.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(head).astype(np.float16), "half"))
    stored.graph.node.insert(0, helper.make_node("Cast", ["half"], ["head"], to=TensorProto.FLOAT))
    onnx.save(stored, tmp_path / "model.onnx")
    assert tolerance_of(found) == WHOLE, "weights that are only kept as halves are multiplied at float32"
    for operator, wanted in (("Cast", HALF), ("DynamicQuantizeLinear", ROUNDED)):
        model = onnx.ModelProto()
        model.CopyFrom(plain)
        options = {"to": TensorProto.FLOAT16} if operator == "Cast" else {}
        names = ["q"] if operator == "Cast" else ["q", "scale", "zero"]
        model.graph.node.append(helper.make_node(operator, ["image"], names, **options))
        onnx.save(model, tmp_path / "model.onnx")
        assert tolerance_of(found) == wanted


def test_an_output_axis_that_was_only_called_open_may_be_fixed(tmp_path: Path) -> None:
    from dataclasses import replace

    found = artifact(tmp_path, CNN, "onnx", "onnxruntime")
    called_open = Signature(CNN.signature.inputs, (TensorSpec("logits", "float32", (None, None)),))
    certify(replace(found, signature=called_open), found, seeds=(0,))
    wrong = Signature(CNN.signature.inputs, (TensorSpec("logits", "float32", (1, 5)),))
    with pytest.raises(VerificationFailed, match="output 'logits' lost its dynamic axis 0"):
        certify(found, replace(found, signature=wrong), seeds=(0,))
