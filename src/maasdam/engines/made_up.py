"""Rows to try an engine on where nobody gave any: of every input's type, within what it can mean.

Knows signatures, names of tensors and the files that say how many rows a table has. Refuses to run a model.

An integer may be the number of a row in a table: one beyond its end is an error in one engine and memory of others in the
next. So integers stay within the rows of the table that they are looked up in, and are 0 or 1 where no table is found.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maasdam.core import PAST, Artifact, Signature, TensorSpec
from maasdam.engines.generation import read_config

if TYPE_CHECKING:
    import numpy as np

    from maasdam.core import type_array

LENGTHS = (8, 32, 128, 512, 4000, 16000)
"""What an open axis is set to: the first that the model runs with."""
SIDES = (64, 224, 32, 256)
"""The same of an image's sides."""
MOST_GRAPH_BYTES = 1 << 28
"""A larger graph (weights inside) is not read for its tables."""
ASIDE = {"Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Convert", "Transpose", "Clip", "Clamp"}
"""Operators that leave integers what they are."""

Row = dict[str, "type_array"]
Ranges = Mapping[str, tuple[int, int]]
"""Lowest and highest value by input."""


def lengths(signature: Signature) -> tuple[int, ...]:
    """Sizes to give the open axes but the first, in the order to try; (1,) where none is open."""
    if not any(None in spec.shape[1:] for spec in signature.inputs):
        return (1,)
    return SIDES if any(len(s.shape) == 4 and not s.name.startswith(PAST) for s in signature.inputs) else LENGTHS


def rows(signature: Signature, length: int, count: int, ranges: Ranges, like: Row | None = None) -> list[Row]:
    """`count` different inputs of one row; open axes have the size `length`, or those of `like` where it is given.

    The same arguments give the same rows. Raises KeyError for a type that can't be made up (strings).
    """
    import numpy as np

    random = np.random.default_rng(0)
    return [
        {s.name: _one(s, _shape(s, signature, length, like), ranges, random) for s in signature.inputs} for _ in range(count)
    ]


def integer_ranges(artifact: Artifact, signature: Signature) -> dict[str, tuple[int, int]]:
    """What the integers of each input may be: by its declared range, its table's rows or its name; else 0 and 1."""
    tables = _tables(artifact) if any(_is_integer(s) and not s.value_range for s in signature.inputs) else {}
    config = read_config(artifact.path)
    ranges = {}
    for spec in signature.inputs:
        if not _is_integer(spec):
            continue
        size = next((config[key] for part, key in _CONFIG if part in spec.name and isinstance(config.get(key), int)), None)
        if spec.value_range:
            ranges[spec.name] = (int(spec.value_range[0]), int(spec.value_range[1]))
        elif "mask" in spec.name:
            ranges[spec.name] = (0, 1)
        elif spec.name in tables or size:
            ranges[spec.name] = (0, max(1, (tables.get(spec.name) or size or 2) - 1))
        else:
            ranges[spec.name] = (0, 255) if spec.dtype == "uint8" else (0, 1)
    return ranges


_CONFIG = (("token_type", "type_vocab_size"), ("position", "max_position_embeddings"), ("input_ids", "vocab_size"))
"""Part of an input's name -> the key of config.json that says its table's rows."""


def _is_integer(spec: TensorSpec) -> bool:
    return spec.dtype.startswith(("int", "uint"))


def _shape(spec: TensorSpec, signature: Signature, length: int, like: Row | None) -> tuple[int, ...]:
    if like is not None:
        return (1, *like[spec.name].shape[1:])
    has_cache = any(s.name.startswith(PAST) for s in signature.inputs)
    whole = 2 * length if has_cache and "mask" in spec.name else length
    return tuple((1 if axis == 0 else whole) if size is None else size for axis, size in enumerate(spec.shape))


