"""Kernels of elementwise operators."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

fmod, hard_swish, is_infinite, is_nan = torch.fmod, functional.hardswish, torch.isinf, torch.isnan
mish, power, remainder, softplus, softsign = (
    functional.mish,
    torch.pow,
    torch.remainder,
    functional.softplus,
    functional.softsign,
)


def divide(a: Tensor, b: Tensor) -> Tensor:
    """Integers are cut towards zero."""
    return torch.div(a, b, rounding_mode=None if a.is_floating_point() or a.is_complex() else "trunc")


def bit_shift(a: Tensor, b: Tensor, is_left: bool) -> Tensor:
    """In int64, as Python shifts."""
    shift = torch.bitwise_left_shift if is_left else torch.bitwise_right_shift
    return shift(a.to(torch.int64), b.to(torch.int64))


def bit_cast(x: Tensor, kind: torch.dtype) -> Tensor:
    """The same bits as another type of their width."""
    return x.view(kind)
