"""Graphs that quantisation tools stumble over: each is quantised right, or refused with its reason, and alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from maasdam.artifacts.store import Store
from maasdam.core import Artifact
from maasdam.engines import open_engine
from maasdam.errors import MaasdamError, Unsupported
from maasdam.pipeline.recipe import parse_recipe
from maasdam.pipeline.run_recipe import Build, Data
from maasdam.sources import ingest

rng = np.random.default_rng(5)
ROWS = 12


@pytest.fixture(autouse=True)
def _same_in_any_order() -> None:
    """Each test draws the same numbers whichever ran before it."""
    global rng
    rng = np.random.default_rng(5)


def _array(*shape: int, scale: float = 0.3, dtype: Any = np.float32) -> np.ndarray:
    return (rng.standard_normal(shape) * scale).astype(dtype)


def _save(
    path: Path,
    nodes: list[Any],
    weights: dict[str, np.ndarray],
    given: list[Any],
    out: list[Any],
    kind: int = 1,
) -> None:
    ends = helper.make_tensor_value_info("x", kind, given), helper.make_tensor_value_info("y", kind, out)
    stored = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def bias_of_two_axes(path: Path) -> tuple[int, ...]:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", ["m", "b"], ["y"])]
    _save(path, nodes, {"w": _array(32, 8), "b": _array(1, 8)}, ["n", 32], ["n", 8])
    return (1, 32)


def gemm_with_alpha_and_beta(path: Path) -> tuple[int, ...]:
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"], alpha=0.5, beta=3.0, transB=1),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w2", "c"], ["y"], beta=2.0),
    ]
    weights = {"w": _array(16, 32), "b": _array(1, 16, scale=1), "w2": _array(16, 4), "c": _array(4, scale=1)}
    _save(path, nodes, weights, ["n", 32], ["n", 4])
    return (1, 32)


def two_products_without_a_bias(path: Path) -> tuple[int, ...]:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Relu", ["m"], ["r"]),
        helper.make_node("MatMul", ["r", "w2"], ["y"]),
    ]
    _save(path, nodes, {"w": _array(64, 64), "w2": _array(64, 4)}, ["n", 64], ["n", 4])
    return (1, 64)


def transposed_in_groups(path: Path) -> tuple[int, ...]:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("ConvTranspose", ["r", "t", "b"], ["u"], group=2, strides=[2, 2]),
        helper.make_node("Relu", ["u"], ["v"]),
        helper.make_node("Conv", ["v", "z"], ["y"]),
    ]
    weights = {"w": _array(8, 3, 3, 3), "t": _array(8, 4, 2, 2), "b": _array(8, scale=1), "z": _array(4, 8, 1, 1)}
    _save(path, nodes, weights, ["n", 3, 12, 12], ["n", 4, 24, 24])
    return (1, 3, 12, 12)


def recurrent(path: Path) -> tuple[int, ...]:
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        helper.make_node("LSTM", ["t", "w", "r", "b"], ["", "h"], hidden_size=16),
        helper.make_node("Squeeze", ["h", "zero"], ["s"]),
        helper.make_node("Gemm", ["s", "g"], ["y"]),
    ]
    weights = {"w": _array(1, 64, 8), "r": _array(1, 64, 16), "b": _array(1, 128), "g": _array(16, 4), "zero": np.array([0])}
    _save(path, nodes, weights, ["n", 9, 8], ["n", 4])
    return (1, 9, 8)


def in_halves(path: Path) -> tuple[int, ...]:
    half = np.float16
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["h"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Conv", ["r", "g"], ["y"]),
    ]
    weights = {"w": _array(8, 3, 3, 3, dtype=half), "b": _array(8, dtype=half), "g": _array(4, 8, 1, 1, dtype=half)}
    _save(path, nodes, weights, ["n", 3, 8, 8], ["n", 4, 8, 8], TensorProto.FLOAT16)
    return (1, 3, 8, 8)


def colliding_names(path: Path) -> tuple[int, ...]:
    """As converters write them: names that end like those the tools make."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["w_quantized"]),
        helper.make_node("Add", ["w_quantized", "w_scale"], ["x_QuantizeLinear_Output"]),
        helper.make_node("Relu", ["x_QuantizeLinear_Output"], ["w_zero_point"]),
        helper.make_node("MatMul", ["w_zero_point", "w_DequantizeLinear_Output"], ["y"]),
    ]
    weights = {"w": _array(32, 16), "w_scale": _array(16), "w_DequantizeLinear_Output": _array(16, 4)}
    _save(path, nodes, weights, ["n", 32], ["n", 4])
    return (1, 32)


