"""Keras files as people have them: Sequential, dicts of outputs, mixed precision, and what Keras 2 wrote."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maasdam.convert.asking import with_signatures
from maasdam.convert.proof.precision import HALF, WHOLE, tolerance_of
from maasdam.core import Artifact, Format
from maasdam.engines import open_engine
from maasdam.engines.keras2 import translated
from maasdam.engines.keras_library import open_keras
from maasdam.errors import UnsafeModel
from maasdam.operations.convert import convert_model
from maasdam.sources import inspect

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def layers() -> Any:
    keras = pytest.importorskip("keras")
    keras.utils.set_random_seed(0)
    return keras.layers


def saved(model: Any, path: Path) -> Path:
    draw = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(draw.normal(size=weight.shape) * 0.5)
    model.save(path)
    return path


def artifact(path: Path) -> Artifact:
    return Artifact("sha256:x", path.parent, "tensorflow", "keras", None, "tensorflow", inspect(str(path)).signature, 1)


@pytest.mark.parametrize("to", ["onnx", "tensorflow"])
def test_a_sequential_converts(layers: Any, to: Format, tmp_path: Path) -> None:
    import keras

    model = keras.Sequential([keras.Input((4,), name="it"), layers.Dense(3, name="first"), layers.Dense(2, name="last")])
    path = saved(model, tmp_path / "model.keras")
    document = convert_model(str(path), to, tmp_path / "out")
    assert [s["name"] for s in document["signature"]["outputs"]] == ["last"]


def test_outputs_in_a_dict_keep_their_keys_and_repeated_ones_are_numbered(layers: Any, tmp_path: Path) -> None:
    import keras

    x = keras.Input((4,), name="x")
    hidden = layers.Dense(3, name="d1")(x)
    model = keras.Model(x, {"probs": layers.Dense(2, name="d2")(hidden), "hidden": hidden})
    path = saved(model, tmp_path / "model.keras")
    found = inspect(str(path)).signature
    assert found is not None and [s.name for s in found.outputs] == ["hidden", "probs"]
    engine = open_engine(artifact(path))
    ask = {"x": np.ones((2, 4), np.float32)}
    right = model(ask["x"])
    for name, answer in engine.run(ask).items():
        np.testing.assert_allclose(answer, right[name], rtol=1e-5)
    engine.close()
    twice = layers.Dense(4, name="twice")
    again = saved(keras.Model(x, [twice(x), twice(twice(x)), x]), tmp_path / "again.keras")
    assert [s.name for s in open_keras(again).signature.outputs] == ["twice", "twice_1", "x_1"]


def test_a_layer_whose_answer_is_not_told_by_the_file_is_asked(layers: Any, tmp_path: Path) -> None:
    import keras

    path = saved(keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(2, 3, name="c")]), tmp_path / "model.keras")
    assert artifact(path).signature is None
    (found,) = with_signatures(artifact(path))
    assert found.signature is not None
    assert [(s.name, s.shape) for s in found.signature.outputs] == [("c", (None, 6, 6, 2))]


def test_mixed_precision_is_judged_as_halves_and_float32_is_not(layers: Any, tmp_path: Path) -> None:
    import keras

    for policy, wanted in (("mixed_float16", HALF), ("float32", WHOLE)):
        x = keras.Input((8,), name="x")
        hidden = layers.Dense(16, activation="relu", dtype=policy)(x)
        folder = tmp_path / policy
        folder.mkdir()
        path = saved(keras.Model(x, layers.Dense(3, dtype="float32")(hidden)), folder / "model.keras")
        assert tolerance_of(artifact(path)) == wanted
        document = convert_model(str(path), "onnx", folder / "onnx")
        assert document["certificate"]["tolerance"]["relative"] == wanted.relative
        convert_model(str(path), "tensorflow", folder / "saved")
        found = Artifact("sha256:y", folder / "saved", "tensorflow", "savedmodel", None, "tensorflow", None, 1)
        assert tolerance_of(found) == wanted


KERAS2 = {
    "module": "keras.src.engine.functional", "class_name": "Functional", "registered_name": "Functional",
    "config": {
        "name": "model", "trainable": True, "input_layers": [["a", 0, 0]], "output_layers": [["c", 0, 0]],
        "layers": [
            {"module": "keras.layers", "class_name": "InputLayer", "registered_name": None, "name": "a", "inbound_nodes": [],
             "config": {"batch_input_shape": [None, 6, 6, 2], "dtype": "float32", "ragged": False, "name": "a"}},
            {"module": "keras.layers", "class_name": "DepthwiseConv2D", "registered_name": None, "name": "b",
             "inbound_nodes": [[["a", 0, 0, {}]]], "build_config": {"input_shape": [None, 6, 6, 2]},
             "config": {"name": "b", "dtype": "float32", "kernel_size": [3, 3], "groups": 1, "use_bias": False}},
            {"module": "keras.layers", "class_name": "GlobalAveragePooling2D", "registered_name": None, "name": "c",
             "inbound_nodes": [[["b", 0, 0, {}]]], "build_config": {"input_shape": [None, 4, 4, 2]},
             "config": {"name": "c", "dtype": "float32", "data_format": "channels_last", "keepdims": False}},
        ],
    },
}  # fmt: skip
"""A functional model as Keras 2.15 writes it."""


def of_keras2(path: Path, config: Any, kernel: Any) -> Path:
    import h5py

    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("metadata.json", json.dumps({"keras_version": "2.15.0", "date_saved": "2024-01-01@00:00:00"}))
        stored = io.BytesIO()
        with h5py.File(stored, "w") as weights:
            for name in ("input_layer", "depthwise_conv2d", "global_average_pooling2d"):
                weights.create_group(f"layers/{name}/vars")
            weights["layers/depthwise_conv2d/vars/0"] = kernel
        archive.writestr("model.weights.h5", stored.getvalue())
    return path


def test_a_functional_model_of_keras_2_answers_as_it_did(layers: Any, tmp_path: Path) -> None:
    kernel = np.random.default_rng(1).normal(size=(3, 3, 2, 1)).astype(np.float32)
    path = of_keras2(tmp_path / "model.keras", KERAS2, kernel)
    engine = open_engine(artifact(path))
    x = np.random.default_rng(2).normal(size=(1, 6, 6, 2)).astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(x[0], (3, 3), axis=(0, 1))
    right = np.einsum("hwcij,ijc->hwc", windows, kernel[..., 0]).mean((0, 1))
    np.testing.assert_allclose(engine.run({"a": x})["c"][0], right, rtol=1e-4, atol=1e-5)
    engine.close()


def test_only_the_model_class_of_keras_2_is_known_beyond_its_layers(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    other = json.loads(json.dumps(KERAS2).replace("keras.src.engine.functional", "keras.src.engine.training"))
    path = of_keras2(tmp_path / "model.keras", other, np.zeros((3, 3, 2, 1), np.float32))
    with pytest.raises(UnsafeModel, match=r"keras\.src\.engine\.training"):
        inspect(str(path))


def test_words_of_keras_2_become_those_of_keras_3() -> None:
    def layer(kind: str, **config: Any) -> dict[str, Any]:
        return {"module": "tf_keras.layers", "class_name": kind, "config": config}

    assert translated(layer("BatchNormalization", axis=[3]))["config"] == {"axis": 3}
    assert translated(layer("LSTM", units=2, time_major=False)) == {
        "module": "keras.layers", "class_name": "LSTM", "config": {"units": 2},
    }  # fmt: skip
    assert translated(layer("LSTM", time_major=True))["config"] == {"time_major": True}, "what means something is not dropped"
    assert translated(layer("Conv2D", groups=1))["config"] == {"groups": 1}
    inner = layer("Sequential", layers=[]) | {"name": "s", "inbound_nodes": [[["x", 0, 0, {}]]]}
    after = layer("Dense") | {"name": "d", "inbound_nodes": [[["s", 1, 0, {}]]]}
    model = layer("Functional", layers=[inner, after], input_layers=[["x", 0, 0]], output_layers=[["d", 0, 0]])
    assert translated(model)["config"]["layers"][1]["inbound_nodes"] == [[["s", 0, 0, {}]]]


def test_the_slots_of_an_optimiser_do_not_keep_a_savedmodel_from_loading(layers: Any, tmp_path: Path) -> None:
    import keras
    from tensorflow.core.protobuf import saved_model_pb2

    path = saved(keras.Sequential([keras.Input((4,), name="it"), layers.Dense(3, name="last")]), tmp_path / "model.keras")
    convert_model(str(path), "tensorflow", tmp_path / "saved")
    graph = tmp_path / "saved" / "saved_model.pb"
    model = saved_model_pb2.SavedModel.FromString(graph.read_bytes())
    nodes = model.meta_graphs[0].object_graph_def.nodes
    kernel = next(i for i, node in enumerate(nodes) if node.HasField("variable"))
    slot = nodes.add()
    slot.variable.CopyFrom(nodes[kernel].variable)
    optimizer = nodes.add()
    optimizer.user_object.identifier = "optimizer"
    optimizer.user_object.version.producer = optimizer.user_object.version.min_consumer = 1
    optimizer.slot_variables.add(original_variable_node_id=kernel, slot_name="m", slot_variable_node_id=len(nodes) - 2)
    nodes[0].children.add(node_id=len(nodes) - 1, local_name="optimizer")
    graph.write_bytes(model.SerializeToString())
    (tmp_path / "saved" / "certificate.json").unlink()
    document = convert_model(str(tmp_path / "saved"), "onnx", tmp_path / "out")
    assert document["certificate"]["passed"]
