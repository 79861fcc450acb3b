"""Axes that files name or limit, and batches that are one in truth: probes, conversions and data keep to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maasdam.convert.probes import Sizes, accepted, probe
from maasdam.core import Axis, Signature, TensorSpec
from maasdam.operations.convert import convert_model
from maasdam.sources import inspect

onnx = pytest.importorskip("onnx")
node, FLOAT = onnx.helper.make_node, onnx.TensorProto.FLOAT


def recurrent(path: Path, state: list[Any]) -> Path:
    """A GRU [batch, time, 3] whose state may have its batch second, or be that of one row."""
    draw = np.random.default_rng(0)
    weights = {"w": draw.normal(size=(1, 12, 3)), "r": draw.normal(size=(1, 12, 4))}
    nodes = [
        node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        node("GRU", ["t", "w", "r", "", "", "h0"], ["", "y"], hidden_size=4),
    ]
    inputs = {"x": ["N", "T", 3], "h0": state}
    made = onnx.helper.make_graph(
        nodes, "g", [onnx.helper.make_tensor_value_info(n, FLOAT, s) for n, s in inputs.items()],
        [onnx.helper.make_tensor_value_info("y", FLOAT, [1, None, 4])],
        [onnx.numpy_helper.from_array(a.astype(np.float32), n) for n, a in weights.items()],
    )  # fmt: skip
    onnx.save(onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_axes_of_one_name_are_of_one_size_in_what_is_tried(tmp_path: Path) -> None:
    source = recurrent(tmp_path / "m.onnx", [1, "N", 4])
    found = inspect(str(source)).signature
    assert found is not None and found.inputs[1].axes == (None, Axis("N"), None)
    assert Signature.from_json(found.to_json()) == found
    tried = probe(found, Sizes(3), seed=0)
    assert tried["x"].shape[0] == tried["h0"].shape[1] == 3
    document = convert_model(str(source), "openvino", tmp_path / "out")
    assert document["signature"]["inputs"][1]["shape"] == [1, None, 4]


def test_a_batch_that_is_one_in_truth_is_fixed_at_one(tmp_path: Path) -> None:
    document = convert_model(str(recurrent(tmp_path / "m.onnx", [1, 1, 4])), "openvino", tmp_path / "out")
    assert document["signature"]["inputs"][0]["shape"] == [1, None, 3]


def test_what_files_say_by_places_alone_is_not_repeated() -> None:
    from maasdam.sources.finding import with_axes

    ids = [TensorSpec(n, "int64", (None, None)) for n in ("input_ids", "attention_mask")]
    assert with_axes(ids, [[Axis("batch"), Axis("sequence")]] * 2) == tuple(ids)
    assert with_axes(ids, [[Axis("batch"), Axis("sequence", 2)]] * 2) == tuple(ids), "torch says 2 of what it does not know"
    assert with_axes(ids[:1], [[Axis("batch", 1, 4), None]])[0].axes == (Axis("batch", 1, 4), None)


def test_the_range_that_a_program_declares_is_kept_to(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    dims = ({0: torch.export.Dim("n", min=1, max=4), 1: torch.export.Dim("t", min=4000)},)
    program = torch.export.export(torch.nn.ReLU(), (torch.ones(2, 5000),), dynamic_shapes=dims)
    torch.export.save(program, tmp_path / "m.pt2")
    found = inspect(str(tmp_path / "m.pt2")).signature
    assert found is not None
    assert [(a.least, a.most) for a in found.inputs[0].axes if a] == [(1, 4), (4000, None)]
    for batch in (1, 3, 8):
        shape = probe(found, Sizes(batch), seed=0)["input"].shape
        assert shape[0] == min(batch, 4) and shape[1] >= 4000


def test_different_first_axes_are_tried_at_different_sizes_and_long_inputs_are_found() -> None:
    axes = ((Axis("nodes"), None), (Axis("edges"), None))
    graph = Signature(
        tuple(TensorSpec(n, "float32", (None, 2), axes=a) for n, a in zip(("nodes", "edges"), axes, strict=True)), ()
    )
    batch, _ = accepted(lambda given: None, graph, Sizes(1), seed=0, folder=None)
    assert len({len(array) for array in batch.values()}) == 2

    def wants_512(given: Any) -> int:
        if given["wave"].shape[1] < 512:
            raise ValueError("too short")
        return int(given["wave"].shape[1])

    wave = Signature((TensorSpec("wave", "float32", (None, None)),), ())
    assert accepted(wants_512, wave, Sizes(2), seed=0, folder=None)[1] >= 512


def test_data_of_a_fixed_batch_and_of_a_state_beside_a_batch_are_split_into_examples(tmp_path: Path) -> None:
    from maasdam.tasks import load_examples

    def shapes(signature: Signature, **arrays: Any) -> list[dict[str, tuple[int, ...]]]:
        np.savez(tmp_path / "d.npz", **{name: np.zeros(shape, np.float32) for name, shape in arrays.items()})
        found = load_examples("tensors", tmp_path / "d.npz", signature=signature)
        return [{name: array.shape for name, array in e.payload.tensors.items()} for e in found]

    four = Signature((TensorSpec("x", "float32", (4, 2)),), ())
    assert shapes(four, x=(8, 2)) == [{"x": (4, 2)}] * 2 and shapes(four, x=(4, 2)) == [{"x": (4, 2)}]
    n = Axis("N")
    states = Signature(
        (TensorSpec("x", "float32", (None, 5), axes=(n, None)), TensorSpec("h", "float32", (1, None, 3), axes=(None, n, None))),
        (),
    )
    assert shapes(states, x=(6, 5), h=(1, 6, 3)) == [{"x": (1, 5), "h": (1, 1, 3)}] * 6


def test_made_up_inputs_are_as_long_as_the_model_s_layers_want(tmp_path: Path) -> None:
    from maasdam.core import Artifact
    from maasdam.pipeline.examples import made_up_inputs

    nodes = [node("Unsqueeze", ["x", "one"], ["u"]), node("Conv", ["u", "w"], ["y"])]
    made = onnx.helper.make_graph(
        nodes, "g", [onnx.helper.make_tensor_value_info("x", FLOAT, ["N", "T"])],
        [onnx.helper.make_tensor_value_info("y", FLOAT, ["N", 2, None])],
        [onnx.numpy_helper.from_array(a, n) for n, a in {"one": np.array([1]), "w": np.ones((2, 1, 300), np.float32)}.items()],
    )  # fmt: skip
    source = tmp_path / "model.onnx"
    onnx.save(onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), source)
    signature = inspect(str(source)).signature
    artifact = Artifact("sha256:x", tmp_path, "onnx", "onnx", None, "onnxruntime", signature, 1)
    assert all(made["x"].shape[1] >= 300 for made in made_up_inputs(artifact))
