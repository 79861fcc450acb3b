"""If, Loop and Scan. What they decide on follows from the model or from shapes, and torch.export unrolls them; only an If may
decide on data: then the program holds both of its branches.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maasdam.convert.operators.interpreter import Body
from maasdam.convert.operators.pytorch.table import operator
from maasdam.errors import Unsupported


@operator("If", shapes=("condition",))
def if_(condition: Any, then_branch: Body, else_branch: Body) -> tuple[Tensor, ...]:
    """ONNX If."""
    condition = _only(condition)
    if isinstance(condition, Tensor):
        return _either(condition.reshape(()), then_branch, else_branch)
    if isinstance(condition, torch.SymBool):  # a length decides
        try:
            return _either(condition, then_branch, else_branch)
        except Unsupported:
            pass  # branches of other shapes: the program holds one, for the lengths that take it
    return tuple(then_branch() if condition else else_branch())


def _only(value: Any) -> Any:
    """The one number in a list of lists, however deep ([[False]] is no truth), or in a tensor that is the same in every run.

    A tensor where only the run can tell.
    """
    while isinstance(value, list):
        (value,) = value
    if isinstance(value, Tensor):
        known = getattr(value, "constant", None) if torch.compiler.is_compiling() else value
        return value if known is None else known.item()
    return value


def _either(condition: Tensor | torch.SymBool, *branches: Body) -> tuple[Tensor, ...]:
    """One of two branches, chosen when the program runs."""
    from torch._higher_order_ops.cond import cond_op  # torch.cond calls dynamo, which does not follow the walk of a graph

    cond: Any = cond_op

    if any(isinstance(v, list) for b in branches for v in b.outer.values()):
        raise Unsupported("an If of the model decides on data, and its branches read a sequence")
    names = sorted({n for b in branches for n, v in b.outer.items() if isinstance(v, Tensor)})
    given: dict[str, Tensor] = {}
    places: list[dict[str, str]] = []
    for branch in branches:  # the two may have constants of one name
        place = {}
        for name in names:
            if isinstance(value := branch.outer.get(name), Tensor):
                key = next((k for k, v in given.items() if v is value), f"{len(given)}")
                given[key], place[name] = value, key
        places.append(place)

    def traced(branch: Body, place: dict[str, str]) -> Any:
        def function(*tensors: Tensor) -> tuple[Tensor, ...]:
            known = dict(zip(given, tensors, strict=True))
            outer = {**branch.outer, **{name: known[key] for name, key in place.items()}}
            # a branch may not give back what it was given, nor a view of it
            body: Body = replace(branch, outer=outer)
            return tuple(v.clone(memory_format=torch.contiguous_format) for v in body())

        return function

    functions = [traced(b, p) for b, p in zip(branches, places, strict=True)]
    try:
        found: tuple[Tensor, ...] = tuple(cond(condition, *functions, tuple(given.values())))
    except Unsupported:
        raise
    except Exception as error:  # torch raises its own kinds where the branches give other shapes
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise Unsupported(
            f"an If of the model decides on data, and PyTorch can't hold both of its branches: {said[:300]}"
        ) from error
    return found


@operator("Loop", shapes=("trips", "condition"))
def loop(trips: Any, condition: Any, *carried: Tensor, body: Body) -> tuple[Tensor, ...]:
    """ONNX Loop: what is carried, then what each turn gives, stacked."""
    limit = _only(trips)
    goes_on = _only(condition)
    if isinstance(goes_on, Tensor):
        raise Unsupported(
            "a loop of the model goes on for as long as its data say, and torch.export has to know how long: convert to "
            "another format than pytorch"
        )
    if isinstance(limit, torch.SymInt):
        raise Unsupported(
            "a loop of the model takes as many turns as an input is long, and torch.export has to know how many: fix that "
            "length in the model, or convert to another format than pytorch"
        )
    values, turn = list(carried), 0
    scanned: list[list[Tensor]] | None = None
    while (limit is None or turn < limit) and (goes_on is None or goes_on):
        going, *found = body(np.array(turn, np.int64), np.array(True), *values)
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
