"""A small network in OpenVINO is compiled for one row too, and answers the same with it, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.engines.networks import CNN, MLP, artifact

from maasdam.core import Artifact, Signature, TensorSpec
from maasdam.engines import open_engine, openvino_engine

pytest.importorskip("onnx")


def _saved(folder: Path, nodes: list[Any], shapes: dict[str, list[Any]], stored: dict[str, Any], out: list[Any]) -> Artifact:
    """A graph of float32 `shapes` in and `out` out, as an artifact of OpenVINO."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)]
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), folder / "model.onnx")

    def spec(name: str, shape: list[Any]) -> TensorSpec:
        return TensorSpec(name, "float32", tuple(n if isinstance(n, int) else None for n in shape))

    signature = Signature(tuple(spec(n, s) for n, s in shapes.items()), (spec("y", out),))
    return Artifact("sha256:0", folder, "onnx", "onnx", None, "openvino", signature, 1)


@pytest.mark.parametrize("network", [CNN, MLP], ids=lambda network: network.name)
def test_the_network_of_one_row_runs_one_row_and_answers_as_the_open_one(
    network: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = artifact(tmp_path, network, "onnx", "openvino")
    small = open_engine(kept, threads=1)
    monkeypatch.setattr(openvino_engine, "SMALL_BYTES", -1)
    large = open_engine(kept, threads=1)
    assert small._row is not None
    assert large._row is None
    row = {name: array[:1] for name, array in network.inputs.items()}
    for batch, idle in ((row, [0, 1]), (network.inputs, [1, 1])):  # open requests of (the open one, the one of one row)
        wanted = large.run(batch)
        for name, array in small.run(batch).items():
            np.testing.assert_array_equal(array, wanted[name])
        assert [len(requests) for requests in small._idle] == idle
    small.close()
    with pytest.raises(Exception, match="was closed"):
        small.run(row)
    large.close()


def test_open_lengths_have_no_network_of_one_row(tmp_path: Path) -> None:
    from onnx import helper

    kept = _saved(tmp_path, [helper.make_node("Relu", ["x"], ["y"])], {"x": ["n", "length"]}, {}, ["n", "length"])
    engine = open_engine(kept, threads=1)
    assert engine._row is None
    np.testing.assert_array_equal(engine.run({"x": np.float32([[-1, 2, 3]])})["y"], np.float32([[0, 2, 3]]))
    engine.close()


def test_a_network_that_takes_pairs_of_rows_is_opened_for_them_alone(tmp_path: Path) -> None:
    from onnx import helper

    nodes = [helper.make_node("Reshape", ["x", "shape"], ["pairs"]), helper.make_node("ReduceSum", ["pairs", "axis"], ["y"])]
    stored = {"shape": np.int64([-1, 6]), "axis": np.int64([1])}
    engine = open_engine(_saved(tmp_path, nodes, {"x": ["n", 3]}, stored, ["pairs", 1]), threads=1)
    assert engine._row is None
    np.testing.assert_array_equal(engine.run({"x": np.ones((4, 3), np.float32)})["y"], np.float32([[6], [6]]))
    engine.close()
