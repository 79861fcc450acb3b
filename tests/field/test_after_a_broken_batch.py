"""A batch that breaks in an engine half-way harms nobody after it: as a recogniser of text is sent a picture of no height."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from maasdam.core import Artifact, Signature, TensorSpec
from maasdam.engines import open_engine
from maasdam.errors import EngineFailure

RANDOM = np.random.default_rng(0)
SIGNATURE = Signature((TensorSpec("x", "float32", (None, 3, None, None)),), (TensorSpec("y", "float32", (None, None, 5)),))
GOOD = [RANDOM.random(shape, dtype=np.float32) for shape in ((1, 3, 48, 80), (1, 3, 48, 320), (4, 3, 48, 80))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Convolutions and a pooling that takes three rows at least, sizes open."""
    made = tmp_path_factory.mktemp("pooling")
    weights = {"v": (8, 3, 3, 3), "w": (8, 8, 3, 3), "m": (8, 5)}
    nodes = [
        helper.make_node("Conv", ["x", "v"], ["a"], strides=[2, 2], pads=[1] * 4),
        helper.make_node("Conv", ["a", "w"], ["b"], pads=[1] * 4),
        helper.make_node("AveragePool", ["b"], ["c"], kernel_shape=[3, 2], strides=[3, 2]),
        helper.make_node("ReduceMean", ["c"], ["d"], axes=[2], keepdims=0),
        helper.make_node("Transpose", ["d"], ["e"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["e", "m"], ["y"]),
    ]
    values = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, "h", "w"]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "t", 5]),
    ]
    constants = [numpy_helper.from_array(RANDOM.normal(size=s).astype(np.float32), n) for n, s in weights.items()]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), made / "model.onnx")
    return made


@pytest.mark.parametrize("streams", [1, 2])
def test_what_comes_after_is_answered_as_before(folder: Path, streams: int) -> None:
    artifact = Artifact("sha256:x", folder, "onnx", "onnx", None, "openvino", SIGNATURE, 1)
    opened = open_engine(artifact, threads=2, settings={"streams": streams})
    wanted = [opened.run({"x": x})["y"] for x in GOOD]
    for bad in (17, 3):
        for x, right in zip(GOOD, wanted, strict=True):
            with pytest.raises(EngineFailure, match="broke on a batch"):
                opened.run({"x": np.zeros((bad, 3, 2, 80), np.float32)})
            np.testing.assert_allclose(opened.run({"x": x})["y"], right, rtol=1e-4, atol=1e-5)
    opened.close()
