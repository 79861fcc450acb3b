"""Keras 3 files (.keras): architecture, weights' shapes, and whether loading would run what the file brings.

Knows Keras' config: nested objects, each naming a module and a class. Refuses to import Keras or TensorFlow.
"""

from __future__ import annotations

import builtins
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from maasdam.errors import InvalidModel, UnsafeModel
from maasdam.sources.archives import Archive, open_archive
from maasdam.sources.bounds import MAX_CONFIG_BYTES, Place, commonest, parse_json
from maasdam.sources.finding import Reading, Risk
from maasdam.sources.hdf5 import read_weights
from maasdam.sources.kerasgraph import signature_of

MAX_KERAS_JSON_DEPTH = 200
WEIGHTS = "model.weights.h5"
_MEMBERS = {"config.json", "metadata.json", WEIGHTS, "model.weights.json", "model.weights.npz"}

_RUNNING = {"Lambda", "__lambda__", "TorchModuleWrapper", "TFSMLayer", "JaxLayer", "FlaxLayer"}
"""Classes that hold or fetch code: bytecode, a pickle, another SavedModel."""
_MODULES = ("layers", "models", "initializers", "regularizers", "constraints", "activations", "optimizers", "losses", "metrics",
            "ops", "dtype_policies", "dtype", "random", "quantizers", "distillation")  # fmt: skip
KERAS2_FUNCTIONAL = {(f"{package}engine.functional", "Functional") for package in ("keras.", "keras.src.", "tf_keras.src.")}
"""What Keras 2 calls a model of layers, by its version and package. Keras 3 has it elsewhere."""
_FUNCTION_MODULES = ("activations", "ops", "losses", "metrics", "initializers", "regularizers", "constraints")
PACKED = 8
"""How many numbers one of a quantised weight may hold."""
_SIZES = ("units", "filters", "input_dim", "output_dim")
"""Settings of layers that are an axis of their weights."""
_VOCABULARIES = {"StringLookup", "IntegerLookup", "TextVectorization"}


def read(place: Place, name: str) -> Reading:
    """Read `name` in `place`. Raises UnsafeModel when loading it would run code of the file's own."""
    path = place.need(name, "the model file is missing")
    with open_archive(path, path) as archive:
        for member in ("config.json", "metadata.json"):
            if member not in archive.sizes:
                raise InvalidModel(
                    f"{path} has no {member}: it is no Keras 3 file; save the model with model.save('model.keras')"
                )
        extra = sorted(entry for entry in archive.sizes if entry not in _MEMBERS and not entry.startswith("assets/"))
        if extra:
            raise UnsafeModel(f"{path} holds {', '.join(extra[:5])}, which Keras does not write; refused")
        config = parse_json(archive.read("config.json", MAX_CONFIG_BYTES), f"{path}: config.json", MAX_KERAS_JSON_DEPTH)
        metadata = parse_json(archive.read("metadata.json", MAX_CONFIG_BYTES), f"{path}: metadata.json", 10)
        if not isinstance(metadata, dict) or not isinstance(config, dict):
            raise InvalidModel(f"{path}: config.json or metadata.json is no JSON object; save the model again")
        bad = sorted({what for value in _objects(config) for what in _running(value)})
        if bad:
            raise UnsafeModel(
                f"{path} would run code of its own when loaded: {', '.join(bad[:8])}; refused: use Keras' own layers and "
                "losses (a custom loss is left out by model.compile() before saving), "
                "or export the model with model.export('model.onnx', format='onnx')"
            )
        if WEIGHTS not in archive.sizes:
            raise InvalidModel(f"{path} has no {WEIGHTS}; save the model again")
        shapes = _weights(archive)
        _check_sizes(config, shapes, path)
    elements: Counter[str] = Counter()
    for name_inside, (dtype, shape) in (shapes or {}).items():
        if not name_inside.startswith("optimizer/"):
            elements[dtype] += math.prod(shape)
    notes = [f"written by Keras {metadata.get('keras_version', 'of an unknown version')}"]
    signature = signature_of(config, path)
    if signature is None:
        notes.append("the shape of its answer is known once Keras opens it")
    if shapes is None:
        notes.append("its weights were not looked into: h5py is not installed (it comes with maasdam[tensorflow])")
    return Reading(
        format="tensorflow",
        layout="keras",
        files={"model.keras": path},
        signature=signature,
        architecture=str(config.get("class_name")),
        parameters=sum(elements.values()) or None,
        precision=commonest(elements),
        risks=(Risk("info", "only layers that come with Keras; loaded in safe mode"),),
        notes=tuple(notes),
    )


