"""ONNX graphs as exporters write them: names of all kinds, empty constants, counting with floats, Squeeze without axes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maasdam.core import Artifact, Format, Signature
from maasdam.engines import open_engine
from maasdam.engines.tensors import parameter_names, positions
from maasdam.errors import InvalidModel
from maasdam.operations.convert import convert_model

onnx = pytest.importorskip("onnx")
node, FLOAT = onnx.helper.make_node, onnx.TensorProto.FLOAT
W = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)


def graph(path: Path, nodes: list[Any], inputs: dict[str, Any], outputs: dict[str, Any], **more: Any) -> Path:
    """A file of float inputs and outputs; `more`: constants by name, or the `functions` of its own."""
    functions = more.pop("functions", [])
    values = [[onnx.helper.make_tensor_value_info(n, FLOAT, s) for n, s in side.items()] for side in (inputs, outputs)]
    made = onnx.helper.make_graph(nodes, "g", *values, [onnx.numpy_helper.from_array(a, n) for n, a in more.items()])
    sets = [onnx.helper.make_opsetid("", 13), *(onnx.helper.make_opsetid("own", 1) for _ in functions)]
    onnx.save(onnx.helper.make_model(made, opset_imports=sets, functions=functions, ir_version=8), path)
    return path


def converted(source: Path, to: Format, out: Path) -> Any:
    """The engine of what became of it, once it is proven."""
    document = convert_model(str(source), to, out)
    signature = Signature.from_json(document["signature"])
    artifact = Artifact("sha256:x", out, document["format"], document["layout"], None, document["engine"], signature, 1)
    return open_engine(artifact)


@pytest.mark.parametrize("names", [("X", "x"), ("input:0", "class")])
def test_inputs_of_any_name_keep_it_and_their_place(names: tuple[str, str], tmp_path: Path) -> None:
    a, b = names
    nodes = [node("MatMul", [a, "w"], ["t"]), node("MatMul", [b, "w"], ["u"]), node("Sub", ["t", "u"], ["Out/Put:0"])]
    source = graph(tmp_path / "m.onnx", nodes, {a: ["N", 4], b: ["N", 4]}, {"Out/Put:0": ["N", 3]}, w=W)
    engine = converted(source, "pytorch", tmp_path / "out")
    given = {a: np.ones((2, 4), np.float32), b: np.zeros((2, 4), np.float32)}
    np.testing.assert_allclose(engine.run(given)["Out/Put:0"], given[a] @ W, rtol=1e-5)
    engine.close()


def test_names_that_programs_can_not_hold_are_told_apart_or_numbered() -> None:
    assert parameter_names(["X", "input:0", "1st"]) == ["x", "input_0", "_1st"]
    assert parameter_names(["X", "x"]) == parameter_names(["class", "y"]) == ["tensor_0", "tensor_1"]
    assert positions(["Mask", "IDs"], [{"ids"}, {"mask"}], "inputs") == [1, 0]
    with pytest.raises(InvalidModel):
        positions(["mask", "IDS"], [{"mask"}, {"other"}], "inputs")


def test_an_empty_constant_and_a_range_of_a_size_cast_to_float_become_pytorch(tmp_path: Path) -> None:
    nodes = [
        node("Resize", ["x", "roi", "scales"], ["r"], mode="nearest", coordinate_transformation_mode="asymmetric"),
        node("Shape", ["r"], ["s"]),
        node("Gather", ["s", "three"], ["n"]),
        node("Cast", ["n"], ["f"], to=FLOAT),
        node("Range", ["zero", "f", "one"], ["counted"]),
        node("Mul", ["r", "counted"], ["y"]),
    ]
    source = graph(
        tmp_path / "m.onnx", nodes, {"x": ["N", 3, "H", "W"]}, {"y": ["N", 3, None, None]}, roi=np.zeros(0, np.float32),
        scales=np.array([1, 1, 2, 2], np.float32), three=np.array(3), zero=np.float32(0), one=np.float32(1),
    )  # fmt: skip
    engine = converted(source, "pytorch", tmp_path / "out")
    x = np.random.default_rng(1).normal(size=(1, 3, 5, 7)).astype(np.float32)
    right = x.repeat(2, 2).repeat(2, 3) * np.arange(14, dtype=np.float32)
    np.testing.assert_allclose(engine.run({"x": x})["y"], right, rtol=1e-6)
    engine.close()


def test_widths_of_padding_that_are_turned_round_two_by_two_stay_numbers(tmp_path: Path) -> None:
    """As torch's exporter writes them: [left, right] filled up with zeros, in pairs, the last first, then all the begins."""
    nodes = [
        node("ConstantOfShape", ["four"], ["none"], value=onnx.numpy_helper.from_array(np.array([0]))),
        node("Concat", ["widths", "none"], ["all"], axis=0),
        node("Reshape", ["all", "pairs"], ["by_axis"]),
        node("Slice", ["by_axis", "last", "before", "zero", "last"], ["turned"]),
        node("Transpose", ["turned"], ["ends"], perm=[1, 0]),
        node("Reshape", ["ends", "last"], ["flat"]),
        node("Pad", ["x", "flat"], ["padded"], mode="reflect"),
        node("LSTM", ["padded", "w", "r"], ["", "h"], hidden_size=4),
        node("Squeeze", ["h", "zero"], ["y"]),
    ]
    random = np.random.default_rng(3)
    source = graph(
        tmp_path / "m.onnx", nodes, {"x": [5, "N", 3]}, {"y": ["N", 4]}, four=np.array([4]), widths=np.array([1, 2]),
        pairs=np.array([-1, 2]), last=np.array([-1]), before=np.array([-(2**63) + 1]), zero=np.array([0]),
        w=random.normal(size=(1, 16, 6)).astype(np.float32), r=random.normal(size=(1, 16, 4)).astype(np.float32),
    )  # fmt: skip
    import onnxruntime

    x = random.normal(size=(5, 2, 3)).astype(np.float32)
    right = onnxruntime.InferenceSession(source).run(["y"], {"x": x})[0]
    engine = converted(source, "pytorch", tmp_path / "out")
    np.testing.assert_allclose(engine.run({"x": x})["y"], right, atol=1e-6)
    engine.close()


def test_a_length_that_is_filled_up_to_whole_windows_takes_every_length_in_pytorch(tmp_path: Path) -> None:
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "one"], ["length"]),
        node("Mod", ["length", "seven"], ["rest"]),
        node("Sub", ["seven", "rest"], ["short"]),
        node("Mod", ["short", "seven"], ["more"]),
        node("Reshape", ["more", "row"], ["end"]),
        node("Concat", ["none", "none", "none", "end"], ["pads"], axis=0),
        node("Pad", ["x", "pads"], ["whole"]),
        node("Add", ["length", "more"], ["filled"]),
        node("Div", ["filled", "seven"], ["count"]),
        node("Reshape", ["count", "row"], ["windows"]),
        node("Concat", ["rows", "windows", "each"], ["shape"], axis=0),
        node("Reshape", ["whole", "shape"], ["cut"]),
        node("ReduceSum", ["cut", "two"], ["y"], keepdims=0),
    ]
    source = graph(
        tmp_path / "m.onnx", nodes, {"x": ["N", "T"]}, {"y": ["N", "K"]}, one=np.array(1), two=np.array([2]), seven=np.array(7),
        row=np.array([1]), none=np.array([0]), rows=np.array([-1]), each=np.array([7]),
    )  # fmt: skip
    engine = converted(source, "pytorch", tmp_path / "out")
    for length in (1, 7, 50):
        x = np.ones((2, length), np.float32)
        wanted = np.pad(x, ((0, 0), (0, -length % 7))).reshape(2, -1, 7).sum(2)
        np.testing.assert_array_equal(engine.run({"x": x})["y"], wanted)
    engine.close()


@pytest.mark.parametrize("to", ["openvino", "pytorch"])
def test_a_squeeze_without_axes_keeps_an_open_batch(to: Format, tmp_path: Path) -> None:
    nodes = [node("ReduceMean", ["x"], ["m"], axes=[1], keepdims=1), node("Squeeze", ["m"], ["y"])]
    source = graph(tmp_path / "m.onnx", nodes, {"x": ["N", 4]}, {"y": []})  # the file says that it is a scalar
    engine = converted(source, to, tmp_path / "out")
    x = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)
    np.testing.assert_allclose(engine.run({"x": x})["y"], x.mean(1), rtol=1e-5)
    engine.close()


def test_functions_of_a_file_s_own_are_written_out_for_openvino(tmp_path: Path) -> None:
    twice = onnx.helper.make_function(
        "own", "Twice", ["a"], ["b"], [node("Add", ["a", "a"], ["b"])], [onnx.helper.make_opsetid("", 13)]
    )
    nodes = [node("Twice", ["x"], ["t"], domain="own"), node("MatMul", ["t", "w"], ["y"])]
    source = graph(tmp_path / "m.onnx", nodes, {"x": ["N", 4]}, {"y": ["N", 3]}, w=W, functions=[twice])
    engine = converted(source, "openvino", tmp_path / "out")
    np.testing.assert_allclose(engine.run({"x": np.ones((1, 4), np.float32)})["y"], 2 * W.sum(0)[None], rtol=1e-5)
    engine.close()


@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_an_input_that_is_returned_is_an_output_of_its_own(to: Format, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")

    class Back(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return x, x * 2 - 1

    program = torch.export.export(Back(), (torch.ones(2, 3),), dynamic_shapes=({0: torch.export.Dim("n")},))
    torch.export.save(program, tmp_path / "m.pt2")
    engine = converted(tmp_path / "m.pt2", to, tmp_path / "out")
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    found = engine.run({"x": x})
    np.testing.assert_array_equal(found["x_1"], x)
    assert len(found) == 2
    engine.close()


def test_an_if_decides_on_one_element_of_any_rank(tmp_path: Path) -> None:
    """As a wake word's second stage is asked: the condition is a score [1, 1], which OpenVINO's If takes flat only."""
    value = onnx.helper.make_tensor_value_info("r", FLOAT, ["n", 4])
    branches = {
        name: onnx.helper.make_graph([node(kind, ["x"], ["r"])], name, [], [value])
        for name, kind in (("then_branch", "Neg"), ("else_branch", "Relu"))
    }
    nodes = [
        node("ReduceSum", ["x"], ["sum"], keepdims=1),
        node("Greater", ["sum", "none"], ["is_much"]),
        node("If", ["is_much"], ["y"], **branches),
    ]
    source = graph(tmp_path / "if.onnx", nodes, {"x": ["n", 4]}, {"y": ["n", 4]}, none=np.array(0, np.float32))
    engine = converted(source, "openvino", tmp_path / "out")
    for x in (np.full((1, 4), 2, np.float32), np.array([[1, -2, -3, 0.5]], np.float32)):
        assert np.array_equal(engine.run({"x": x})["y"], -x if x.sum() > 0 else np.maximum(x, 0))
