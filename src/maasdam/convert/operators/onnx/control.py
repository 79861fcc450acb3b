"""If, Loop and Scan. What they decide, and how often a body runs, may be data: each framework says how far it follows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from maasdam.convert.operators.arrays import Arrays, Tensor
from maasdam.convert.operators.onnx.rearrange import positive
from maasdam.convert.operators.table import operator
from maasdam.errors import Unsupported

Body = Callable[..., list[Tensor]]


def _only(value: Any) -> Any:
    """The one number in a list of lists, however deep: [[False]] is no truth."""
    while isinstance(value, list):
        (value,) = value
    return value


@operator("If", stated=("condition",), on="lists")
def if_(xp: Arrays, condition: Any, then_branch: Body, else_branch: Body) -> tuple[Tensor, ...]:
    """ONNX If."""
    condition = _only(condition)
    known = xp.known(condition)
    if known is not None:
        return tuple(then_branch() if known else else_branch())
    found: tuple[Tensor, ...] = xp.control.either(condition, then_branch, else_branch)
    return found


@operator("Loop", shapes=("trips",), stated=("condition",), on="lists")
def loop(xp: Arrays, trips: Any, condition: Any, *carried: Tensor, body: Body) -> tuple[Tensor, ...]:
    """ONNX Loop: what is carried, then what each turn gives, stacked."""
    found: tuple[Tensor, ...] = xp.control.loop(_only(trips), _only(condition), carried, body)
    return found


@operator("Scan", since=9, on="lists")
def scan(
    xp: Arrays,
    *inputs: Tensor,
    body: Body,
    num_scan_inputs: int,
    scan_input_axes: list[int] | None = None,
    scan_input_directions: list[int] | None = None,
    scan_output_axes: list[int] | None = None,
    scan_output_directions: list[int] | None = None,
) -> tuple[Tensor, ...]:
    """ONNX Scan: the body over slices of its last inputs, with carried state."""
    states, scanned = inputs[:-num_scan_inputs], list(inputs[-num_scan_inputs:])
    axes, backwards = scan_input_axes or [0] * num_scan_inputs, scan_input_directions or [0] * num_scan_inputs
    scanned = [
        _first(xp, xp.flip(v, axis) if back else v, axis) for v, axis, back in zip(scanned, axes, backwards, strict=True)
    ]

    def turn(i: Any, going: Any, *values: Tensor) -> list[Tensor]:
        return [going, *body(*values, *(xp.control.slice_at(v, i) for v in scanned))]

    found = loop(xp, xp.dims(scanned[0])[0], None, *states, body=turn)
    outputs = found[len(states) :]
    to_axes, to_backwards = scan_output_axes or [0] * len(outputs), scan_output_directions or [0] * len(outputs)
    stacked = [
        _from_first(xp, xp.flip(v, 0) if back else v, axis)
        for v, axis, back in zip(outputs, to_axes, to_backwards, strict=True)
    ]
    return (*found[: len(states)], *stacked)


def _first(xp: Arrays, x: Tensor, axis: int) -> Tensor:
    axis = positive(xp, x, axis)
    return x if axis == 0 else xp.transpose(x, [axis, *(i for i in range(xp.rank(x)) if i != axis)])


def _from_first(xp: Arrays, x: Tensor, axis: int) -> Tensor:
    axis = positive(xp, x, axis)
    return x if axis == 0 else xp.transpose(x, [*range(1, axis + 1), 0, *range(axis + 1, xp.rank(x))])


@operator("Scan", on="lists")
def scan_of_batches(
    xp: Arrays, lengths: Tensor | None, *inputs: Tensor, body: Body, num_scan_inputs: int, directions: list[int] | None = None
) -> tuple[Tensor, ...]:
    """ONNX Scan before 9: each item of a batch by itself."""
    count = xp.dims(inputs[0])[0]
    if lengths is not None or not isinstance(count, int):
        raise Unsupported("a Scan before operator set 9 over sequences of their own lengths, or a batch that is not fixed")
    found = [
        scan(xp, *(v[i] for v in inputs), body=body, num_scan_inputs=num_scan_inputs, scan_input_directions=directions)
        for i in range(count)
    ]
    return tuple(xp.stack(each, 0) for each in zip(*found, strict=True))
