"""The same small networks in every format, from one set of numpy parameters. Each answers as `Network.expected` says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maasdam.core import Artifact, Signature, TensorSpec

Arrays = dict[str, np.ndarray[Any, np.dtype[Any]]]
random = np.random.default_rng(7)


def _weights(*shape: int) -> Any:
    return random.normal(0, 0.5, shape).astype(np.float32)


W: dict[str, Any] = {
    "conv": _weights(4, 3, 3, 3),  # out, in, height, width
    "head": _weights(4, 5),
    "first": _weights(6, 8),
    "second": _weights(8, 4),
    "table": _weights(11, 4),
    "left": _weights(3, 2),
    "right": _weights(2, 5),
}


@dataclass(frozen=True)
class Network:
    """A network by its function in numpy, its signature, and inputs for a batch of three."""

    name: str
    signature: Signature
    inputs: Arrays
    expected: Callable[[Arrays], Arrays]


def _f(name: str, *shape: int | None, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name, dtype, shape)


def _cnn(x: Arrays) -> Arrays:
    padded = np.pad(x["image"], ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    hidden = np.maximum(np.einsum("ncijhw,ochw->noij", windows, W["conv"]), 0).mean(axis=(2, 3))
    return {"logits": hidden @ W["head"]}


CNN = Network(
    "cnn",
    Signature((_f("image", None, 3, 8, 8),), (_f("logits", None, 5),)),
    {"image": random.normal(size=(3, 3, 8, 8)).astype(np.float32)},
    _cnn,
)
MLP = Network(
    "mlp",
    Signature((_f("features", None, 6),), (_f("scores", None, 4),)),
    {"features": random.normal(size=(3, 6)).astype(np.float32)},
    lambda x: {"scores": np.maximum(x["features"] @ W["first"], 0) @ W["second"]},
)
WORDS = Network(
    "words",
    Signature((_f("ids", None, None, dtype="int64"),), (_f("states", None, None, 4), _f("mean", None, 4))),
    {"ids": random.integers(0, 11, (3, 7))},
    lambda x: {"states": W["table"][x["ids"]], "mean": W["table"][x["ids"]].mean(axis=1)},
)
# names and order that sorting would change
PAIR = Network(
    "pair",
    Signature((_f("right", None, 2), _f("left", None, 3)), (_f("wide", None, 5), _f("narrow", None, 2))),
    {"right": random.normal(size=(3, 2)).astype(np.float32), "left": random.normal(size=(3, 3)).astype(np.float32)},
    lambda x: {"wide": x["right"] @ W["right"], "narrow": x["left"] @ W["left"]},
)
NETWORKS = {n.name: n for n in (CNN, MLP, WORDS, PAIR)}


def artifact(folder: Path, network: Network, layout: str, engine: str) -> Artifact:
    """The network's files in `folder`, as an artifact for that engine."""
    formats = {"onnx": "onnx", "ir": "openvino", "savedmodel": "tensorflow", "keras": "tensorflow"}
    BUILDERS[layout](folder, network)
    kind: Any = formats.get(layout, "pytorch")
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    return Artifact(f"sha256:{network.name}", folder, kind, layout, None, engine, network.signature, size)


