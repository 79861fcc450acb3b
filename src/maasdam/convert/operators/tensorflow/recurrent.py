"""Kernels of recurrent layers: one step after another by tf.scan, over a sequence of any length."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf
from tensorflow import Tensor


def layer(kind: str, *others: Any) -> None:
    """TensorFlow's own layers are Keras's."""


def walked(
    turn: Callable[..., tuple[Tensor, ...]], states: tuple[Tensor, ...], seen: tuple[Tensor, ...]
) -> tuple[tuple[Tensor, ...], Tensor]:
    """The last states, and the first of them after every step."""
    found = tf.scan(turn, seen, states)
    return tuple(each[-1] for each in found), found[0]


def pieces(x: Tensor, sizes: list[int]) -> list[Tensor]:
    """Of the first axis."""
    found: list[Tensor] = tf.split(x, sizes)
    return found
