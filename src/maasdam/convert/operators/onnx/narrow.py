"""Values of narrow types, exact in the wider type that holds them: see operators/narrow.py."""

from __future__ import annotations

from maasdam.convert.operators.arrays import Arrays, Kind, Tensor
from maasdam.convert.operators.narrow import KINDS, Real, Whole
from maasdam.errors import Unsupported

MANTISSA, BIAS = 23, 127
"""Of float32: bits behind the point, and the exponent's zero."""


def held(xp: Arrays, x: Tensor, number: int, saturate: bool) -> Tensor:
    """`x` cast to the narrow type of ONNX's `number`: floats to the nearest, halves to even; integers cut and wrapped."""
    kind = KINDS[number]
    if isinstance(kind, Real):
        return _rounded(xp, x, kind, saturate)
    whole = xp.cast(x, xp.int32) & (2**kind.bits - 1)
    return xp.cast(xp.where(whole > kind.most, whole - 2**kind.bits, whole), holder(xp, kind))


def holder(xp: Arrays, kind: Whole) -> Kind:
    """Of an integer type."""
    return xp.dtype(3) if kind.is_signed else xp.uint8


def _rounded(xp: Arrays, x: Tensor, kind: Real, saturate: bool) -> Tensor:
    if x.dtype == xp.float64:
        raise Unsupported(f"a cast from float64 to {kind.name}, which rounds once")
    wide = xp.cast(x, xp.float32)
    if saturate:
        wide = xp.where(xp.elementwise.is_nan(wide), wide, xp.clip(wide, -kind.largest, kind.largest))
    exponent = xp.shifted(xp.elementwise.bit_cast(wide, xp.int32) & 0x7FFFFFFF, MANTISSA)
    exponent = xp.clip(exponent, kind.exponent + BIAS, None)
    step = xp.elementwise.bit_cast((exponent - kind.digits) * 2**MANTISSA, xp.float32)  # between neighbours: a power of two
    out = xp.math.round(wide / step) * step
    out = xp.where(xp.math.abs(out) > kind.largest, xp.math.sign(out) * kind.beyond, out)
    if kind.beyond == kind.largest:
        out = xp.where(xp.elementwise.is_nan(out), 0.0, out)  # a type without NaN
    return xp.cast(out, xp.dtype(10))
