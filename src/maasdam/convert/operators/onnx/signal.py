"""Operators on signals: Fourier transforms, and the determinant."""

from __future__ import annotations

from typing import Any

from maasdam.convert.operators.arrays import Arrays, Tensor
from maasdam.convert.operators.onnx.rearrange import pad, positive, slice_
from maasdam.convert.operators.table import operator


@operator("DFT", since=20, shapes=("length", "axis"))
def fourier(xp: Arrays, x: Tensor, length: Any = None, axis: Any = -2, inverse: int = 0, onesided: int = 0) -> Tensor:
    """ONNX DFT: the last axis holds a real number, or a real and an imaginary one."""
    axis = axis[0] if isinstance(axis, list) else -2 if axis is None else axis
    axis, last = positive(xp, x, axis), xp.rank(x) - 2  # of the numbers, whose parts are no axis any more
    values = x[..., 0] if xp.dims(x)[-1] == 1 else xp.signal.from_parts(x)
    swap = list(range(last + 1))
    swap[axis], swap[last] = swap[last], swap[axis]
    values, have = xp.transpose(values, swap), xp.dims(x)[axis]
    count = length[0] if isinstance(length, list) else length
    is_back = bool(inverse and onesided)
    size = count if count is not None else 2 * (have - 1) if is_back else have
    if count is not None:
        values = _fitted(xp, values, have, size // 2 + 1 if is_back else size)
    if is_back:
        return xp.unsqueeze(xp.transpose(xp.signal.real_inverse(values, size), swap), -1)
    found = (xp.signal.inverse if inverse else xp.signal.forward)(values)
    found = slice_(xp, found, [0], [size // 2 + 1], [last]) if onesided else found
    return xp.signal.parts(xp.transpose(found, swap))


def _fitted(xp: Arrays, values: Tensor, have: Any, size: Any) -> Tensor:
    """The last axis cut, or filled with zeros, to this size."""
    if isinstance(have, int) and isinstance(size, int) and have >= size:
        return values[..., :size]
    return pad(xp, values, [0, size - have], axes=[-1])


@operator("DFT", shapes=("length",))
def fourier_by_attribute(
    xp: Arrays, x: Tensor, length: Any = None, axis: int = 1, inverse: int = 0, onesided: int = 0
) -> Tensor:
    """ONNX DFT before 20: the axis is an attribute."""
    return fourier(xp, x, length, axis, inverse, onesided)


@operator("STFT", shapes=("step", "length"))
def short_time_fourier(
    xp: Arrays, x: Tensor, step: Any, window: Tensor | None = None, length: Any = None, onesided: int = 1
) -> Tensor:
    """ONNX STFT of a real signal: (batch, frames, bins, 2)."""
    signal = x[..., 0] if xp.rank(x) == 3 else x
    given = length[0] if isinstance(length, list) else length
    size = given if given is not None else xp.dims(signal if window is None else window)[-1]
    frames = xp.signal.frames(signal, size, step[0] if isinstance(step, list) else step)
    if window is not None:
        short = size - xp.dims(window)[0]
        frames = frames * pad(xp, window, [short // 2, short - short // 2])
    return xp.signal.parts((xp.signal.real_forward if onesided else xp.signal.forward)(frames))


@operator("Det")
def determinant(xp: Arrays, x: Tensor) -> Tensor:
    """ONNX Det."""
    return xp.signal.determinant(x)