def weights_among_the_inputs(path: Path) -> tuple[int, ...]:
    """As exporters of the first versions wrote them, with a weight named as the tools name theirs and a bias of no name."""
    nodes = [
        helper.make_node("Gemm", ["x", "fc1_weight", "fc1_bias"], ["fc1"], transB=1),
        helper.make_node("Relu", ["fc1"], ["r"]),
        helper.make_node("Gemm", ["r", "w", ""], ["y"], alpha=2.0),
    ]
    weights = {"fc1_weight": _array(16, 32), "fc1_bias": _array(16, scale=1), "w": _array(16, 4)}
    _save(path, nodes, weights, ["n", 32], ["n", 4])
    model = onnx.load(path)
    model.graph.input.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, list(value.shape)) for name, value in weights.items()
    )
    onnx.save(model, path)
    return (1, 32)


def boxes_beside_scores(path: Path) -> tuple[int, ...]:
    """Boxes of hundreds and scores below one in one tensor: one scale of 8 bits holds no score."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Conv", ["r", "kb"], ["e"]),
        helper.make_node("Sigmoid", ["e"], ["f"]),
        helper.make_node("Mul", ["f", "side"], ["boxes"]),
        helper.make_node("Conv", ["r", "ks", "bs"], ["g"]),
        helper.make_node("Sigmoid", ["g"], ["scores"]),
        helper.make_node("Concat", ["boxes", "scores"], ["y"], axis=1),
    ]
    weights = {
        "w": _array(8, 3, 3, 3),
        "kb": _array(4, 8, 1, 1),
        "ks": _array(4, 8, 1, 1),
        "bs": np.full(4, -4, np.float32),
        "side": np.array(640, np.float32),
    }
    _save(path, nodes, weights, ["n", 3, 12, 12], ["n", 8, 12, 12])
    return (1, 3, 12, 12)


GRAPHS = (
    bias_of_two_axes,
    gemm_with_alpha_and_beta,
    transposed_in_groups,
    recurrent,
    in_halves,
    colliding_names,
    weights_among_the_inputs,
    boxes_beside_scores,
    two_products_without_a_bias,
)


def _folder(folder: Path, shape: tuple[int, ...], kind: Any) -> Path:
    folder.mkdir(parents=True)
    for row in range(ROWS):
        np.savez(folder / f"{row}.npz", x=rng.uniform(-1, 1, shape).astype(kind))
    return folder


def _quantized(source: Artifact, store: Store, data: Path, scheme: str, to: str) -> Artifact:
    recipe = parse_recipe(f'[[pass]]\nuse = "quantize"\nscheme = "{scheme}"\nformat = "{to}"\n', "r", "r")
    return Build(store, Data(data), threads=1).run(recipe, source, None)


def _answers(artifact: Artifact, data: Path) -> np.ndarray:
    engine: Any = open_engine(artifact, threads=1)
    try:
        rows = [engine.run({"x": np.load(path)["x"]})["y"] for path in sorted(data.iterdir())]
    finally:
        engine.close()
    return np.concatenate(rows).astype(np.float64)


def _explained(wanted: np.ndarray, got: np.ndarray) -> float:
    """The worst channel's 1 - residual / variance."""
    a, b = (np.moveaxis(array, 1, 0).reshape(array.shape[1], -1) for array in (wanted, got))
    return float((1 - ((a - b) ** 2).mean(1) / a.var(1)).min())


