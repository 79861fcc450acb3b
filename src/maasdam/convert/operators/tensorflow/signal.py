"""Operators on signals: Fourier transforms, and the determinant."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
from tensorflow import Tensor

from maasdam.convert.operators.tensorflow.sizes import rank
from maasdam.convert.operators.tensorflow.table import operator
from maasdam.errors import Unsupported


@operator("DFT", since=20, shapes=("length", "axis"))
def fourier(x: Tensor, length: Any = None, axis: Any = -2, inverse: int = 0, onesided: int = 0) -> Tensor:
    """ONNX DFT: the last axis holds a real number, or a real and an imaginary one."""
    axis = axis[0] if isinstance(axis, list) else -2 if axis is None else axis
    axis = axis % rank(x)
    count = length[0] if isinstance(length, list) else length
    have = x.shape[axis]
    if have is None:
        raise Unsupported("DFT over an axis whose size is not fixed")
    size = count if count is not None else 2 * (have - 1) if inverse and onesided else have
    last = rank(x) - 2  # of the complex numbers, whose parts are no axis any more
    swap = list(range(last + 1))
    swap[axis], swap[last] = swap[last], swap[axis]
    values = _complex(x)
    values = _fitted(tf.transpose(values, swap), size // 2 + 1 if inverse and onesided else size)
    if inverse and onesided:
        return tf.transpose(tf.signal.irfft(values, [size]), swap)[..., None]
    found = (tf.signal.ifft if inverse else tf.signal.fft)(values)
    found = tf.transpose(found[..., : size // 2 + 1] if onesided else found, swap)
    return tf.stack([tf.math.real(found), tf.math.imag(found)], -1)


@operator("DFT", shapes=("length",))
def fourier_by_attribute(x: Tensor, length: Any = None, axis: int = 1, inverse: int = 0, onesided: int = 0) -> Tensor:
    """ONNX DFT before 20: the axis is an attribute."""
    return fourier(x, length, axis, inverse, onesided)


def _complex(x: Tensor) -> Tensor:
    real = x[..., 0]
    return tf.complex(real, tf.zeros_like(real) if x.shape[-1] == 1 else x[..., 1])


def _fitted(values: Tensor, size: int) -> Tensor:
    """The last axis cut, or filled with zeros, to this size."""
    have = int(values.shape[-1])
    if have >= size:
        return values[..., :size]
    return tf.pad(values, [[0, 0]] * (rank(values) - 1) + [[0, size - have]])


@operator("STFT", shapes=("step", "length"))
def short_time_fourier(x: Tensor, step: Any, window: Tensor | None = None, length: Any = None, onesided: int = 1) -> Tensor:
    """ONNX STFT of a real signal: (batch, frames, bins, 2)."""
    signal = tf.squeeze(x, -1) if rank(x) == 3 else x
    given = length[0] if isinstance(length, list) else length
    size = given if given is not None else window.shape[0] if window is not None else signal.shape[-1]
    hop = step[0] if isinstance(step, list) else step
    if not isinstance(size, int) or not isinstance(hop, int):
        raise Unsupported("STFT with a frame or a step that is not fixed")
    frames = tf.signal.frame(signal, size, hop)
    if window is not None:
        short = size - window.shape[0]
        frames = frames * tf.pad(window, [[short // 2, short - short // 2]])
    found = tf.signal.rfft(frames) if onesided else tf.signal.fft(tf.complex(frames, tf.zeros_like(frames)))
    return tf.stack([tf.math.real(found), tf.math.imag(found)], -1)


@operator("Det")
def determinant(x: Tensor) -> Tensor:
    """ONNX Det."""
    return tf.linalg.det(x)
