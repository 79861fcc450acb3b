"""Where the PyTorch operators are listed, and the element types both sides know."""

from __future__ import annotations

import torch

from maasdam.convert.operators.table import Table
from maasdam.errors import Unsupported

operator = Table("PyTorch")

DTYPES: dict[int, torch.dtype] = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 4: torch.uint16, 5: torch.int16, 6: torch.int32, 7: torch.int64,
    9: torch.bool, 10: torch.float16, 11: torch.float64, 12: torch.uint32, 13: torch.uint64, 14: torch.complex64,
    15: torch.complex128, 16: torch.bfloat16,
}  # fmt: skip
"""ONNX's numbers for element types (TensorProto.DataType)."""


def dtype(number: int) -> torch.dtype:
    """The element type of an ONNX number. Raises Unsupported for strings and the 8-bit and narrower floats."""
    if number not in DTYPES:
        raise Unsupported(f"PyTorch tensors here have no ONNX element type number {number}")
    return DTYPES[number]
