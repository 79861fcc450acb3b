"""What a Keras config says of a model's inputs and outputs.

Knows the shapes of Sequential and Functional configs and how the layers that end models change a shape. Refuses to
import Keras: where a model ends in a layer not listed here, its signature is unknown until Keras opens it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maasdam.core import Signature, TensorSpec, distinct
from maasdam.errors import InvalidModel, Unsupported

Shape = tuple[int | None, ...]

_SAME = {
    "Activation", "Softmax", "ReLU", "LeakyReLU", "ELU", "PReLU", "Dropout", "BatchNormalization", "LayerNormalization",
    "GroupNormalization", "RMSNormalization", "UnitNormalization", "Rescaling", "Normalization", "Identity", "SpatialDropout1D",
    "SpatialDropout2D", "GaussianNoise", "ActivityRegularization", "Add", "Subtract", "Multiply", "Average", "Maximum",
    "Minimum",
}  # fmt: skip
"""Layers that answer in the shape they are asked in."""


def signature_of(config: Any, path: Path) -> Signature | None:
    """The signature, or None where the config doesn't say the shape of an output. Raises Unsupported for subclassed models."""
    inner = config.get("config") if isinstance(config, dict) else None
    if not isinstance(inner, dict):
        raise InvalidModel(f"{path}: config.json describes no model; save the model again")
    layers = inner.get("layers")
    if not isinstance(layers, list) or not all(isinstance(layer, dict) for layer in layers):
        raise Unsupported(
            f"{path} is a subclassed model, whose code the file does not hold; export it with model.export('folder')"
        )
    try:
        if "input_layers" in inner:
            return _functional(inner, layers)
        return _sequential(inner, layers)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise InvalidModel(f"{path}: config.json is not as Keras writes it ({type(error).__name__}: {error})") from error


def _functional(inner: Mapping[str, Any], layers: list[dict[str, Any]]) -> Signature | None:
    by_name = {str(layer["name"]): layer for layer in layers}
    inputs = [by_name[end.layer] for end in _ends(inner["input_layers"])]
    ends = _ends(inner["output_layers"])
    shapes = [_answer(by_name[end.layer], _input_shape(by_name[end.layer], end.call)) for end in ends]
    if any(shape is None for shape in shapes):
        return None
    names = distinct((end.key or end.layer for end in ends), (str(layer["config"]["name"]) for layer in inputs))
    outputs = zip(names, (by_name[end.layer] for end in ends), shapes, strict=True)
    return Signature(
        tuple(_input(layer) for layer in inputs),
        tuple(TensorSpec(name, _dtype(layer), shape or ()) for name, layer, shape in outputs),
    )


def _sequential(inner: Mapping[str, Any], layers: list[dict[str, Any]]) -> Signature | None:
    if not layers:
        raise ValueError("it has no layers")
    first = layers[0]
    if first["class_name"] != "InputLayer":
        return None
    shape: Shape | None = _shape(_batch_shape(first))
    for layer in layers[1:]:
        shape = _answer(layer, _input_shape(layer) or shape)
    if shape is None:
        return None
    last = layers[-1]
    return Signature((_input(first),), (TensorSpec(str(last["config"]["name"]), _dtype(last), shape),))


@dataclass(frozen=True, slots=True)
class _End:
    """Where an input or output of a model is."""

    layer: str
    call: int
    """Of a layer that is called several times: which call."""
    key: str | None = None
    """Its place in the dict that the model answers with."""


def _ends(places: Any, path: tuple[str, ...] = (), is_named: bool = False) -> list[_End]:
    """In the order Keras flattens them: ["a", 0, 0], a list of such, or a dict of such by sorted key."""
    if isinstance(places, dict):
        return [end for key in sorted(places) for end in _ends(places[key], (*path, str(key)), True)]
    if places and isinstance(places[0], str):
        return [_End(places[0], int(places[1]), ".".join(path) if is_named else None)]
    return [end for at, place in enumerate(places) for end in _ends(place, (*path, str(at)), is_named)]


def _input(layer: Mapping[str, Any]) -> TensorSpec:
    return TensorSpec(str(layer["config"]["name"]), _dtype(layer), _shape(_batch_shape(layer)))


def _batch_shape(layer: Mapping[str, Any]) -> Any:
    """Of an InputLayer; Keras 2 called it batch_input_shape."""
    config = layer["config"]
    return config["batch_shape"] if "batch_shape" in config else config["batch_input_shape"]


def _input_shape(layer: Mapping[str, Any], call: int = 0) -> Shape | None:
    """The shape a layer takes in one of its calls: of the first inbound tensor, else the one it was built with."""
    for made in (layer.get("inbound_nodes") or ())[call : call + 1]:
        stack = list(made["args"]) if isinstance(made, dict) else []  # Keras 2 wrote lists, without shapes
        while stack:
            value = stack.pop(0)
            if isinstance(value, list):
                stack = value + stack
            elif isinstance(value, dict) and value.get("class_name") == "__keras_tensor__":
                return _shape(value["config"]["shape"])
    built = (layer.get("build_config") or {}).get("input_shape")
    return _shape(built) if isinstance(built, list) and not any(isinstance(size, list) for size in built) else None


def _answer(layer: Mapping[str, Any], shape: Shape | None) -> Shape | None:
    """The shape a layer gives; None where that isn't known here."""
    kind, config = layer["class_name"], layer["config"]
    if kind == "InputLayer":
        return _shape(_batch_shape(layer))
    if shape is None:
        return None
    if kind in _SAME:
        return shape
    if kind == "Dense":
        return (*shape[:-1], int(config["units"]))
    if kind == "Flatten":
        rest = shape[1:]
        return (shape[0], None if None in rest else math.prod(size or 0 for size in rest))
    if kind in ("GlobalAveragePooling2D", "GlobalMaxPooling2D", "GlobalAveragePooling1D", "GlobalMaxPooling1D"):
        if config.get("keepdims") or config.get("data_format") == "channels_first":
            return None
        return (shape[0], shape[-1])
    if kind == "Reshape" and -1 not in config["target_shape"]:
        return (shape[0], *(int(size) for size in config["target_shape"]))
    return None


def _shape(sizes: Any) -> Shape:
    return tuple(None if size is None else int(size) for size in sizes)


def _dtype(layer: Mapping[str, Any]) -> str:
    dtype = layer["config"].get("dtype", "float32")
    if isinstance(dtype, dict):
        dtype = dtype["config"]["name"]
    name = str(dtype or "float32").removeprefix("mixed_")
    return "object" if name == "string" else name
