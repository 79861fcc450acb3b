"""ONNX operators in TensorFlow, made of functions that tf.function traces with axes it does not know."""

from maasdam.convert.operators import composed
from maasdam.convert.operators.tensorflow import (
    control,
    detection,
    elementwise,
    layers,
    rearrange,
    recurrent,
    reduce,
    sampling,
    signal,
    spatial,
)
from maasdam.convert.operators.tensorflow.arrays import ARRAYS
from maasdam.convert.operators.tensorflow.table import operator as TABLE

__all__ = [
    "TABLE",
    "control",
    "detection",
    "elementwise",
    "layers",
    "rearrange",
    "recurrent",
    "reduce",
    "sampling",
    "signal",
    "spatial",
]

composed.list_in(TABLE, ARRAYS)
