"""LSTM, GRU and RNN with their default activations: by torch's own layers, and over a sequence of open length by its scan.

torch.export unrolls its own layers, step by step; a scan stays one operator, whatever the length.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from maasdam.convert.operators.pytorch.table import operator
from maasdam.errors import Unsupported

_DEFAULTS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}


def _refuse(kind: str, activations: list[str] | None, lengths: Tensor | None, **others: Any) -> None:
    default = _DEFAULTS[kind]
    if activations and activations not in (default, default * 2):
        raise Unsupported(f"{kind} with activations {', '.join(activations)}")
    if lengths is not None:
        raise Unsupported(f"{kind} with sequence_lens; leave them out and mask the result")
    if given := [name for name, value in others.items() if value]:
        raise Unsupported(f"{kind} with {', '.join(given)}")


def _regate(weight: Tensor, order: list[int]) -> Tensor:
    """(directions, gates * hidden, …) with its gates in torch's order."""
    parts = weight.chunk(len(order), 1)
    return torch.cat([parts[i] for i in order], 1)


def _weights(w: Tensor, r: Tensor, b: Tensor | None, order: list[int]) -> list[Tensor]:
    """torch's flat list: input weight, hidden weight, input bias, hidden bias, for each direction."""
    w, r = _regate(w, order), _regate(r, order)
    if b is None:
        b = torch.zeros(w.shape[0], 2 * w.shape[1], dtype=w.dtype)
    input_bias, hidden_bias = b.chunk(2, 1)
    input_bias, hidden_bias = _regate(input_bias, order), _regate(hidden_bias, order)
    return [part for d in range(w.shape[0]) for part in (w[d], r[d], input_bias[d], hidden_bias[d])]