def _one(spec: TensorSpec, shape: tuple[int, ...], ranges: Ranges, random: np.random.Generator) -> type_array:
    import numpy as np

    if spec.dtype == "bool":
        return random.random(shape) < 0.8
    if spec.dtype.startswith(("float", "bfloat")):
        values = random.standard_normal(shape)
        if spec.value_range:
            low, high = spec.value_range
            values = ((low + high) / 2 + values * (high - low) / 4).clip(low, high)
        return values.astype(_dtype(spec.dtype))
    low, high = ranges[spec.name]
    if "mask" in spec.name:  # most of it is seen, and its beginning always
        mask = np.ones(shape, spec.dtype)
        mask[..., max(1, int(random.integers(shape[-1] // 2, shape[-1] + 1)) if mask.ndim > 1 else 1) :] = 0
        return mask
    if "position" in spec.name and len(shape) > 1:
        return np.broadcast_to(np.arange(shape[-1]) % (high + 1), shape).astype(spec.dtype)
    if "length" in spec.name and len(shape) < 2:
        return np.ones(shape, spec.dtype)
    return random.integers(low, high + 1, shape).astype(spec.dtype)


def _dtype(name: str) -> Any:
    if name != "bfloat16":
        return name
    import ml_dtypes

    return ml_dtypes.bfloat16


def _tables(artifact: Artifact) -> dict[str, int]:
    """Input -> rows of the smallest table that its integers number the rows of, where the graph shows it."""
    try:
        if artifact.layout == "onnx":
            return _smallest(_onnx_tables(artifact.path / "model.onnx"))
        if artifact.layout == "ir":
            return _smallest(_openvino_tables(artifact.path / "model.xml"))
    except Exception:  # a graph that is not understood tells nothing; what opens it is the engine
        return {}
    return {}


def _smallest(sizes: Iterable[tuple[str, int]]) -> dict[str, int]:
    out: dict[str, int] = {}
    for name, size in sizes:
        out[name] = min(size, out.get(name, size))
    return out


def _onnx_tables(path: Path) -> Iterator[tuple[str, int]]:
    import onnx

    if path.stat().st_size > MOST_GRAPH_BYTES:
        return
    graph = onnx.load(str(path), load_external_data=False).graph
    sizes = {w.name: list(w.dims) for w in graph.initializer}
    stands_for = {value.name: value.name for value in graph.input if value.name not in sizes}
    for node in graph.node:  # in the order they are computed
        inputs = list(node.input)
        if node.op_type == "Constant":
            sizes[node.output[0]] = next((list(a.t.dims) for a in node.attribute if a.name == "value"), [])
        elif node.op_type in ("DequantizeLinear", "Cast", "Identity") and inputs[0] in sizes:
            sizes[node.output[0]] = sizes[inputs[0]]
        elif node.op_type in ASIDE and inputs and inputs[0] in stands_for:
            stands_for[node.output[0]] = stands_for[inputs[0]]
        elif node.op_type in ("Gather", "GatherBlockQuantized") and inputs[0] in sizes and inputs[1] in stands_for:
            axis = next((a.i for a in node.attribute if a.name in ("axis", "gather_axis")), 0)
            if sizes[inputs[0]]:
                yield stands_for[inputs[1]], sizes[inputs[0]][axis]
        elif node.op_type == "OneHot" and inputs[0] in stands_for:
            yield stands_for[inputs[0]], 2
        elif node.op_type == "EmbedLayerNormalization":
            for index, table in ((0, 2), (1, 4)):
                if len(inputs) > table and inputs[index] in stands_for and inputs[table] in sizes:
                    yield stands_for[inputs[index]], sizes[inputs[table]][0]


def _openvino_tables(path: Path) -> Iterator[tuple[str, int]]:
    from maasdam.engines.openvino_library import openvino

    model = openvino().Core().read_model(str(path))
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Gather":
            continue
        table, indices = node.input_value(0), node.input_value(1).get_node()
        while indices.get_type_name() in ASIDE:
            indices = indices.input_value(0).get_node()
        axis = node.input_value(2).get_node()
        if indices.get_type_name() != "Parameter" or axis.get_type_name() != "Constant":
            continue
        size = table.get_partial_shape()[int(axis.data.item())]
        if size.is_static:
            names = indices.output(0).get_names()
            yield from ((name, size.get_length()) for name in names or {indices.get_friendly_name()})
