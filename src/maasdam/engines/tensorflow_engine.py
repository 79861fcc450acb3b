"""TensorFlow, for what was made in it and is served as it is. Knows SavedModels and Keras files; never tasks or HTTP."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from maasdam.core import Artifact, Signature, Tensors
from maasdam.engines.keras_library import open_keras, spec_of
from maasdam.engines.savedmodel_library import readable
from maasdam.engines.tensors import computing, identifier, loading_with, must_have, positions
from maasdam.errors import InvalidModel, Unsupported

if TYPE_CHECKING:
    from maasdam.core import type_array

NAME = "tensorflow"
SIGNATURE = "serving_default"


def open(artifact: Artifact, device: str, settings: Mapping[str, Any]) -> TensorFlowEngine:
    """Open a SavedModel's `serving_default`, or `model.keras` in Keras' safe mode.

    Setting "threads" holds for the process, and only where TensorFlow has not run yet.
    """
    with loading_with(NAME, artifact, "tensorflow"):
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        os.environ.setdefault("KERAS_BACKEND", "tensorflow")
        import tensorflow as tf

        _use_threads(tf, settings["threads"])
        if device == "cuda" and not tf.config.list_physical_devices("GPU"):
            raise Unsupported("TensorFlow sees no GPU here; use --device cpu")
        with tf.device("/GPU:0" if device == "cuda" else "/CPU:0"):
            function, keep, own = (_saved_model if artifact.layout == "savedmodel" else _keras)(tf, artifact)
        return TensorFlowEngine(tf, function, keep, artifact.signature or own)


def _use_threads(tf: Any, threads: int) -> None:
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    except RuntimeError:
        pass  # TensorFlow has run already: its threads are what they are


Function = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""Tensors by name to tensors by name."""


def _saved_model(tf: Any, artifact: Artifact) -> tuple[Function, Any, Signature]:
    with readable(artifact.path) as folder:
        loaded = tf.saved_model.load(str(folder))
    if SIGNATURE not in loaded.signatures:
        has = ", ".join(loaded.signatures) or "none"
        raise InvalidModel(f"the SavedModel has no signature '{SIGNATURE}'; it has: {has}. Export it with one")
    function = loaded.signatures[SIGNATURE]
    takes, gives = function.structured_input_signature[1], function.structured_outputs
    own = Signature(*(tuple(spec_of(name, side[name]) for name in sorted(side)) for side in (takes, gives)))
    if artifact.signature is not None:
        must_have(takes, artifact.signature, "inputs")
        must_have(gives, artifact.signature, "outputs")
    wanted = artifact.signature or own
    called = {s.name: s.name if s.name in takes else identifier(s.name) for s in wanted.inputs}
    answers = {s.name: s.name if s.name in gives else identifier(s.name) for s in wanted.outputs}

    def run(tensors: Mapping[str, Any]) -> Mapping[str, Any]:
        outputs = function(**{called[name]: tensor for name, tensor in tensors.items()})
        return {name: outputs[key] for name, key in answers.items()}

    return run, loaded, own


def _keras(tf: Any, artifact: Artifact) -> tuple[Function, Any, Signature]:
    network = open_keras(artifact.path / "model.keras")
    own = network.signature
    signature = artifact.signature or own
    order = positions([s.name for s in signature.inputs], [{s.name} for s in own.inputs], "inputs")
    where = positions([s.name for s in signature.outputs], [{s.name} for s in own.outputs], "outputs")
    inputs = {signature.inputs[at].name: own.inputs[port] for at, port in enumerate(order)}
    answers = {signature.outputs[at].name: own.outputs[port].name for at, port in enumerate(where)}
    types = {name: tf.TensorSpec(s.shape, s.dtype if s.dtype != "object" else "string") for name, s in inputs.items()}

    @tf.function(input_signature=[types])  # type: ignore[untyped-decorator]  # TensorFlow ships no types
    def forward(tensors: Mapping[str, Any]) -> Mapping[str, Any]:
        return network({inputs[name].name: tensor for name, tensor in tensors.items()})

    def function(tensors: Mapping[str, Any]) -> Mapping[str, Any]:
        outputs = forward(dict(tensors))
        return {name: outputs[key] for name, key in answers.items()}

    return function, network, own


class TensorFlowEngine:
    """One concrete function; TensorFlow lets several threads call it at once."""

    def __init__(self, tf: Any, function: Function, keep: Any, signature: Signature) -> None:
        self.signature = signature
        self._tf = tf
        self._function: Function | None = function
        self._keep: Any = keep  # a SavedModel's variables live as long as the loaded object

    def run(self, batch: Tensors) -> dict[str, type_array]:
        """Outputs in the signature's order. Raises InvalidTensor, EngineFailure."""
        with computing(NAME, self._function, self.signature, batch) as function:
            outputs = function({name: self._tf.constant(array) for name, array in batch.items()})
            return {s.name: outputs[s.name].numpy() for s in self.signature.outputs}

    def precisions(self) -> dict[str, int]:
        """Not known of a TensorFlow function."""
        return {}

    def close(self) -> None:
        """Free the model; a batch in flight in another thread still ends well."""
        self._function = None
        self._keep = None
