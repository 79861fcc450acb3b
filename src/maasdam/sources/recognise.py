"""Which layout a path holds, told by its content rather than by its name.

Knows magic numbers and the names of files in folders. Refuses to look further: each layout has a reader of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from maasdam.core import Layout
from maasdam.errors import InvalidModel, Unsupported
from maasdam.sources import gguf
from maasdam.sources.archives import ZIP_MAGIC, open_archive
from maasdam.sources.bounds import MAX_CONFIG_BYTES, Place, head, parse_json, read_bounded
from maasdam.sources.hdf5 import HDF5_MAGIC
from maasdam.sources.onnx import is_onnx
from maasdam.sources.pickles import looks_like_pickle
from maasdam.sources.torchscript import is_torchscript, refuse_pickle
from maasdam.sources.unread import unread_content, unread_file, unread_folder

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")
_HEAD_BYTES = 4096
_LEGACY_H5 = (
    "is a Keras HDF5 file of the old kind, which is not read; load it in Keras and save it with model.save('model.keras')"
)

TAKEN = (
    "Hugging Face folders (config.json + safetensors), .onnx, .pt2, TorchScript, SavedModel folders, .keras, OpenVINO .xml "
    "and .gguf"
)


@dataclass(frozen=True, slots=True)
class Recognised:
    """A layout, the folder and the name of its main file within; `also` names models that were passed over."""

    layout: Layout
    place: Place
    name: str
    also: tuple[str, ...] = ()


def recognise(path: Path) -> Recognised:
    """Tell what lies at an existing path. Raises InvalidModel, UnsafeModel (a pickle), Unsupported (known, not read)."""
    if path.is_dir():
        return _folder(path)
    if path.name == "saved_model.pb":
        return Recognised("savedmodel", Place(path.parent), path.name)
    return Recognised(_of_file(path), Place(path.parent, only=path.name), path.name)


def _folder(path: Path) -> Recognised:
    place = Place(path)
    names = place.names()
    if "modules.json" in names and "config.json" not in names and (encoder := _sentence_encoder(place)) is not None:
        return _folder(encoder)
    models: list[tuple[Layout, str]] = []
    if "model.safetensors" in names or "model.safetensors.index.json" in names:
        models.append(("huggingface", "config.json"))
    if "saved_model.pb" in names:
        models.append(("savedmodel", "saved_model.pb"))
    if "openvino_model.xml" in names and "openvino_tokenizer.xml" in names:
        models.append(("genai", "openvino_model.xml"))
    else:
        models += [("ir", name) for name in names if name.endswith(".xml") and name.removesuffix(".xml") + ".bin" in names]
    inner = [f"onnx/{name}" for name in place.names("onnx")] if "onnx/" in names else []
    graphs = [name for name in names if name.endswith(".onnx")] or [name for name in inner if name.endswith(".onnx")]
    models += [("onnx", name) for name in sorted(graphs, key=lambda name: (not name.endswith("model.onnx"), name))]
    models += [("pt2", name) for name in names if name.endswith(".pt2")]
    models += [("keras", name) for name in names if name.endswith(".keras")]
    models += [("gguf", name) for name in names if name.endswith(".gguf")]
    if models:
        layout, name = models[0]
        rivals = [other for kind, other in models[1:] if kind == layout]
        if rivals and not name.endswith(("model.onnx", "model.xml", "model.pt2", "model.keras", gguf.FILE)):
            raise Unsupported(
                f"{path} holds several models ({', '.join([name, *rivals][:6])}); name the file of the one you mean"
            )
        return Recognised(layout, place, name, tuple(other for _, other in models[1:]))
    scripts = [name for name in names if name.endswith((".pt", ".pth", ".ts"))]
    if len(scripts) == 1 and (file := place.file(scripts[0])) is not None:
        return Recognised(_of_file(file), place, scripts[0])
    _refuse_folder(place, names)


def _sentence_encoder(place: Place) -> Path | None:
    """The folder of a sentence-transformers folder's encoder, where it is not the folder itself."""
    modules = parse_json(read_bounded(place.need("modules.json", ""), MAX_CONFIG_BYTES), "modules.json")
    for module in modules if isinstance(modules, list) else ():
        under = module.get("path") if isinstance(module, dict) else None
        if isinstance(under, str) and under and place.file(f"{under}/config.json") is not None:
            return place.path / under
    return None


