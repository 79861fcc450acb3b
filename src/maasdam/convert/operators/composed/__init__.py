"""ONNX operators composed of a framework's functions: described once, listed in every framework's table."""

from maasdam.convert.operators.composed import (
    detection,
    microsoft,
    microsoft_attention,
    microsoft_quantized,
    quantized,
)
from maasdam.convert.operators.composed.table import list_in

__all__ = ["detection", "list_in", "microsoft", "microsoft_attention", "microsoft_quantized", "quantized"]
