"""What is known and not read is called by its name, with what to do; nothing of it is unpacked or loaded."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from tests import hostile

from maasdam.errors import MaasdamError, Unsupported
from maasdam.sources import inspect


def _zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("deep/model.onnx", hostile.onnx_model())


def _tar(path: Path) -> None:
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        entry = tarfile.TarInfo("deep/model.onnx")
        entry.size = len(hostile.onnx_model())
        archive.addfile(entry, io.BytesIO(hostile.onnx_model()))


FILES: Mapping[str, tuple[bytes | Callable[[Path], None], str]] = {
    "frozen.pb": (b"\n\x10\n\x01x\x12\x0bPlaceholder" * 9, "GraphDef.*tf2onnx"),
    "net.tflite": (b"\x1c\0\0\0TFL3" + bytes(64), "TensorFlow Lite"),
    "no-suffix": (b"\x1c\0\0\0TFL3" + bytes(64), "TensorFlow Lite"),
    "net.gguf": (b"GGUF" + bytes(64), "GGUF"),
    "net.engine": (b"ftrt" + bytes(64), "TensorRT.*ONNX"),
    "net.plan": (b"\x01\x02" * 40, "TensorRT"),
    "inference.pdmodel": (b"\n\x01x", "paddle2onnx"),
    "net.mlmodel": (b"\x08\x01", "Core ML"),
    "net.ort": (b"\x20\0\0\0ORTM" + bytes(64), "ONNX Runtime's own"),
    "net.pte": (b"\x20\0\0\0ET12" + bytes(64), "ExecuTorch"),
    "model.ckpt-1.index": (b"\0\0", "checkpoint: weights without the network"),
    "model.json": (b'{"format": "layers-model", "modelTopology": {}}', "TensorFlow.js.*tensorflowjs_converter"),
    "models.zip": (_zip, r"archive.*deep/model\.onnx.*unpack it"),
    "models.tar": (_tar, r"archive.*deep/model\.onnx.*unpack it"),
    "models.tar.gz": (_tar, r"archive.*deep/model\.onnx.*unpack it"),
    "models.7z": (b"7z\xbc\xaf\x27\x1c" + bytes(64), "archive.*unpack it"),
    "broken.tar.gz": (b"\x1f\x8b\x08" + bytes(range(256)), "archive.*unpack it"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_kind_is_named(tmp_path: Path, name: str) -> None:
    content, words = FILES[name]
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        content(tmp_path / name)
    with pytest.raises(Unsupported, match=words):
        inspect(str(tmp_path / name))


FOLDERS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "tfjs": (("model.json", "group1-shard1of1.bin"), "TensorFlow.js"),
    "net.mlpackage": (("Manifest.json", "Data/com.apple.CoreML/model.mlmodel"), "Core ML"),
    "paddle": (("inference.pdmodel", "inference.pdiparams"), "PaddlePaddle"),
    "checkpoints": (("checkpoint", "model.ckpt-1.index", "model.ckpt-1.data-00000-of-00001"), "checkpoint"),
    "tensorrt": (("model.engine", "labels.txt"), "TensorRT"),
    "frozen": (("frozen_graph.pb",), "GraphDef"),
    "adapter": (("adapter_config.json", "adapter_model.bin"), "adapter"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_of_another_kind_is_named(tmp_path: Path, name: str) -> None:
    names, words = FOLDERS[name]
    for inner in names:
        path = tmp_path / name / inner
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"{}")
    with pytest.raises(Unsupported, match=words):
        inspect(str(tmp_path / name))


def test_a_packed_bomb_is_looked_at_in_bounded_memory(tmp_path: Path) -> None:
    """A tar whose first header promises 2**40 bytes, and one whose long name is 300 MB: neither is read."""
    import resource

    for name, kind in (("big.tar.gz", b"0"), ("long.tar.gz", b"x")):
        header = tarfile.TarInfo("model.bin")
        header.type = kind
        header.size = 300 << 20
        with gzip.open(tmp_path / name, "wb", compresslevel=1) as packed:
            packed.write(header.tobuf())
            for _ in range(75):
                packed.write(bytes(4 << 20))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name in ("big.tar.gz", "long.tar.gz"):
        with pytest.raises(MaasdamError):
            inspect(str(tmp_path / name))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes


@pytest.mark.parametrize("under", ["", "0_Transformer"])
def test_a_sentence_transformers_folder_is_recognised(tmp_path: Path, under: str) -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=32,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=16,
    )
    BertModel(config).save_pretrained(tmp_path / under)
    modules = [
        {"idx": 0, "name": "0", "path": under, "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    inspection = inspect(str(tmp_path))
    assert (inspection.layout, inspection.architecture) == ("huggingface", "BertModel")
    assert any("sentence-transformers" in note and "pooling" in note.lower() for note in inspection.notes)


@pytest.mark.parametrize("name", ["model.pb", "model.params", "model.engine", "model", "model.index"])
def test_onnx_is_onnx_whatever_it_is_called(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(hostile.onnx_model())
    assert inspect(str(tmp_path / name)).layout == "onnx"