def _refuse_folder(place: Place, names: list[str]) -> NoReturn:
    """Say why a folder without a model that is read can't be taken."""
    for name in names:
        file = place.file(name) if name.endswith(PICKLE_SUFFIXES) else None
        if file is not None and (_is_pickle(file) or name == "pytorch_model.bin"):
            _of_file(file)
            refuse_pickle(file)
    weights = [name for name in names if name.endswith(".safetensors")]
    if weights:
        raise InvalidModel(
            f"{place.path} has {weights[0]}, but no model.safetensors as transformers names it; save it with save_pretrained"
        )
    for name, what in (("tf_model.h5", "TensorFlow"), ("flax_model.msgpack", "Flax")):
        if name in names:
            raise Unsupported(f"{place.path} has only {what} weights ({name}); save the model with safetensors")
    if any(name.endswith((".h5", ".hdf5")) for name in names):
        raise Unsupported(f"{place.path} {_LEGACY_H5}")
    if (known := unread_folder(names)) is not None:
        raise Unsupported(f"{place.path} is {known}" if not known.startswith("no model") else f"{place.path} holds {known}")
    raise InvalidModel(f"{place.path} holds no model; taken are {TAKEN}")


def _of_file(path: Path) -> Layout:
    """The layout of one file by its first bytes."""
    start = head(path, _HEAD_BYTES)
    if not start:
        raise InvalidModel(f"{path} is empty (0 bytes); fetch or export it again")
    if start.startswith(b"version https://git-lfs"):
        raise InvalidModel(f"{path} is a Git LFS pointer, not the model; run: git lfs pull")
    if start.startswith(ZIP_MAGIC):
        return _of_zip(path)
    if start.startswith(HDF5_MAGIC):
        raise Unsupported(f"{path} {_LEGACY_H5}")
    if looks_like_pickle(start):
        refuse_pickle(path, start=start)
    if (known := unread_content(start)) is not None:
        raise Unsupported(f"{path} is {known}")
    suffix = path.suffix.lower()
    if start.startswith(gguf.MAGIC):
        return "gguf"
    if suffix == ".onnx" or is_onnx(start):
        return "onnx"
    if (known := unread_file(path, start)) is not None:
        raise Unsupported(f"{path} is {known}")
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<") and (suffix == ".xml" or b"<net" in start):
        return "ir"
    if suffix == ".safetensors" or (
        len(start) > 9 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size
    ):
        raise InvalidModel(
            f"{path} is weights alone; give the folder that holds it as model.safetensors beside its config.json"
        )
    if suffix in (".pt2", ".keras"):
        raise InvalidModel(
            f"{path} is no {suffix} file: it is not the zip archive those are, or was cut off; save the model again"
        )
    if suffix in PICKLE_SUFFIXES:
        refuse_pickle(path)
    raise InvalidModel(f"{path} is no model that is known here; taken are {TAKEN}")


def _of_zip(path: Path) -> Layout:
    with open_archive(path, path) as archive:
        names = list(archive.sizes)
        tails = {name.partition("/")[2] for name in names}
        if "archive_format" in tails or any(tail.startswith("models/") for tail in tails):
            return "pt2"
        if is_torchscript(names):
            return "torchscript"
        if "config.json" in names and "metadata.json" in names:
            return "keras"
        if "data.pkl" in tails or any(name.endswith(".pkl") for name in names):
            refuse_pickle(path, archive)
        if path.suffix == ".keras":
            return "keras"  # its reader says what is missing
    raise Unsupported(f"{path} is {unread_file(path, ZIP_MAGIC) or 'a zip archive, but no model that is known here'}")


def _is_pickle(path: Path) -> bool:
    start = head(path, _HEAD_BYTES)
    return looks_like_pickle(start) or start.startswith(ZIP_MAGIC)