@pytest.mark.parametrize("make", GRAPHS, ids=lambda make: make.__name__)
def test_each_is_the_same_network_in_eight_bits(tmp_path: Path, make: Callable[[Path], tuple[int, ...]]) -> None:
    shape = make(tmp_path / "model.onnx")
    store = Store(tmp_path / "artifacts")
    source = ingest(str(tmp_path / "model.onnx"), store)
    data = _folder(tmp_path / "data", shape, np.float16 if make is in_halves else np.float32)
    wanted = _answers(source, data)
    schemes = [("static-int8", "onnx"), ("dynamic-int8", "onnx")]
    if make not in (gemm_with_alpha_and_beta, weights_among_the_inputs):  # NNCF cuts their activations off: it takes means
        schemes.append(("static-int8", "openvino"))
    if make in (gemm_with_alpha_and_beta, bias_of_two_axes, weights_among_the_inputs):
        schemes.append(("weights-int8", "onnx"))
    for scheme, to in schemes:
        least = 0.7 if (scheme, to) == ("static-int8", "openvino") else 0.9  # NNCF's ranges are means of each example's ends
        assert _explained(wanted, _answers(_quantized(source, store, data, scheme, to), data)) > least, (scheme, to)


def test_what_is_quantised_already_is_refused_by_name(tmp_path: Path) -> None:
    shape = boxes_beside_scores(tmp_path / "model.onnx")
    store = Store(tmp_path / "artifacts")
    source = ingest(str(tmp_path / "model.onnx"), store)
    data = _folder(tmp_path / "data", shape, np.float32)
    for to in ("onnx", "openvino"):
        small = _quantized(source, store, data, "static-int8", to)
        for scheme in ("static-int8", "weights-int8"):
            with pytest.raises(Unsupported, match=r"quantised already.*recipe fp32"):
                _quantized(small, store, data, scheme, to)


def test_a_tool_that_breaks_ends_no_build_that_another_can_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from maasdam.pipeline.quantize import onnx_models

    def breaks(*_: Any) -> Any:
        raise IndexError("list index out of range")

    monkeypatch.setattr(onnx_models, "static_int8", breaks)
    shape = bias_of_two_axes(tmp_path / "model.onnx")
    store = Store(tmp_path / "artifacts")
    source = ingest(str(tmp_path / "model.onnx"), store)
    data = Data(_folder(tmp_path / "data", shape, np.float32))
    text = '[[pass]]\nuse = "quantize"\nscheme = "static-int8"\n[[pass]]\nuse = "optimize"\n'
    build = Build(store, data, threads=1)
    assert build.run(parse_recipe(text, "r", "r"), source, None).format == "openvino"
    assert any("not for onnx" in note and "IndexError: list index out of range" in note for note in build.notes)
    with pytest.raises(MaasdamError, match="static-int8 on onnx broke on this network"):
        Build(store, data, threads=1).run(parse_recipe(text, "r", "r"), source, "onnx")


def test_missing_values_ruin_ranges_and_nothing_else(tmp_path: Path) -> None:
    from maasdam.core import Signature, TensorSpec
    from maasdam.errors import InvalidInput
    from maasdam.pipeline.examples import calibration_inputs

    bias_of_two_axes(tmp_path / "model.onnx")
    source = ingest(str(tmp_path / "model.onnx"), Store(tmp_path / "artifacts"))
    taking = Signature((TensorSpec("x", "float32", (None, 32), takes_nan=True),), source.signature.outputs)
    source = replace(source, signature=taking)
    np.savez(tmp_path / "rows.npz", x=np.full((1, 32), np.nan, np.float32))
    assert np.isnan(calibration_inputs(source, tmp_path / "rows.npz", 1, gives_ranges=False)[0]["x"]).all()
    with pytest.raises(InvalidInput, match="calibrate on finite numbers"):
        calibration_inputs(source, tmp_path / "rows.npz", 1)
