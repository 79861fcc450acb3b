"""Kernels of operators on signals."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
from tensorflow import Tensor

from maasdam.convert.operators.tensorflow.sizes import packed
from maasdam.errors import Unsupported

determinant, real_forward = tf.linalg.det, tf.signal.rfft


def from_parts(x: Tensor) -> Tensor:
    """[..., 2] as complex numbers."""
    return tf.complex(x[..., 0], x[..., 1])


def parts(x: Tensor) -> Tensor:
    """Complex numbers as [..., 2]."""
    return tf.stack([tf.math.real(x), tf.math.imag(x)], -1)


def _complex(x: Tensor) -> Tensor:
    return x if x.dtype.is_complex else tf.complex(x, tf.zeros_like(x))


def forward(x: Tensor) -> Tensor:
    """Of the last axis."""
    return tf.signal.fft(_complex(x))


def inverse(x: Tensor) -> Tensor:
    """Of the last axis."""
    return tf.signal.ifft(_complex(x))


def real_inverse(x: Tensor, size: Any) -> Tensor:
    """Of the last axis, to so many real numbers."""
    return tf.signal.irfft(_complex(x), tf.cast(packed([size]), tf.int32))


def frames(x: Tensor, size: Any, step: Any) -> Tensor:
    """Of the last axis: [..., frames, size]."""
    if not isinstance(size, int) or not isinstance(step, int):
        raise Unsupported("STFT with a frame or a step that is not fixed")
    return tf.signal.frame(x, size, step)
