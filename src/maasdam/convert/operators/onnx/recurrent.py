"""LSTM, GRU and RNN with their default activations: by a framework's own layers, or one step after another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypedDict, Unpack

from maasdam.convert.operators.arrays import Arrays, Tensor
from maasdam.convert.operators.onnx.rearrange import reverse_sequence
from maasdam.convert.operators.table import operator
from maasdam.errors import Unsupported

_DEFAULTS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}
States = tuple[Tensor, ...]
Step = Callable[[States, Tensor], States]
"""The states after one step, from those before it and the input's share of the gates, [batch, gates * hidden]."""
Steps = Callable[[Tensor, Tensor | None, int], Step]
"""Made of a direction's hidden weights and hidden bias, and its number."""


@dataclass(frozen=True, slots=True)
class RecurrentInputs:
    """What the three kinds take, in ONNX's order."""

    x: Tensor
    w: Tensor
    r: Tensor
    b: Tensor | None = None
    lengths: Tensor | None = None
    h: Tensor | None = None
    c: Tensor | None = None
    p: Tensor | None = None


class RecurrentAttributes(TypedDict, total=False):
    """What they have in common, under ONNX's names."""

    hidden_size: int
    direction: str
    layout: int
    activations: list[str]
    input_forget: int
    clip: float


def _run(
    xp: Arrays, kind: str, inputs: RecurrentInputs, given: RecurrentAttributes, steps: Steps, *, has_own: bool = True
) -> States:
    """All directions. `has_own`: a framework's own layer computes the same."""
    default, activations = _DEFAULTS[kind], given.get("activations")
    if activations and activations not in (default, default * 2):
        raise Unsupported(f"{kind} with activations {', '.join(activations)}")
    if refused := [name for name in ("input_forget", "clip") if given.get(name)]:
        raise Unsupported(f"{kind} with {', '.join(refused)}")
    direction, is_batch_first = given.get("direction", "forward"), given.get("layout", 0)
    x = xp.transpose(inputs.x, [1, 0, 2]) if is_batch_first else inputs.x
    sizes = [inputs.w.shape[0], xp.dims(x)[1], xp.dims(inputs.r)[2]]
    states = [
        xp.full(sizes, 0, x.dtype) if state is None else xp.transpose(state, [1, 0, 2]) if is_batch_first else state
        for state in ((inputs.h, inputs.c) if kind == "LSTM" else (inputs.h,))
    ]
    own = has_own and inputs.lengths is None
    found = xp.recurrent.layer(kind, x, inputs.w, inputs.r, inputs.b, states, direction) if own else None
    y, *ends = found if found is not None else _by_steps(xp, inputs, direction, x, states, steps)
    if is_batch_first:
        return (xp.transpose(y, [2, 0, 1, 3]), *(xp.transpose(s, [1, 0, 2]) for s in ends))
    return (y, *ends)


def _by_steps(xp: Arrays, inputs: RecurrentInputs, direction: str, x: Tensor, states: list[Tensor], steps: Steps) -> States:
    """[time, directions, batch, hidden] and the last states. A padded step gives zero and leaves the states what they were."""
    lengths, outputs, ends = inputs.lengths, [], []
    times = xp.unsqueeze(xp.arange(xp.dims(x)[0]), 1)
    masks = [] if lengths is None else [(times < xp.cast(lengths, xp.int64))[:, :, None]]
    for d in range(inputs.w.shape[0]):
        is_backward = direction == "reverse" or d == 1
        of_input, of_hidden = (None, None) if inputs.b is None else xp.split(inputs.b[d], [inputs.w.shape[1]] * 2, 0)
        shares = xp.linear(_turned(xp, x, lengths) if is_backward else x, inputs.w[d], of_input)
        own = steps(inputs.r[d], of_hidden, d)

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
def lstm(xp: Arrays, *inputs: Tensor | None, **given: Unpack[RecurrentAttributes]) -> States:
    """ONNX LSTM: gates in the order input, output, forget, cell; peepholes (input, output, forget) look at the cell."""
    return long_short(xp, RecurrentInputs(*inputs), given)


def long_short(
    xp: Arrays, named: RecurrentInputs, given: RecurrentAttributes, seen: Callable[[Tensor], Tensor] | None = None
) -> States:
    """`lstm`; `seen`: what the gates see of the hidden state, where that is not the state itself."""
    each = [named.r.shape[2]] * 4

    def of_direction(weight: Tensor, bias: Tensor | None, d: int) -> Step:
        peep_i, peep_o, peep_f = xp.recurrent.pieces(named.p[d], each[:3]) if named.p is not None else (0.0, 0.0, 0.0)

        def step(before: States, share: Tensor) -> States:
            h, c = before
            i, o, f, new = xp.split(share + xp.linear(h if seen is None else seen(h), weight, bias), each, -1)
            i, f = xp.math.sigmoid(i + peep_i * c), xp.math.sigmoid(f + peep_f * c)
            c = f * c + i * xp.math.tanh(new)
            return xp.math.sigmoid(o + peep_o * c) * xp.math.tanh(c), c

        return step

    return _run(xp, "LSTM", named, given, of_direction, has_own=named.p is None and seen is None)


@operator("GRU", weights=(1, 2, 3))
def gru(xp: Arrays, *inputs: Tensor | None, linear_before_reset: int = 0, **given: Unpack[RecurrentAttributes]) -> States:
    """ONNX GRU: gates in the order update, reset, hidden; the reset applies before or after the product."""
    named = RecurrentInputs(*inputs)
    each = [named.r.shape[2]] * 3

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

    return _run(xp, "GRU", named, given, of_direction, has_own=bool(linear_before_reset))


@operator("RNN", weights=(1, 2, 3))
def rnn(xp: Arrays, *inputs: Tensor | None, **given: Unpack[RecurrentAttributes]) -> States:
    """ONNX RNN with tanh."""

    def of_direction(weight: Tensor, bias: Tensor | None, d: int) -> Step:
        return lambda before, share: (xp.math.tanh(share + xp.linear(before[0], weight, bias)),)

    return _run(xp, "RNN", RecurrentInputs(*inputs), given, of_direction)
