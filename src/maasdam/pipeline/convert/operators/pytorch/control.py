"""If, Loop and Scan, where what they decide follows from the model or from shapes: torch.export unrolls them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from maasdam.errors import Unsupported
from maasdam.pipeline.convert.operators.pytorch.table import operator

Body = Callable[..., list[Tensor]]


@operator("If", shapes=("condition",))
def if_(condition: Any, then_branch: Body, else_branch: Body) -> tuple[Tensor, ...]:
    """ONNX If."""
    chosen = condition[0] if isinstance(condition, list) else condition
    return tuple(then_branch() if chosen else else_branch())


@operator("Loop", shapes=("trips", "condition"))
def loop(trips: Any, condition: Any, *carried: Tensor, body: Body) -> tuple[Tensor, ...]:
    """ONNX Loop: what is carried, then what each turn gives, stacked."""
    limit = trips[0] if isinstance(trips, list) else trips
    goes_on = condition[0] if isinstance(condition, list) else condition
    if isinstance(limit, torch.SymInt):
        raise Unsupported(
            "a loop of the model takes as many turns as an input is long, and torch.export has to know how many: fix that "
            "length in the model, or convert to another format than pytorch"
        )
    values, turn = list(carried), 0
    scanned: list[list[Tensor]] | None = None
    while (limit is None or turn < limit) and (goes_on is None or goes_on):
        going, *found = body(torch.tensor(turn), torch.tensor(True), *values)
        values = found[: len(carried)]
        rest = found[len(carried) :]
        scanned = [[] for _ in rest] if scanned is None else scanned
        for each, value in zip(scanned, rest, strict=True):
            each.append(value)
        goes_on, turn = bool(going), turn + 1
    return (*values, *(torch.stack(each) for each in scanned or []))


@operator("Scan", since=9)
def scan(
    *inputs: Tensor,
    body: Body,
    num_scan_inputs: int,
    scan_input_axes: list[int] | None = None,
    scan_input_directions: list[int] | None = None,
    scan_output_axes: list[int] | None = None,
    scan_output_directions: list[int] | None = None,
) -> tuple[Tensor, ...]:
    """ONNX Scan: the body over slices of its last inputs, with carried state."""
    states, scanned = list(inputs[:-num_scan_inputs]), inputs[-num_scan_inputs:]
    axes = scan_input_axes or [0] * len(scanned)
    turns = [
        tensor.flip(axis).unbind(axis) if backwards else tensor.unbind(axis)
        for tensor, axis, backwards in zip(scanned, axes, scan_input_directions or [0] * len(scanned), strict=True)
    ]
    given: list[list[Tensor]] = []
    for slices in zip(*turns, strict=True):
        found = body(*states, *slices)
        states = found[: len(states)]
        given.append(found[len(states) :])
    outputs = [list(column) for column in zip(*given, strict=True)]
    to_axes, to_directions = scan_output_axes or [0] * len(outputs), scan_output_directions or [0] * len(outputs)
    stacked = [
        torch.stack(column[::-1] if backwards else column, axis)
        for column, axis, backwards in zip(outputs, to_axes, to_directions, strict=True)
    ]
    return (*states, *stacked)


@operator("Scan")
def scan_of_batches(
    lengths: Tensor | None, *inputs: Tensor, body: Body, num_scan_inputs: int, directions: list[int] | None = None
) -> tuple[Tensor, ...]:
    """ONNX Scan before 9: each item of a batch by itself."""
    if lengths is not None:
        raise Unsupported("a Scan before operator set 9 over sequences of their own lengths")
    found = [
        scan(*items, body=body, num_scan_inputs=num_scan_inputs, scan_input_directions=directions)
        for items in zip(*(v.unbind(0) for v in inputs), strict=True)
    ]
    return tuple(torch.stack(each) for each in zip(*found, strict=True))
