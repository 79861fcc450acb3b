"""Keras (.keras) -> TensorFlow SavedModel with serving_default. Lambda layers stay refused (Keras's safe mode)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maasdam.convert.signatures import describe, match
from maasdam.core import Artifact, Signature, TensorSpec
from maasdam.engines.keras_library import open_keras
from maasdam.engines.tensors import identifier
from maasdam.errors import Unsupported

if TYPE_CHECKING:
    import tensorflow as tf


def write(source: Artifact, out: Path) -> Signature:
    """Write `out`/saved_model.pb and variables/; returns the signature read back."""
    import tensorflow as tf

    export_keras(source.path / "model.keras", out, source.signature)
    return describe(signature_of(tf.saved_model.load(str(out)).signatures["serving_default"]), source.signature)


def export_keras(path: Path, out: Path, wanted: Signature | None, *, widens_bfloat16: bool = False) -> None:
    """Write the Keras model of `path` into the folder `out` as a SavedModel, its tensors named as in `wanted`.

    `widens_bfloat16`: layers that compute at bfloat16 over float32 weights compute at float32.
    """
    import tensorflow as tf

    network = open_keras(path)
    if widens_bfloat16:
        _widen(network.model)
    own = network.signature
    wanted = wanted or own
    inputs = match(wanted.inputs, own.inputs, "inputs")
    outputs = match(wanted.outputs, own.outputs, "outputs")

    def serve(**tensors: Any) -> dict[str, Any]:
        answer = network({name: tensors[identifier(inputs[name])] for name in inputs})
        # an input that is returned as it came is a value of its own, so that it can be named
        return {outputs[name]: tf.identity(tensor) for name, tensor in answer.items()}

    names = {s.name: identifier(inputs[s.name]) for s in own.inputs}
    kinds = {s.name: "string" if s.dtype == "object" else s.dtype for s in own.inputs}
    specs = {names[s.name]: tf.TensorSpec(s.shape, kinds[s.name], name=names[s.name]) for s in own.inputs}
    holder = tf.Module()
    holder.model = network.model  # so that its variables are saved
    try:
        holder.serve = tf.function(serve).get_concrete_function(**specs)
        tf.saved_model.save(holder, str(out), signatures={"serving_default": holder.serve})
    except Exception as error:  # Keras and TensorFlow raise anything
        raise Unsupported(f"Keras can't export the model: {reason_of(error)}") from error


def _widen(model: Any) -> None:
    import keras

    for layer in model._flatten_layers():
        if (layer.compute_dtype, layer.variable_dtype) == ("bfloat16", "float32"):
            layer.dtype_policy = keras.DTypePolicy("float32")


def reason_of(error: Exception) -> str:
    """What TensorFlow or Keras says behind its list of places in the code."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reasons = (
        [line for line in lines if re.match(r"(\w+\.)*\w*(Error|Exception): ", line)] or lines[-1:] or [type(error).__name__]
    )
    return reasons[0][:400]


def signature_of(function: tf.types.experimental.ConcreteFunction) -> Signature:
    """What a serving function takes and gives, by its structured names."""
    inputs = function.structured_input_signature[1]
    outputs = function.structured_outputs
    return Signature(tuple(_spec(n, inputs[n]) for n in sorted(inputs)), tuple(_spec(n, outputs[n]) for n in sorted(outputs)))


def _spec(name: str, tensor: Any) -> TensorSpec:
    return TensorSpec(name, tensor.dtype.as_numpy_dtype.__name__, tuple(tensor.shape.as_list()))
