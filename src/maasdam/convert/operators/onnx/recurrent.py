"""LSTM, GRU and RNN with their default activations: by a framework's own layers, or one step after another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from maasdam.convert.operators.arrays import Arrays, Tensor
from maasdam.convert.operators.onnx.rearrange import reverse_sequence
from maasdam.convert.operators.table import operator
from maasdam.errors import Unsupported

_DEFAULTS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}
States = tuple[Tensor, ...]
Step = Callable[[States, Tensor], States]
"""The states after one step, from those before it and the input's share of the gates, [batch, gates * hidden]."""


@dataclass(frozen=True, slots=True)
class Layer:
    """What the three kinds have in common, as ONNX lays it out."""

    kind: str
    x: Tensor
    w: Tensor
    r: Tensor
    b: Tensor | None
    lengths: Tensor | None
    states: tuple[Tensor | None, ...]
    direction: str
    layout: int
    has_own: bool = True
    """Does a framework's own layer compute the same?"""


def _refuse(kind: str, activations: list[str] | None, **others: Any) -> None:
    default = _DEFAULTS[kind]
    if activations and activations not in (default, default * 2):
        raise Unsupported(f"{kind} with activations {', '.join(activations)}")
    if given := [name for name, value in others.items() if value]:
        raise Unsupported(f"{kind} with {', '.join(given)}")


def _run(xp: Arrays, layer: Layer, step: Callable[[Tensor, Tensor | None, int], Step]) -> States:
    """All directions. `step` is made of a direction's hidden weights and hidden bias, and its number."""
    x, count = xp.transpose(layer.x, [1, 0, 2]) if layer.layout else layer.x, layer.w.shape[0]
    begin = [xp.dims(x)[1], xp.dims(layer.r)[2]]
    states = [_start(xp, state, layer, [count, *begin]) for state in layer.states]
    own = layer.has_own and layer.lengths is None
    found = xp.recurrent.layer(layer.kind, x, layer.w, layer.r, layer.b, states, layer.direction) if own else None
    y, *ends = found if found is not None else _by_steps(xp, layer, x, states, step)
    if layer.layout:
        return (xp.transpose(y, [2, 0, 1, 3]), *(xp.transpose(s, [1, 0, 2]) for s in ends))
    return (y, *ends)


def _start(xp: Arrays, state: Tensor | None, layer: Layer, sizes: list[Any]) -> Tensor:
    if state is None:
        return xp.full(sizes, 0, layer.x.dtype)
    return xp.transpose(state, [1, 0, 2]) if layer.layout else state


def _by_steps(
    xp: Arrays, layer: Layer, x: Tensor, states: list[Tensor], step: Callable[[Tensor, Tensor | None, int], Step]
) -> States:
    """[time, directions, batch, hidden] and the last states. A padded step gives zero and leaves the states what they were."""
    lengths, outputs, ends = layer.lengths, [], []
    steps = xp.unsqueeze(xp.arange(xp.dims(x)[0]), 1)
    masks = [] if lengths is None else [(steps < xp.cast(lengths, xp.int64))[:, :, None]]
    for d in range(layer.w.shape[0]):
        is_backward = layer.direction == "reverse" or d == 1
        of_input, of_hidden = (None, None) if layer.b is None else xp.split(layer.b[d], [layer.w.shape[1]] * 2, 0)
        shares = xp.linear(_turned(xp, x, lengths) if is_backward else x, layer.w[d], of_input)
        own = step(layer.r[d], of_hidden, d)

        def turn(before: States, now: tuple[Tensor, ...], own: Step = own) -> States:
            share, *is_real = now
            after = own(before, share)
            return tuple(xp.where(is_real[0], *pair) for pair in zip(after, before, strict=True)) if is_real else after

        end, y = xp.recurrent.walked(turn, tuple(s[d] for s in states), (shares, *masks))
        y = xp.where(masks[0], y, xp.zeros_like(y)) if masks else y
        outputs.append(_turned(xp, y, lengths) if is_backward else y)
        ends.append(end)
    return (xp.stack(outputs, 1), *(xp.stack(each, 0) for each in zip(*ends, strict=True)))


def _turned(xp: Arrays, x: Tensor, lengths: Tensor | None) -> Tensor:
    """Backwards in time; each item within its own length."""
    return xp.flip(x, 0) if lengths is None else reverse_sequence(xp, x, lengths)


@operator("LSTM", weights=(1, 2, 3))
def lstm(
    xp: Arrays,
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
) -> States:
    """ONNX LSTM: gates in the order input, output, forget, cell; peepholes (input, output, forget) look at the cell."""
    _refuse("LSTM", activations, input_forget=input_forget, clip=clip)
    each = [r.shape[2]] * 4

    def of_direction(weight: Tensor, bias: Tensor | None, d: int) -> Step:
        peep_i, peep_o, peep_f = xp.recurrent.pieces(p[d], each[:3]) if p is not None else (0.0, 0.0, 0.0)

        def step(before: States, share: Tensor) -> States:
            h, c = before
            i, o, f, new = xp.split(share + xp.linear(h, weight, bias), each, -1)
            i, f = xp.math.sigmoid(i + peep_i * c), xp.math.sigmoid(f + peep_f * c)
            c = f * c + i * xp.math.tanh(new)
            return xp.math.sigmoid(o + peep_o * c) * xp.math.tanh(c), c

        return step

    layer = Layer("LSTM", x, w, r, b, sequence_lens, (initial_h, initial_c), direction, layout, has_own=p is None)
    return _run(xp, layer, of_direction)


@operator("GRU", weights=(1, 2, 3))
def gru(
    xp: Arrays,
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
) -> States:
    """ONNX GRU: gates in the order update, reset, hidden; the reset applies before or after the product."""
    _refuse("GRU", activations, clip=clip)
    each = [r.shape[2]] * 3

    def of_direction(weight: Tensor, bias: Tensor | None, d: int) -> Step:
        r_z, r_r, r_h = xp.recurrent.pieces(weight, each)
        b_z, b_r, b_h = xp.recurrent.pieces(bias, each) if bias is not None else (None, None, None)

        def step(before: States, share: Tensor) -> States:
            (h,) = before
            z, reset, new = xp.split(share, each, -1)
            update = xp.math.sigmoid(z + xp.linear(h, r_z, b_z))
            reset = xp.math.sigmoid(reset + xp.linear(h, r_r, b_r))
            hidden = reset * xp.linear(h, r_h, b_h) if linear_before_reset else xp.linear(reset * h, r_h, b_h)
            return ((1 - update) * xp.math.tanh(new + hidden) + update * h,)

        return step

    layer = Layer("GRU", x, w, r, b, sequence_lens, (initial_h,), direction, layout, has_own=bool(linear_before_reset))
    return _run(xp, layer, of_direction)


@operator("RNN", weights=(1, 2, 3))
def rnn(
    xp: Arrays,
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
) -> States:
    """ONNX RNN with tanh."""
    _refuse("RNN", activations, clip=clip)

    def of_direction(weight: Tensor, bias: Tensor | None, d: int) -> Step:
        return lambda before, share: (xp.math.tanh(share + xp.linear(before[0], weight, bias)),)

    return _run(xp, Layer("RNN", x, w, r, b, sequence_lens, (initial_h,), direction, layout), of_direction)
