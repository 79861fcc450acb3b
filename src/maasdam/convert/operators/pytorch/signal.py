"""Kernels of operators on signals."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

forward, inverse, real_forward, real_inverse = torch.fft.fft, torch.fft.ifft, torch.fft.rfft, torch.fft.irfft
determinant, parts = torch.linalg.det, torch.view_as_real


def from_parts(x: Tensor) -> Tensor:
    """[..., 2] as complex numbers."""
    return torch.view_as_complex(x.contiguous())


def frames(x: Tensor, size: Any, step: Any) -> Tensor:
    """Of the last axis: [..., frames, size]."""
    return x.unfold(-1, size, step)