def _run(call: Any, x: Tensor, directions: int, direction: str, layout: int) -> tuple[Tensor, ...]:
    """Time first, backwards where asked; back as ONNX lays it out: (time, directions, batch, hidden)."""
    x = x.transpose(0, 1) if layout else x
    x = x.flip(0) if direction == "reverse" else x
    y, *states = call(x)
    y = y.flip(0) if direction == "reverse" else y
    y = y.reshape([y.shape[0], y.shape[1], directions, y.shape[2] // directions]).transpose(1, 2)
    if layout:
        return (y.permute(2, 0, 1, 3), *[s.transpose(0, 1) for s in states])
    return (y, *states)


def _start(state: Tensor | None, x: Tensor, directions: int, hidden: int, layout: int) -> Tensor:
    if state is not None:
        return state.transpose(0, 1).contiguous() if layout else state
    return torch.zeros(directions, x.shape[0] if layout else x.shape[1], hidden, dtype=x.dtype)


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
    """ONNX LSTM: its gates are input, output, forget, cell; torch's input, forget, cell, output."""
    _refuse("LSTM", activations, sequence_lens, peepholes=p is not None, input_forget=input_forget, clip=clip)
    directions, hidden = w.shape[0], r.shape[2]
    states = [_start(s, x, directions, hidden, layout) for s in (initial_h, initial_c)]
    if _is_open(x, layout):
        return _by_steps(_lstm_step, x, w, r, b, states, direction, layout)
    flat = _weights(w, r, b, [0, 2, 3, 1])
    call = lambda t: torch.lstm(t, states, flat, True, 1, 0.0, False, directions == 2, False)  # noqa: E731
    return _run(call, x, directions, direction, layout)


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
    """ONNX GRU: its gates are update, reset, hidden; torch's reset, update, hidden, applied before the reset."""
    _refuse("GRU", activations, sequence_lens, clip=clip)
    directions, hidden = w.shape[0], r.shape[2]
    state = _start(initial_h, x, directions, hidden, layout)
    if not linear_before_reset or _is_open(x, layout):
        return _by_steps(_gru_step if linear_before_reset else _early_gru_step, x, w, r, b, [state], direction, layout)
    flat = _weights(w, r, b, [1, 0, 2])
    call = lambda t: torch.gru(t, state, flat, True, 1, 0.0, False, directions == 2, False)  # noqa: E731
    return _run(call, x, directions, direction, layout)


State = tuple[Tensor, ...]
Step = Callable[[State, Tensor], tuple[State, Tensor]]
"""(states, what the input gives) -> (states, answer)."""


def _by_steps(
    step: Callable[[Tensor, Tensor], Step], x: Tensor, w: Tensor, r: Tensor, b: Tensor | None, states: list[Tensor],
    direction: str, layout: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    """One step after another; `step` is made of a direction's hidden weights and hidden bias."""
    x = x.transpose(0, 1) if layout else x
    outputs, lasts = [], []
    for d in range(w.shape[0]):
        is_backward = direction == "reverse" or d == 1
        bias = b[d] if b is not None else torch.zeros(2 * w.shape[1], dtype=x.dtype)
        from_input, from_hidden = bias.chunk(2)
        given = torch.nn.functional.linear(x.flip(0) if is_backward else x, w[d], from_input)
        last, y = _walked(step(r[d], from_hidden), tuple(s[d].clone() for s in states), given)
        outputs.append(y.flip(0) if is_backward else y)
        lasts.append(last)
    y = torch.stack(outputs, 1)
    finals = [torch.stack(parts) for parts in zip(*lasts, strict=True)]
    return (y.permute(2, 0, 1, 3), *[f.transpose(0, 1) for f in finals]) if layout else (y, *finals)


def _walked(step: Step, states: State, given: Tensor) -> tuple[State, Tensor]:
    if not isinstance(given.shape[0], int):
        from torch._higher_order_ops.scan import scan  # public in nothing but name: torch.export writes and reads it

        found: tuple[State, Tensor] = scan(step, states, given, dim=0)
        return found
    steps = []
    for each in given.unbind(0):
        states, y = step(states, each)
        steps.append(y)
    return states, torch.stack(steps)


def _lstm_step(r: Tensor, bias: Tensor) -> Step:
    def step(states: State, given: Tensor) -> tuple[State, Tensor]:
        h, c = states
        i, o, f, new = (given + torch.nn.functional.linear(h, r, bias)).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(new)
        h = torch.sigmoid(o) * torch.tanh(c)
        return (h, c), h.clone()

    return step


def _gru_step(r: Tensor, bias: Tensor) -> Step:
    """The reset gate after the product, as torch's layer does it."""

    def step(states: State, given: Tensor) -> tuple[State, Tensor]:
        (h,) = states
        (g_z, g_r, g_h), (s_z, s_r, s_h) = given.chunk(3, -1), torch.nn.functional.linear(h, r, bias).chunk(3, -1)
        update = torch.sigmoid(g_z + s_z)
        h = (1 - update) * torch.tanh(g_h + torch.sigmoid(g_r + s_r) * s_h) + update * h
        return (h,), h.clone()

    return step


def _early_gru_step(r: Tensor, bias: Tensor) -> Step:
    """The reset gate before the product."""
    (r_z, r_r, r_h), (b_z, b_r, b_h) = r.chunk(3), bias.chunk(3)

    def step(states: State, given: Tensor) -> tuple[State, Tensor]:
        (h,) = states
        g_z, g_r, g_h = given.chunk(3, -1)
        update = torch.sigmoid(g_z + h @ r_z.t() + b_z)
        reset = torch.sigmoid(g_r + h @ r_r.t() + b_r)
        h = (1 - update) * torch.tanh(g_h + (reset * h) @ r_h.t() + b_h) + update * h
        return (h,), h.clone()

    return step


def _rnn_step(r: Tensor, bias: Tensor) -> Step:
    def step(states: State, given: Tensor) -> tuple[State, Tensor]:
        h = torch.tanh(given + torch.nn.functional.linear(states[0], r, bias))
        return (h,), h.clone()

    return step


def _is_open(x: Tensor, layout: int) -> bool:
    return not isinstance(x.shape[layout], int)


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
    _refuse("RNN", activations, sequence_lens, clip=clip)
    directions, hidden = w.shape[0], r.shape[2]
    state = _start(initial_h, x, directions, hidden, layout)
    if _is_open(x, layout):
        return _by_steps(_rnn_step, x, w, r, b, [state], direction, layout)
    flat = _weights(w, r, b, [0])
    call = lambda t: torch.rnn_tanh(t, state, flat, True, 1, 0.0, False, directions == 2, False)  # noqa: E731
    return _run(call, x, directions, direction, layout)
