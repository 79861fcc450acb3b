"""Small real models and data for the pipeline's tests: a colour classifier, a convolutional network, a ResNet, a ViT."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from maasdam.artifacts.store import Store
from maasdam.core import IMAGE_CLASSIFICATION, Artifact, Signature, TensorSpec

COLOURS = {"red": (220, 30, 30), "green": (30, 220, 30), "blue": (30, 30, 220)}
SIDE = 16


def write_colours(folder: Path, weights: Any = None, dtype: str = "float32") -> Path:
    """A classifier of plain colours (ONNX, with labels and a processor): 10 times the mean of each channel."""
    import onnx
    from onnx import helper, numpy_helper

    folder.mkdir(parents=True, exist_ok=True)
    head = (np.eye(3) * 10).astype(np.float32) if weights is None else np.asarray(weights, np.float32)
    stored = {"conv": np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1), "head": head}
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    node = helper.make_node
    nodes = [
        node("Conv", ["pixel_values", "conv"], ["a"]),
        node("GlobalAveragePool", ["a"], ["b"]),
        node("Flatten", ["b"], ["c"]),
        node("MatMul", ["c", "head"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("pixel_values", kind, ["batch", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("logits", kind, ["batch", 3])],
        [numpy_helper.from_array(array.astype(dtype), name) for name, array in stored.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), folder / "model.onnx")
    labels = {str(i): name for i, name in enumerate(COLOURS)}
    (folder / "config.json").write_text(json.dumps({"id2label": labels}))
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": SIDE, "width": SIDE}, "do_normalize": False}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def write_photographs(folder: Path, count: int, seed: int = 0, labelled: bool = True) -> Path:
    """`count` noisy pictures of one colour each, with metadata.csv."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        name = list(COLOURS)[i % 3]
        pixels = np.clip(np.asarray(COLOURS[name]) + random.normal(0, 20, (20, 20, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03}.png")
        rows.append({"file_name": f"{i:03}.png", "label": name})
    if labelled:
        with (folder / "metadata.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["file_name", "label"])
            writer.writeheader()
            writer.writerows(rows)
    return folder


def png(colour: str) -> bytes:
    """One plain picture."""
    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (20, 20), COLOURS[colour]).save(out, "PNG")
    return out.getvalue()


def colours(store: Store, weights: Any = None) -> Artifact:
    """The colour classifier, in the store."""
    signature = Signature(
        (TensorSpec("pixel_values", "float32", (None, 3, SIDE, SIDE), "NCHW"),), (TensorSpec("logits", "float32", (None, 3)),)
    )
    with store.workspace() as folder:
        write_colours(folder / "out", weights)
        return store.add(
            folder / "out",
            format="onnx",
            layout="onnx",
            task=IMAGE_CLASSIFICATION,
            engine="onnxruntime",
            signature=signature,
        )


def convolutional(store: Store, channels: int = 96) -> Artifact:
    """A random convolutional network without a task: ONNX, [batch, 3, 16, 16] to [batch, 7]. Large enough to quantise."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(3)
    stored = {
        "first": random.normal(0, 0.3, (channels, 3, 3, 3)),
        "second": random.normal(0, 0.05, (channels, channels, 3, 3)),
        "head": random.normal(0, 0.5, (channels, 7)),
        "shift": random.normal(0, 0.1, (channels,)),
    }
    node = helper.make_node
    nodes = [
        node("Conv", ["image", "first"], ["a"], pads=[1, 1, 1, 1]),
        node("Relu", ["a"], ["b"]),
        node("Conv", ["b", "second", "shift"], ["c"], pads=[1, 1, 1, 1]),
        node("Relu", ["c"], ["d"]),
        node("GlobalAveragePool", ["d"], ["e"]),
        node("Flatten", ["e"], ["f"]),
        node("MatMul", ["f", "head"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "convolutional",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 7])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in stored.items()],
    )
    image, scores = TensorSpec("image", "float32", (None, 3, SIDE, SIDE)), TensorSpec("scores", "float32", (None, 7))
    signature = Signature((image,), (scores,))
    with store.workspace() as folder:
        out = folder / "out"
        out.mkdir()
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), out / "model.onnx")
        return store.add(out, format="onnx", layout="onnx", task=None, engine="onnxruntime", signature=signature)


def write_tensors(path: Path, count: int = 12) -> Path:
    """Inputs for `convolutional`, as .npz."""
    random = np.random.default_rng(5)
    np.savez(path, image=random.normal(size=(count, 3, SIDE, SIDE)).astype(np.float32))
    return path


def write_resnet(folder: Path) -> Path:
    """An untrained Hugging Face ResNet for the colours, 16 x 16."""
    import torch
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    config = ResNetConfig(
        embedding_size=16,
        hidden_sizes=[16, 32],
        depths=[2, 2],
        layer_type="basic",
        downsample_in_first_stage=False,
        num_labels=3,
        id2label=dict(enumerate(COLOURS)),
        label2id={name: i for i, name in enumerate(COLOURS)},
    )
    ResNetForImageClassification(config).save_pretrained(folder, safe_serialization=True)
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": SIDE, "width": SIDE}, "do_normalize": False}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def write_vit(folder: Path) -> Path:
    """An untrained vision transformer for the colours: two layers, 4 heads of 8, feed-forward layers 64 wide."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(
        image_size=SIDE,
        patch_size=8,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        id2label=dict(enumerate(COLOURS)),
        label2id={name: i for i, name in enumerate(COLOURS)},
    )
    ViTForImageClassification(config).save_pretrained(folder)
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": SIDE, "width": SIDE}, "do_normalize": False}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder
