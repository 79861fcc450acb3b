"""ONNX operators in TensorFlow, made of functions that tf.function traces with axes it does not know."""

from maasdam.pipeline.convert.operators.tensorflow import (
    control,
    elementwise,
    layers,
    quantized,
    rearrange,
    recurrent,
    reduce,
    signal,
    spatial,
)
from maasdam.pipeline.convert.operators.tensorflow.table import operator as TABLE

__all__ = [
    "TABLE",
    "control",
    "elementwise",
    "layers",
    "quantized",
    "rearrange",
    "recurrent",
    "reduce",
    "signal",
    "spatial",
]
