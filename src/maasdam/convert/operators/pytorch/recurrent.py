"""Kernels of recurrent layers: torch's own, and over a sequence of open length its scan.

torch.export unrolls its own layers, step by step; a scan stays one operator, whatever the length.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_LAYERS: dict[str, tuple[Callable[..., Any], list[int]]] = {
    "LSTM": (torch.lstm, [0, 2, 3, 1]),
    "GRU": (torch.gru, [1, 0, 2]),
    "RNN": (torch.rnn_tanh, [0]),
}
"""With ONNX's places of its gates: torch's are input, forget, cell, output; and reset, update, hidden."""


def layer(
    kind: str, x: Tensor, w: Tensor, r: Tensor, b: Tensor | None, states: list[Tensor], direction: str
) -> tuple[Tensor, ...] | None:
    """(time, directions, batch, hidden) and the last states. None for a sequence of open length."""
    if not isinstance(x.shape[0], int):
        return None
    (function, order), directions = _LAYERS[kind], w.shape[0]
    begin, flat = states if kind == "LSTM" else states[0], _weights(w, r, b, order)
    is_backward = direction == "reverse"
    y, *ends = function(x.flip(0) if is_backward else x, begin, flat, True, 1, 0.0, False, directions == 2, False)
    y = y.flip(0) if is_backward else y
    return (y.reshape([y.shape[0], y.shape[1], directions, y.shape[2] // directions]).transpose(1, 2), *ends)


def _regate(weight: Tensor, order: list[int]) -> Tensor:
    """(directions, gates * hidden, …) with its gates in torch's order."""
    parts = weight.chunk(len(order), 1)
    return torch.cat([parts[i] for i in order], 1)


def _weights(w: Tensor, r: Tensor, b: Tensor | None, order: list[int]) -> list[Tensor]:
    """torch's flat list: input weight, hidden weight, input bias, hidden bias, for each direction."""
    biases = (torch.zeros(w.shape[0], 2 * w.shape[1], dtype=w.dtype) if b is None else b).chunk(2, 1)
    gated = [_regate(v, order) for v in (w, r, *biases)]
    return [part[d] for d in range(w.shape[0]) for part in gated]


def walked(
    turn: Callable[..., tuple[Tensor, ...]], states: tuple[Tensor, ...], seen: tuple[Tensor, ...]
) -> tuple[tuple[Tensor, ...], Tensor]:
    """The last states, and the first of them after every step."""
    if not isinstance(seen[0].shape[0], int):
        from torch._higher_order_ops.scan import scan  # public in nothing but name: torch.export writes and reads it

        def step(before: tuple[Tensor, ...], now: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], Tensor]:
            after = turn(before, now)
            return after, after[0].clone()

        found: tuple[tuple[Tensor, ...], Tensor] = scan(step, tuple(s.clone() for s in states), seen, dim=0)
        return found
    steps = []
    for now in zip(*(each.unbind(0) for each in seen), strict=True):
        states = turn(states, now)
        steps.append(states[0])
    return states, torch.stack(steps)


def pieces(x: Tensor, sizes: list[int]) -> list[Tensor]:
    """Of the first axis; copies, as a scan takes no two views of one tensor."""
    return [part.clone() for part in x.split(sizes)]
