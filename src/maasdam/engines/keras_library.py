"""Keras models from `.keras` files. Knows safe mode, what Keras calls inputs and outputs and how it packs them; never batches.

Code that a file brings is not run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maasdam.core import Signature, TensorSpec, distinct
from maasdam.engines import keras2
from maasdam.engines.tensors import first_line
from maasdam.errors import InvalidModel, UnsafeModel, Unsupported, from_extra

if TYPE_CHECKING:
    import tensorflow as tf


@dataclass(frozen=True, slots=True)
class KerasNetwork:
    """A built model, called with tensors by name."""

    model: Any
    signature: Signature
    """Its inputs and outputs in the order in which Keras flattens them."""

    def __call__(self, tensors: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Outputs by name, as at inference."""
        import keras

        flat = [tensors[spec.name] for spec in self.signature.inputs]
        answer = self.model(keras.tree.pack_sequence_as(_structure(self.model, "_inputs_struct"), flat), training=False)
        return dict(zip((s.name for s in self.signature.outputs), keras.tree.flatten(answer), strict=True))


def open_keras(path: Path) -> KerasNetwork:
    """The model in safe mode. Raises UnsafeModel for code inside, InvalidModel for a broken file, Unsupported, MissingExtra."""
    with from_extra("tensorflow", "tensorflow"):
        import keras
    try:
        with keras2.modern(path) as readable:
            model = keras.saving.load_model(readable, compile=False, safe_mode=True)
    except ValueError as error:
        if "safe" in str(error).lower() or "lambda" in str(error).lower():
            raise UnsafeModel("model.keras holds code that would run when loaded (a Lambda layer); refused") from error
        raise InvalidModel(f"Keras can't load model.keras: {first_line(error)}") from error
    except (OSError, KeyError, TypeError) as error:
        raise InvalidModel(f"Keras can't load model.keras: {first_line(error)}") from error
    if not getattr(model, "inputs", None):
        raise Unsupported("the Keras model names no inputs: it was saved before it was built; call it once and save it again")
    inputs = tuple(spec_of(tensor.name, tensor) for tensor in model.inputs)
    outputs = tuple(spec_of(name, tensor) for name, tensor in zip(_output_names(model), model.outputs, strict=True))
    return KerasNetwork(model, Signature(inputs, outputs))


def _output_names(model: Any) -> list[str]:
    """The keys where the model answers with a dict, else the layers that the outputs come from.

    An input that is returned as it came has another name as an output: not every format can hold both.
    """
    import keras

    named = []
    for path, tensor in keras.tree.flatten_with_path(_structure(model, "_outputs_struct")):
        keys = [str(part) for part in path]
        named.append(".".join(keys) if any(isinstance(part, str) for part in path) else tensor._keras_history[0].name)
    return distinct(named, (tensor.name for tensor in model.inputs))


def _structure(model: Any, which: str) -> Any:
    """How a functional model, or the one within a Sequential, packs its tensors."""
    return getattr(getattr(model, "_functional", None) or model, which)


def spec_of(name: str, tensor: Any) -> TensorSpec:
    """A tensor of Keras or TensorFlow under a name."""
    dtype = tensor.dtype if isinstance(tensor.dtype, str) else tensor.dtype.name
    return TensorSpec(name, "object" if dtype == "string" else dtype, tuple(tensor.shape))
