"""Values of narrow types, exact in the wider type that holds them: see operators/narrow.py."""

from __future__ import annotations

import torch
from torch import Tensor

from maasdam.convert.operators.narrow import KINDS, Real, Whole
from maasdam.errors import Unsupported


def held(x: Tensor, number: int, saturate: bool) -> Tensor:
    """`x` cast to the narrow type of ONNX's `number`: floats to the nearest, halves to even; integers cut and wrapped."""
    kind = KINDS[number]
    if isinstance(kind, Real):
        return _rounded(x, kind, saturate)
    whole = x.to(torch.int32) & (2**kind.bits - 1)
    return (torch.where(whole > kind.most, whole - 2**kind.bits, whole)).to(holder(kind))


def holder(kind: Whole) -> torch.dtype:
    """Of an integer type."""
    return torch.int8 if kind.is_signed else torch.uint8


def _rounded(x: Tensor, kind: Real, saturate: bool) -> Tensor:
    if x.dtype == torch.float64:
        raise Unsupported(f"a cast from float64 to {kind.name}, which rounds once")
    wide = x.to(torch.float32)
    if saturate:
        wide = torch.clamp(wide, -kind.largest, kind.largest)
    exponent = torch.bitwise_right_shift(wide.view(torch.int32) & 0x7FFFFFFF, 23).clamp(min=kind.exponent + 127)
    step = torch.bitwise_left_shift(exponent - kind.digits, 23).view(torch.float32)  # between neighbours there: a power of two
    out = torch.round(wide / step) * step
    out = torch.where(out.abs() > kind.largest, torch.copysign(torch.full_like(out, kind.beyond), out), out)
    if kind.beyond == kind.largest:
        out = torch.where(torch.isnan(out), 0.0, out)  # a type without NaN
    return out.to(torch.float16)