def computed(path: Path) -> frozenset[str]:
    """numpy's names of the types that the layers of a .keras file, which was read before, compute in."""
    with open_archive(path, path) as archive:
        config = parse_json(archive.read("config.json", MAX_CONFIG_BYTES), f"{path}: config.json", MAX_KERAS_JSON_DEPTH)
    dtypes = set()
    for value in _objects(config):
        policy = value.get("dtype")
        if isinstance(policy, dict):  # {"class_name": "DTypePolicy", "config": {"name": "mixed_float16"}}
            policy = (policy.get("config") or {}).get("name")
        if isinstance(policy, str):
            dtypes.add(policy.removeprefix("mixed_"))
    return frozenset(dtypes)


def _objects(config: Any) -> Iterator[dict[str, Any]]:
    """Every object of a config, the outermost first."""
    stack = [config]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            yield value
        stack.extend(value.values() if isinstance(value, dict) else value if isinstance(value, list) else ())


def _weights(archive: Archive) -> dict[str, tuple[str, tuple[int, ...]]] | None:
    with archive.stream(WEIGHTS) as stream:
        return read_weights(stream, f"{archive.path}: {WEIGHTS}")


def _check_sizes(config: Any, shapes: Mapping[str, tuple[str, tuple[int, ...]]] | None, path: Path) -> None:
    """Raise InvalidModel for a layer wider than any weight: Keras makes room for it before it looks at the weights."""
    if shapes is None:
        return
    widest = max((max((0, *shape)) for _, shape in shapes.values()), default=0)
    for value in _objects(config):
        for key in _SIZES:
            if isinstance(value.get(key), int) and value[key] > PACKED * widest:
                raise InvalidModel(
                    f"{path}: config.json has {key} {value[key]:,}, and no weight in it is longer than {widest:,}; "
                    "save the model again"
                )


def _running(value: dict[str, Any]) -> Iterator[str]:
    """What an object of a config would run, import or open that does not come with Keras."""
    kind, module, inner = value.get("class_name"), value.get("module"), value.get("config")
    if kind is not None and not isinstance(kind, str):
        yield "a class whose name is no text"
        return
    if kind is not None and kind != "__lambda__" and not kind.isidentifier():
        yield f"{module}.{kind[:80]}"  # Keras would follow the dots: "keras" and "layers.TFSMLayer" are one of _RUNNING
    if kind in _RUNNING:
        yield str(kind)
    elif kind == "function":
        if not _is_own_function(module, inner):
            yield f"{module}.{inner}"
    elif (module, kind) in KERAS2_FUNCTIONAL:
        pass
    elif module is not None and not _is_own(module):
        yield f"{module}.{kind}"
    elif value.get("registered_name") and module is None and ">" in str(value["registered_name"]):
        yield str(value["registered_name"])
    if kind in _VOCABULARIES and isinstance(inner, dict) and isinstance(inner.get("vocabulary"), str):
        yield f"{kind} reading the file {inner['vocabulary'][:80]!r}"


def _is_own_function(module: Any, name: Any) -> bool:
    """Whether a function named in a config computes on tensors. "builtins" is where Keras puts its own; Python's are none."""
    if not isinstance(name, str):
        return False
    if module in (None, "builtins"):
        return not hasattr(builtins, name) and name.isidentifier()
    return _is_own(module, _FUNCTION_MODULES)


def _is_own(module: Any, parts_taken: tuple[str, ...] = _MODULES) -> bool:
    """Whether a module named in a config is one of Keras' that holds only building blocks (not keras.utils or keras.config)."""
    if module == "keras":
        return parts_taken is _MODULES
    if not isinstance(module, str):
        return False
    parts = module.split(".")
    if parts[0] not in ("keras", "tf_keras") or len(parts) < 2:
        return False
    inner = parts[2:] if parts[1] == "src" else parts[1:]
    return bool(inner) and inner[0] in parts_taken