def _onnx(folder: Path, network: Network) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    node = helper.make_node
    nodes = {
        "cnn": [
            node("Conv", ["image", "conv"], ["a"], pads=[1, 1, 1, 1]),
            node("Relu", ["a"], ["b"]),
            node("GlobalAveragePool", ["b"], ["c"]),
            node("Flatten", ["c"], ["d"]),
            node("MatMul", ["d", "head"], ["logits"]),
        ],
        "mlp": [
            node("MatMul", ["features", "first"], ["a"]),
            node("Relu", ["a"], ["b"]),
            node("MatMul", ["b", "second"], ["scores"]),
        ],
        "words": [
            node("Gather", ["table", "ids"], ["states"]),
            node("ReduceMean", ["states", "axis"], ["mean"], keepdims=0),
        ],
        "pair": [node("MatMul", ["right", "right_w"], ["wide"]), node("MatMul", ["left", "left_w"], ["narrow"])],
    }[network.name]
    stored = {**W, "right_w": W["right"], "left_w": W["left"], "axis": np.array([1])}
    used = {name for n in nodes for name in n.input} & stored.keys() - {s.name for s in network.signature.inputs}
    kinds = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}

    def info(spec: TensorSpec) -> Any:
        shape = [d if d is not None else f"d{i}" for i, d in enumerate(spec.shape)]
        return helper.make_tensor_value_info(spec.name, kinds[spec.dtype], shape)

    graph = helper.make_graph(
        nodes,
        network.name,
        [info(s) for s in network.signature.inputs],
        [info(s) for s in network.signature.outputs],
        [numpy_helper.from_array(stored[name], name) for name in sorted(used)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, folder / "model.onnx")


def _ir(folder: Path, network: Network) -> None:
    import openvino as ov

    _onnx(folder, network)
    model = ov.convert_model(folder / "model.onnx")
    (folder / "model.onnx").unlink()
    ov.save_model(model, folder / "model.xml", compress_to_fp16=False)


def _torch_module(network: Network) -> Any:
    import torch

    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, array in W.items():
                self.register_buffer(f"w_{name}", torch.from_numpy(array))

    class Cnn(Module):
        def forward(self, image: Any) -> Any:
            hidden = torch.relu(torch.nn.functional.conv2d(image, self.w_conv, padding=1)).mean((2, 3))
            return {"logits": hidden @ self.w_head}

    class Mlp(Module):
        def forward(self, features: Any) -> Any:
            return {"scores": torch.relu(features @ self.w_first) @ self.w_second}

    class Words(Module):
        def forward(self, ids: Any) -> Any:
            states = torch.nn.functional.embedding(ids, self.w_table)
            return {"states": states, "mean": states.mean(1)}

    class Pair(Module):
        def forward(self, right: Any, left: Any) -> Any:
            return {"wide": right @ self.w_right, "narrow": left @ self.w_left}

    return {"cnn": Cnn, "mlp": Mlp, "words": Words, "pair": Pair}[network.name]().eval()


def _examples(network: Network) -> tuple[Any, ...]:
    import torch

    return tuple(torch.from_numpy(network.inputs[s.name]) for s in network.signature.inputs)


def _pt2(folder: Path, network: Network) -> None:
    import torch

    batch, time = torch.export.Dim("batch"), torch.export.Dim("time")
    axes = [batch, time]
    shapes = tuple({i: axes[i] for i, d in enumerate(s.shape) if d is None} for s in network.signature.inputs)
    program = torch.export.export(_torch_module(network), _examples(network), dynamic_shapes=shapes)
    torch.export.save(program, folder / "model.pt2")


def _torchscript(folder: Path, network: Network) -> None:
    import torch

    traced = torch.jit.trace(_torch_module(network), _examples(network), strict=False)
    torch.jit.save(traced, folder / "model.pt")


def _savedmodel(folder: Path, network: Network) -> None:
    import tensorflow as tf

    def forward(**x: Any) -> Any:
        if network.name == "cnn":
            image = tf.transpose(x["image"], [0, 2, 3, 1])
            hidden = tf.nn.relu(tf.nn.conv2d(image, W["conv"].transpose(2, 3, 1, 0), 1, "SAME"))
            return {"logits": tf.reduce_mean(hidden, [1, 2]) @ W["head"]}
        if network.name == "mlp":
            return {"scores": tf.nn.relu(x["features"] @ W["first"]) @ W["second"]}
        if network.name == "words":
            states = tf.gather(tf.constant(W["table"]), x["ids"])
            return {"states": states, "mean": tf.reduce_mean(states, 1)}
        return {"wide": x["right"] @ W["right"], "narrow": x["left"] @ W["left"]}

    specs = {s.name: tf.TensorSpec(s.shape, s.dtype, name=s.name) for s in network.signature.inputs}
    function = tf.function(forward).get_concrete_function(**specs)
    module = tf.Module()
    module.forward = function
    tf.saved_model.save(module, str(folder), signatures={"serving_default": function})


def _keras(folder: Path, network: Network) -> None:
    import keras

    layers = keras.layers
    x = {s.name: keras.Input(s.shape[1:], dtype=s.dtype, name=s.name) for s in network.signature.inputs}
    weights: dict[str, list[Any]] = {}

    def dense(name: str, weight: str, tensor: Any) -> Any:
        weights[name] = [W[weight]]
        return layers.Dense(W[weight].shape[1], use_bias=False, name=name)(tensor)

    if network.name == "cnn":
        hidden = layers.Conv2D(4, 3, padding="same", use_bias=False, activation="relu", name="conv")(
            layers.Permute((2, 3, 1))(x["image"])
        )
        weights["conv"] = [W["conv"].transpose(2, 3, 1, 0)]
        outputs = [dense("logits", "head", layers.GlobalAveragePooling2D()(hidden))]
    elif network.name == "mlp":
        outputs = [dense("scores", "second", layers.ReLU()(dense("hidden", "first", x["features"])))]
    elif network.name == "words":
        states = layers.Embedding(11, 4, name="states")(x["ids"])
        weights["states"] = [W["table"]]
        outputs = [states, layers.GlobalAveragePooling1D(name="mean")(states)]
    else:
        outputs = [dense("wide", "right", x["right"]), dense("narrow", "left", x["left"])]
    model = keras.Model(list(x.values()), outputs)
    for name, arrays in weights.items():
        model.get_layer(name).set_weights(arrays)
    model.save(folder / "model.keras")


BUILDERS: dict[str, Callable[[Path, Network], None]] = {
    "onnx": _onnx,
    "ir": _ir,
    "pt2": _pt2,
    "torchscript": _torchscript,
    "savedmodel": _savedmodel,
    "keras": _keras,
}
