"""Formats that are known and not read, each by its name and with what to do.

Knows magic numbers, suffixes and names of files. Refuses to open anything but the directory of an archive.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from maasdam.errors import MaasdamError
from maasdam.sources.archives import ZIP_MAGIC, open_archive

MOST_ENTRIES = 2000
"""Entries of an archive that are looked at, to say what it holds."""
MOST_UNPACKED_BYTES = 64 * 1024 * 1024
_OTHER_ARCHIVES = (b"7z\xbc\xaf\x27\x1c", b"Rar!", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ\x00")
_FROZEN = (
    "a TensorFlow GraphDef (a frozen graph of TensorFlow 1), which is not read; import it with "
    "tf.compat.v1.import_graph_def and save it with tf.compat.v1.saved_model.simple_save, or export it to ONNX: "
    "python -m tf2onnx.convert --graphdef FILE --inputs NAME:0 --outputs NAME:0 --output model.onnx"
)
_CHECKPOINT = (
    "a TensorFlow checkpoint: weights without the network; build the network, restore the checkpoint and save it with "
    "tf.saved_model.save or model.save('model.keras')"
)
_TFJS = (
    "a TensorFlow.js model, which is not read; convert it back with: tensorflowjs_converter --input_format=tfjs_layers_model "
    "--output_format=keras_saved_model model.json FOLDER"
)
_COREML = "a Core ML model, which runs on Apple's systems only; export the network it was made from to ONNX"
_PADDLE = "a PaddlePaddle model, which is not read; export it with: paddle2onnx --model_dir FOLDER --save_file model.onnx"
_TENSORRT = "a TensorRT engine, compiled for one kind of GPU; give the ONNX model that it was built from"
_TFLITE = "a TensorFlow Lite model, which is not read; give the SavedModel or .keras it was made from, or: tf2onnx --tflite"
_EXECUTORCH = "an ExecuTorch program, which is not read; give the .pt2 that torch.export made before it"
_ORT = "ONNX Runtime's own format, which is not read; give the .onnx it was made from"

_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (0, b"ftrt", _TENSORRT),
    (0, b"ptrt", _TENSORRT),
    (4, b"TFL3", _TFLITE),
    (4, b"ORTM", _ORT),
    (4, b"ET12", _EXECUTORCH),
)
_SUFFIXES: dict[str, str] = {
    **dict.fromkeys((".tflite", ".lite"), _TFLITE),
    **dict.fromkeys((".engine", ".plan", ".trt"), _TENSORRT),
    **dict.fromkeys((".mlmodel", ".mlmodelc", ".mlpackage"), _COREML),
    **dict.fromkeys((".pdmodel", ".pdiparams", ".pdparams"), _PADDLE),
    **dict.fromkeys((".meta", ".index"), _CHECKPOINT),
    **{".gguf": "no GGUF: it does not begin as that does; fetch it again", ".ort": _ORT, ".pte": _EXECUTORCH},
    ".caffemodel": "a Caffe model, which is not read; convert it to ONNX",
    ".prototxt": "a Caffe network's text, which is not read; convert the model to ONNX",
    ".mnn": "an MNN model, which is not read; give the ONNX model it was made from",
    ".rknn": "an RKNN model, compiled for Rockchip's processors; give the ONNX model it was made from",
    ".dlc": "a Qualcomm DLC model, compiled for its processors; give the ONNX model it was made from",
    ".hef": "a Hailo model, compiled for its processors; give the ONNX model it was made from",
    ".om": "an Ascend model, compiled for its processors; give the ONNX model it was made from",
    ".xmodel": "a Vitis AI model, compiled for its processors; give the ONNX model it was made from",
    ".bmodel": "a Sophon model, compiled for its processors; give the ONNX model it was made from",
    ".blob": "a model compiled for Myriad; give the ONNX or OpenVINO model it was made from",
    ".nemo": "a NeMo archive; export it in NeMo with model.export('model.onnx')",
    ".mar": "a TorchServe archive; unpack it (it is a zip) and give the model inside",
    ".msgpack": "Flax weights, which are not read; save the model with safetensors",
    ".params": "MXNet weights, which are not read; export the model to ONNX with mxnet.onnx.export_model",
    ".cbm": "a CatBoost model; save it with model.save_model('model.onnx', format='onnx')",
    ".ubj": "an XGBoost model; convert it to ONNX with onnxmltools.convert_xgboost",
    ".pmml": "a PMML model, which is not read; export it to ONNX",
    ".mlir": "an MLIR program, which is not read; export the model to ONNX or a SavedModel",
    ".llamafile": "a llamafile, a program with GGUF inside; give the Hugging Face folder it was made from",
}
_MODELS = (".onnx", ".pt2", ".keras", ".safetensors", "saved_model.pb", ".xml", ".pt", ".pth", *_SUFFIXES)
"""How the names of models end, read here or not."""


def unread_content(start: bytes) -> str | None:
    """What a file is by its first bytes, whatever it is called; None where they tell nothing."""
    return next((what for place, magic, what in _MAGIC if start[place : place + len(magic)] == magic), None)


def unread_file(path: Path, start: bytes) -> str | None:
    """What a file is that begins with `start` (some hundred bytes) and is not read here; None where it is not known."""
    if (known := unread_content(start)) is not None:
        return known
    suffix = path.suffix.lower()
    if suffix in _SUFFIXES:
        return _SUFFIXES[suffix]
    if ".data-0" in path.name or path.name == "checkpoint":
        return _CHECKPOINT
    if suffix == ".pb" and path.name != "saved_model.pb":
        return _FROZEN
    if suffix == ".json":
        return _unread_json(start)
    return _archive(path, start)


def unread_folder(names: Sequence[str]) -> str | None:
    """What a folder with these entries is (folders end with "/"), or None."""
    files = set(names)
    if "Manifest.json" in files and "Data/" in files:
        return _COREML
    if "model.json" in files and any(name.startswith("group") and "shard" in name for name in names):
        return _TFJS
    if "checkpoint" in files or any(name.endswith(".index") or ".data-0" in name for name in names):
        return _CHECKPOINT
    if "adapter_config.json" in files:
        return "an adapter (PEFT), not a whole model; merge it into its model and save that"
    for name in sorted(names):
        what = _SUFFIXES.get(Path(name.rstrip("/")).suffix.lower())
        if what:
            return f"no model that is read, but {name}, {what}"
    if graphs := [name for name in names if name.endswith(".pb")]:
        return f"no model that is read, but {graphs[0]}, {_FROZEN}"
    return None


def _unread_json(start: bytes) -> str | None:
    if b'"modelTopology"' in start or b'"weightsManifest"' in start:
        return _TFJS
    if b'"learner"' in start and b'"gradient_booster"' in start:
        return _SUFFIXES[".ubj"]
    if b'"base_code"' in start or (b'"program"' in start and b'"magic"' in start):
        return _PADDLE
    return None


def _archive(path: Path, start: bytes) -> str | None:
    """An archive with models inside says which; it is never unpacked."""
    names = _entries(path, start)
    if names is None:
        return None
    if "version.json" in names and any(name.startswith("artifact/") for name in names):
        return f"a version exported by Maasdam; register it with: maasdam models import {path.name}"
    models = [name for name in names if name.lower().endswith(_MODELS)]
    others = " and others" if len(models) > 3 else ""
    inside = f"it holds {', '.join(models[:3])}{others}" if models else "no model known here was seen in it"
    return f"an archive, which is not unpacked here; {inside}: unpack it and give the model's file or folder"


def _entries(path: Path, start: bytes) -> list[str] | None:
    """Names in a zip or tar (packed by gzip or not); [] for other archives and broken ones, None for what is no archive."""
    try:
        if start.startswith(ZIP_MAGIC):
            with open_archive(path, path) as archive:
                return list(archive.sizes)[:MOST_ENTRIES]
        if start[257:262] == b"ustar":
            with path.open("rb") as stream:
                return _headers(stream, path.stat().st_size)
        if start.startswith(b"\x1f\x8b"):
            with gzip.open(path) as unpacked:
                return _headers(unpacked, MOST_UNPACKED_BYTES)
    except (OSError, EOFError, ValueError, zlib.error, MaasdamError):
        return []
    return [] if start.startswith(_OTHER_ARCHIVES) else None


def _headers(stream: IO[bytes] | gzip.GzipFile, most: int) -> list[str]:
    """The names in a tar, from its headers alone: what stands between them is passed over, never held."""
    names: list[str] = []
    while len(names) < MOST_ENTRIES:
        block = stream.read(512)
        if len(block) < 512 or block[257:262] != b"ustar":
            break
        if block[156:157] in (b"0", b"\0"):  # a regular file
            names.append(block[:100].rstrip(b"\0").decode("utf-8", "replace"))
        size = int(block[124:136].strip(b"\0 ") or b"0", 8) if block[124] < 128 else int.from_bytes(block[125:136])
        after = stream.tell() + -(-size // 512) * 512
        if after > most:
            break
        stream.seek(after)
    return names
