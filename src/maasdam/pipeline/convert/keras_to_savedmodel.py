"""Keras (.keras) -> TensorFlow SavedModel with serving_default. Lambda layers stay refused (Keras's safe mode)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maasdam.core import Artifact, Signature, TensorSpec
from maasdam.errors import InvalidModel, UnsafeModel, Unsupported, missing_extra
from maasdam.pipeline.convert.modules import first_line
from maasdam.pipeline.convert.signatures import describe, match

if TYPE_CHECKING:
    import tensorflow as tf


def write(source: Artifact, out: Path) -> Signature:
    """Write `out`/saved_model.pb and variables/; returns the signature read back."""
    import tensorflow as tf

    export_keras(source.path / "model.keras", out, source.signature)
    return describe(signature_of(tf.saved_model.load(str(out)).signatures["serving_default"]), source.signature)


def load_keras(path: Path) -> Any:
    """The Keras model, in safe mode. Raises UnsafeModel for code inside, InvalidModel for a broken file."""
    try:
        import keras
    except ImportError as error:
        raise missing_extra("tensorflow", "tensorflow") from error
    try:
        return keras.models.load_model(path, compile=False, safe_mode=True)
    except ValueError as error:
        if "safe" in str(error).lower() or "lambda" in str(error).lower():
            raise UnsafeModel("model.keras holds code that would run when loaded (a Lambda layer); refused") from error
        raise InvalidModel(f"Keras can't load model.keras: {first_line(error)}") from error
    except (OSError, KeyError, TypeError) as error:
        raise InvalidModel(f"Keras can't load model.keras: {first_line(error)}") from error


def export_keras(path: Path, out: Path, wanted: Signature | None) -> None:
    """Write the Keras model of `path` into the folder `out` as a SavedModel, its tensors named as in `wanted`."""
    import tensorflow as tf

    model = load_keras(path)
    takes = [TensorSpec(t.name, t.dtype, tuple(t.shape)) for t in model.inputs]
    gives = [TensorSpec(n, t.dtype, tuple(t.shape)) for n, t in zip(model.output_names, model.outputs, strict=True)]
    wanted = wanted or Signature(tuple(takes), tuple(gives))
    inputs = [match(wanted.inputs, takes, "inputs")[s.name] for s in takes]
    outputs = [match(wanted.outputs, gives, "outputs")[s.name] for s in gives]
    structure = getattr(model, "_inputs_struct", None)

    def serve(**tensors: Any) -> dict[str, Any]:
        flat = [tensors[name] for name in inputs]
        packed = tf.nest.pack_sequence_as(structure, flat) if structure is not None else flat
        return dict(zip(outputs, tf.nest.flatten(model(packed, training=False)), strict=True))

    specs = {name: tf.TensorSpec(s.shape, s.dtype, name=name) for name, s in zip(inputs, takes, strict=True)}
    holder = tf.Module()
    holder.model = model  # so that its variables are saved
    try:
        holder.serve = tf.function(serve).get_concrete_function(**specs)
        tf.saved_model.save(holder, str(out), signatures={"serving_default": holder.serve})
    except Exception as error:  # Keras and TensorFlow raise anything
        raise Unsupported(f"Keras can't export the model: {told(error)}") from error


def told(error: Exception) -> str:
    """What TensorFlow or Keras says behind its list of places in the code."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if re.match(r"(\w+\.)*\w*(Error|Exception): ", line)] or lines[-1:] or [type(error).__name__]
    return said[0][:400]


def signature_of(function: tf.types.experimental.ConcreteFunction) -> Signature:
    """What a serving function takes and gives, by its structured names."""
    inputs = function.structured_input_signature[1]
    outputs = function.structured_outputs
    return Signature(tuple(_spec(n, inputs[n]) for n in sorted(inputs)), tuple(_spec(n, outputs[n]) for n in sorted(outputs)))


def _spec(name: str, tensor: Any) -> TensorSpec:
    return TensorSpec(name, tensor.dtype.as_numpy_dtype.__name__, tuple(tensor.shape.as_list()))
