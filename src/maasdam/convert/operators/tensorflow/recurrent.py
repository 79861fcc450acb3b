"""LSTM, GRU and RNN with their default activations: one step after another by tf.scan, over a sequence of any length."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf
from tensorflow import Tensor

from maasdam.convert.operators.tensorflow.table import operator
from maasdam.errors import Unsupported

_DEFAULTS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}
States = tuple[Tensor, ...]
Step = Callable[[States, Tensor], States]
"""The states after one step, from those before it and the input's share of the gates, [batch, gates * hidden]."""


def _refuse(kind: str, activations: list[str] | None, **others: Any) -> None:
    default = _DEFAULTS[kind]
    if activations and activations not in (default, default * 2):
        raise Unsupported(f"{kind} with activations {', '.join(activations)}")
    if given := [name for name, value in others.items() if value]:
        raise Unsupported(f"{kind} with {', '.join(given)}")


def _run(
    x: Tensor,
    w: Tensor,
    b: Tensor | None,
    states: list[Tensor | None],
    lengths: Tensor | None,
    step: Callable[[int], Step],
    shape: tuple[str, int, int],
) -> tuple[Tensor, ...]:
    """All directions. `step(d)` is direction d's; `shape` is (direction, layout, hidden size)."""
    direction, layout, hidden = shape
    x = tf.transpose(x, [1, 0, 2]) if layout else x
    outputs, last = [], []
    for d in range(w.shape[0]):
        is_backward = direction == "reverse" or d == 1
        seen = _turned(x, lengths) if is_backward else x
        gates = tf.einsum("tbi,gi->tbg", seen, w[d])
        gates = gates if b is None else gates + b[d, : w.shape[1]]
        begin = tuple(_start(state, d, x, hidden, layout) for state in states)
        found = _scanned(step(d), gates, begin, lengths)
        y, final = found[0], tuple(state[-1] for state in found)
        if lengths is not None:  # what a padded step gives is zero; the state stays what it was
            is_real = tf.range(tf.shape(x)[0])[:, None] < tf.cast(lengths, tf.int32)[None]
            y = tf.where(is_real[:, :, None], y, tf.zeros_like(y))
        outputs.append(_turned(y, lengths) if is_backward else y)
        last.append(final)
    y = tf.stack(outputs, 1)
    ends = [tf.stack(each) for each in zip(*last, strict=True)]
    if layout:
        return (tf.transpose(y, [2, 0, 1, 3]), *[tf.transpose(s, [1, 0, 2]) for s in ends])
    return (y, *ends)


def _scanned(step: Step, gates: Tensor, begin: States, lengths: Tensor | None) -> States:
    """The states after every step, [time, batch, hidden] each."""

    def turn(before: States, now: tuple[Tensor, Tensor]) -> States:
        share, time = now
        after = step(before, share)
        if lengths is None:
            return after
        goes_on = (time < tf.cast(lengths, tf.int32))[:, None]
        return tuple(tf.where(goes_on, new, old) for new, old in zip(after, before, strict=True))

    found: States = tf.scan(turn, (gates, tf.range(tf.shape(gates)[0])), begin)
    return found


def _turned(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Backwards in time; each item within its own length."""
    return tf.reverse(x, [0]) if lengths is None else tf.reverse_sequence(x, lengths, seq_axis=0, batch_axis=1)


def _start(state: Tensor | None, d: int, x: Tensor, hidden: int, layout: int) -> Tensor:
    if state is not None:
        return state[:, d] if layout else state[d]
    return tf.zeros(tf.stack([tf.shape(x)[1], hidden]), x.dtype)


def _recurrent_bias(b: Tensor | None, d: int, gates: int) -> Any:
    return 0 if b is None else b[d, gates:]


@operator("LSTM")
def lstm(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    sequence_lens: Tensor | None = None,
    initial_h: Tensor | None = None,
    initial_c: Tensor | None = None,
    p: Tensor | None = None,
    hidden_size: int = 0,
    direction: str = "forward",
    layout: int = 0,
    activations: list[str] | None = None,
    input_forget: int = 0,
    clip: float = 0.0,
) -> tuple[Tensor, ...]:
    """ONNX LSTM: gates in the order input, output, forget, cell; peepholes (input, output, forget) look at the cell."""
    _refuse("LSTM", activations, input_forget=input_forget, clip=clip)
    hidden = r.shape[2]

    def of_direction(d: int) -> Step:
        bias = _recurrent_bias(b, d, 4 * hidden)
        peep_i, peep_o, peep_f = tf.split(p[d], 3) if p is not None else (0.0, 0.0, 0.0)

        def step(before: States, share: Tensor) -> States:
            h, c = before
            i, o, f, new = tf.split(share + tf.matmul(h, r[d], transpose_b=True) + bias, 4, -1)
            i, f = tf.sigmoid(i + peep_i * c), tf.sigmoid(f + peep_f * c)
            c = f * c + i * tf.tanh(new)
            return tf.sigmoid(o + peep_o * c) * tf.tanh(c), c

        return step

    return _run(x, w, b, [initial_h, initial_c], sequence_lens, of_direction, (direction, layout, hidden))


@operator("GRU")
def gru(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    sequence_lens: Tensor | None = None,
    initial_h: Tensor | None = None,
    hidden_size: int = 0,
    direction: str = "forward",
    layout: int = 0,
    linear_before_reset: int = 0,
    activations: list[str] | None = None,
    clip: float = 0.0,
) -> tuple[Tensor, ...]:
    """ONNX GRU: gates in the order update, reset, hidden; the reset applies before or after the product."""
    _refuse("GRU", activations, clip=clip)
    hidden = r.shape[2]

    def of_direction(d: int) -> Step:
        r_z, r_r, r_h = tf.split(r[d], 3)
        b_z, b_r, b_h = tf.split(b[d, 3 * hidden :], 3) if b is not None else (0.0, 0.0, 0.0)

        def step(before: States, share: Tensor) -> States:
            (h,) = before
            from_z, from_r, from_h = tf.split(share, 3, -1)
            update = tf.sigmoid(from_z + tf.matmul(h, r_z, transpose_b=True) + b_z)
            reset = tf.sigmoid(from_r + tf.matmul(h, r_r, transpose_b=True) + b_r)
            if linear_before_reset:
                new = tf.tanh(from_h + reset * (tf.matmul(h, r_h, transpose_b=True) + b_h))
            else:
                new = tf.tanh(from_h + tf.matmul(reset * h, r_h, transpose_b=True) + b_h)
            return ((1 - update) * new + update * h,)

        return step

    return _run(x, w, b, [initial_h], sequence_lens, of_direction, (direction, layout, hidden))


@operator("RNN")
def rnn(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    sequence_lens: Tensor | None = None,
    initial_h: Tensor | None = None,
    hidden_size: int = 0,
    direction: str = "forward",
    layout: int = 0,
    activations: list[str] | None = None,
    clip: float = 0.0,
) -> tuple[Tensor, ...]:
    """ONNX RNN with tanh."""
    _refuse("RNN", activations, clip=clip)
    hidden = r.shape[2]

    def of_direction(d: int) -> Step:
        bias = _recurrent_bias(b, d, hidden)
        return lambda before, share: (tf.tanh(share + tf.matmul(before[0], r[d], transpose_b=True) + bias),)

    return _run(x, w, b, [initial_h], sequence_lens, of_direction, (direction, layout, hidden))
