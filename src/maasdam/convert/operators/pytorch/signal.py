"""Operators on signals: Fourier transforms, and the determinant."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from maasdam.convert.operators.pytorch.table import operator


@operator("DFT", since=20, shapes=("length", "axis"))
def fourier(x: Tensor, length: Any = None, axis: Any = -2, inverse: int = 0, onesided: int = 0) -> Tensor:
    """ONNX DFT: the last axis holds a real number, or a real and an imaginary one."""
    axis = axis[0] if isinstance(axis, list) else -2 if axis is None else axis
    axis = axis % x.dim()
    count = length[0] if isinstance(length, list) else length
    if inverse and onesided:
        real: Tensor = torch.fft.irfft(torch.view_as_complex(x.contiguous()), count, axis)
        return real.unsqueeze(-1)
    if x.shape[-1] == 1 and onesided:
        return torch.view_as_real(torch.fft.rfft(x.squeeze(-1), count, axis))
    values = x.squeeze(-1) if x.shape[-1] == 1 else torch.view_as_complex(x.contiguous())
    found = (torch.fft.ifft if inverse else torch.fft.fft)(values, count, axis)
    if onesided:
        found = found.narrow(axis, 0, found.shape[axis] // 2 + 1)
    return torch.view_as_real(found)


@operator("DFT", shapes=("length",))
def fourier_by_attribute(x: Tensor, length: Any = None, axis: int = 1, inverse: int = 0, onesided: int = 0) -> Tensor:
    """ONNX DFT before 20: the axis is an attribute."""
    return fourier(x, length, axis, inverse, onesided)


@operator("STFT", shapes=("step", "length"))
def short_time_fourier(x: Tensor, step: Any, window: Tensor | None = None, length: Any = None, onesided: int = 1) -> Tensor:
    """ONNX STFT of a real signal: (batch, frames, bins, 2)."""
    signal = x.squeeze(-1)
    size = length if length is not None else window.shape[0] if window is not None else signal.shape[-1]
    frames = signal.unfold(-1, size[0] if isinstance(size, list) else size, step[0] if isinstance(step, list) else step)
    if window is not None:
        short = frames.shape[-1] - window.shape[0]
        frames = frames * functional.pad(window, [short // 2, short - short // 2])
    transform = torch.fft.rfft if onesided else torch.fft.fft
    return torch.view_as_real(transform(frames))


@operator("Det")
def determinant(x: Tensor) -> Tensor:
    """ONNX Det."""
    found: Tensor = torch.linalg.det(x)
    return found
