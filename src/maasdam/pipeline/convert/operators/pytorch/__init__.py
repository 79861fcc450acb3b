"""ONNX operators in PyTorch, made of functions that torch.export traces."""

from maasdam.pipeline.convert.operators.pytorch import (
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
from maasdam.pipeline.convert.operators.pytorch.table import operator as TABLE

__all__ = ["TABLE", "control", "elementwise", "layers", "quantized", "rearrange", "recurrent", "reduce", "signal", "spatial"]
