"""ONNX operators in PyTorch, made of functions that torch.export traces."""

from maasdam.convert.operators import composed
from maasdam.convert.operators.pytorch import (
    control,
    detection,
    elementwise,
    layers,
    rearrange,
    recurrent,
    reduce,
    signal,
    spatial,
)
from maasdam.convert.operators.pytorch.arrays import ARRAYS
from maasdam.convert.operators.pytorch.table import operator as TABLE

__all__ = [
    "TABLE",
    "control",
    "detection",
    "elementwise",
    "layers",
    "rearrange",
    "recurrent",
    "reduce",
    "signal",
    "spatial",
]

composed.list_in(TABLE, ARRAYS)
