"""ONNX -> TensorFlow: the graph as a traced function over real variables, then a SavedModel with serving_default.

Knows variables, names and signatures. The operators are in `operators/`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from maasdam.convert.modules import need_signature, raising
from maasdam.convert.operators import interpreter, shapes
from maasdam.convert.operators.graph import read
from maasdam.convert.operators.nodes import Graph
from maasdam.convert.operators.weights import learned_names
from maasdam.convert.signatures import describe
from maasdam.core import Artifact, Signature, TensorSpec
from maasdam.engines.tensors import identifier
from maasdam.errors import Unsupported, from_extra

if TYPE_CHECKING:
    import tensorflow as tf

LARGE = 1 << 16
"""Constants of more bytes than this are kept with the variables, out of the graph, which may hold 2 GB."""


def write(source: Artifact, out: Path) -> Signature:
    """Write `out`/saved_model.pb and variables/; returns the signature read back.

    Raises Unsupported listing operators TensorFlow has no counterpart for, or saying why it can't trace the graph.
    """
    with from_extra("tensorflow", "tensorflow"):
        import tensorflow as tf
    from maasdam.convert.directions.keras_to_savedmodel import signature_of

    signature = need_signature(source)
    module = of_graph(read(source.path / "model.onnx", "TensorFlow"), signature)
    tf.saved_model.save(module, str(out), signatures={"serving_default": module.serve})
    return describe(signature_of(tf.saved_model.load(str(out)).signatures["serving_default"]), signature)


def of_graph(graph: Graph, signature: Signature) -> tf.Module:
    """A graph read for TensorFlow as a module whose `serve` takes and gives tensors by name.

    Its weights are trainable variables. Raises Unsupported where TensorFlow can't trace it.
    """
    import tensorflow as tf

    from maasdam.convert.operators.tensorflow import ARRAYS

    learned = learned_names(graph)
    module = tf.Module()
    module.weights = {
        f"w{i}": tf.Variable(array, trainable=name in learned, name=_plain(name))
        for i, (name, array) in enumerate(graph.constants.items())
        if name in learned or (array.nbytes > LARGE and not shapes.is_small(array))
    }
    places = {name: f"w{i}" for i, name in enumerate(graph.constants) if f"w{i}" in module.weights}

    def serve(**given: Any) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name, array in graph.constants.items():
            held = places.get(name)
            values[name] = interpreter.small_or_tensor(array, ARRAYS) if held is None else module.weights[held].value()
        values.update((name, given[identifier(name)]) for name in graph.inputs)
        found = interpreter.run(graph, ARRAYS, values)
        return {s.name: _shaped(value, s) for s, value in zip(signature.outputs, found, strict=True)}

    specs = {identifier(s.name): tf.TensorSpec(s.shape, s.dtype, name=identifier(s.name)) for s in signature.inputs}
    with raising(Unsupported, "TensorFlow can't trace the ONNX graph"):
        module.serve = tf.function(serve, autograph=False).get_concrete_function(**specs)
    return module


def _shaped(value: tf.Tensor, spec: TensorSpec) -> tf.Tensor:
    """With the axes the source states, where tracing lost them; always a value of its own, so that it can be named."""
    import tensorflow as tf

    have = value.shape.as_list() if value.shape.rank is not None else [None] * len(spec.shape)
    if value.shape.rank is None or any(h is None and s is not None for h, s in zip(have, spec.shape, strict=False)):
        value = tf.ensure_shape(value, spec.shape)
    return tf.identity(value, name=_plain(spec.name))


def _plain(name: str) -> str:
    """As TensorFlow allows names of operations."""
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "_.-") else "_" for c in name.strip("/"))
    return kept if kept and kept[0].isalnum() else f"v{kept}"
