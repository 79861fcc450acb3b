"""`.keras` files of Keras 2 in the words of Keras 3, which reads them here.

Knows which settings changed their name or form between the two. Weights are stored alike, and Keras 3 refuses weights that
don't fit. Refuses to import Keras.
"""

from __future__ import annotations

import json
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FUNCTIONAL = {"module": "keras.src.models.functional", "class_name": "Functional", "registered_name": "Functional"}
_OTHER = "tf_keras"
"""What Keras 2 has been called since Keras 3 took its name."""
ANY = object()
_GONE: dict[str, Any] = {
    "groups": 1, "time_major": False, "input_length": None, "ragged": False, "softmax_robust_masking": False,
    "batch_input_shape": ANY, "query_shape": ANY, "key_shape": ANY, "value_shape": ANY,
}  # fmt: skip
"""Settings that Keras 3 does not know, with the value that asks for nothing; ANY are derived from others."""
_KEEP = {"groups": ("Conv1D", "Conv2D", "Conv3D", "GroupNormalization"), "batch_input_shape": ("InputLayer",)}
"""Layers that do know them."""
_OF_OTHER_LAYERS = ("kernel_initializer", "kernel_regularizer", "kernel_constraint")
"""What separable convolutions inherited: they have a depthwise and a pointwise one of each."""


@contextmanager
def modern(path: Path) -> Iterator[Path]:
    """`path`, or where Keras 2 wrote it a copy that Keras 3 understands, for as long as it is being loaded."""
    with zipfile.ZipFile(path) as archive:
        version = json.loads(archive.read("metadata.json")).get("keras_version")
        if not str(version).startswith("2."):
            yield path
            return
        config = json.loads(archive.read("config.json"))
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / path.name
            with zipfile.ZipFile(copy, "w") as written:
                for entry in archive.infolist():
                    if entry.filename == "config.json":
                        written.writestr("config.json", json.dumps(translated(config)))
                    else:
                        with archive.open(entry) as source, written.open(entry.filename, "w", force_zip64=True) as target:
                            while block := source.read(1 << 20):
                                target.write(block)
            yield copy


def translated(value: Any) -> Any:
    """A part of a config of Keras 2 as Keras 3 writes it."""
    if isinstance(value, list):
        return [translated(each) for each in value]
    if not isinstance(value, dict):
        return value
    out = {key: translated(each) for key, each in value.items()}
    kind, module = out.get("class_name"), str(out.get("module"))
    if kind == "Functional" and module.endswith(".engine.functional"):
        out |= FUNCTIONAL
    elif module.partition(".")[0] == _OTHER:
        out["module"] = "keras" + module.removeprefix(_OTHER)
    config = out.get("config")
    if isinstance(kind, str) and isinstance(config, dict):
        _settle(kind, config)
        if isinstance(config.get("layers"), list) and "input_layers" in config:
            _renumber(config)
    return out


def _settle(kind: str, config: dict[str, Any]) -> None:
    """The settings of one layer as Keras 3 has them."""
    for setting, neutral in _GONE.items():
        if setting in config and (neutral is ANY or config[setting] == neutral) and kind not in _KEEP.get(setting, ()):
            del config[setting]
    if kind.startswith("SeparableConv"):
        for setting in _OF_OTHER_LAYERS:
            config.pop(setting, None)
    if kind == "LeakyReLU" and "alpha" in config:
        config["negative_slope"] = config.pop("alpha")
    axis = config.get("axis")
    if kind == "BatchNormalization" and isinstance(axis, list) and len(axis) == 1:
        config["axis"] = axis[0]


def _renumber(config: dict[str, Any]) -> None:
    """Count the calls of models within a model from 0: Keras 2 counted their own building too."""
    inner = {layer["name"] for layer in config["layers"] if layer.get("class_name") in ("Functional", "Sequential")}
    places = [place for layer in config["layers"] for place in _places(layer.get("inbound_nodes"))]
    places += [place for key in ("input_layers", "output_layers") for place in _places(config[key])]
    for name in inner:
        calls = [place for place in places if place[0] == name]
        first = min((place[1] for place in calls), default=0)
        for place in calls:
            place[1] -= first


def _places(value: Any) -> Iterator[list[Any]]:
    """Every ["layer", call, tensor, …] within lists and dicts."""
    if isinstance(value, dict):
        for each in value.values():
            yield from _places(each)
    elif isinstance(value, list):
        if len(value) >= 3 and isinstance(value[0], str) and all(isinstance(number, int) for number in value[1:3]):
            yield value
            value = value[3:]
        for each in value:
            yield from _places(each)
