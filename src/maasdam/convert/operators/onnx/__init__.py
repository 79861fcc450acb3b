"""Every operator: its head (names, versions, parameters, weights) and, over a framework's `Arrays`, what it computes."""

from maasdam.convert.operators.onnx import (  # noqa: F401 - each lists its operators in the table
    control,
    detection,
    elementwise,
    layers,
    microsoft,
    microsoft_attention,
    microsoft_quantized,
    quantized,
    rearrange,
    recurrent,
    reduce,
    signal,
    spatial,
    values,
)
from maasdam.convert.operators.table import operator as OPERATORS

__all__ = ["OPERATORS"]
