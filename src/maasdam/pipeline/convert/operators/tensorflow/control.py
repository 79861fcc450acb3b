"""If, Loop and Scan. What a condition decides may be data; how often a body runs has to follow from the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf
from tensorflow import Tensor

from maasdam.errors import Unsupported
from maasdam.pipeline.convert.operators.tensorflow.table import operator

Body = Callable[..., list[Tensor]]


@operator("If")
def if_(condition: Tensor, then_branch: Body, else_branch: Body) -> tuple[Tensor, ...]:
    """ONNX If."""
    known = tf.get_static_value(condition)
    if known is not None:
        return tuple(then_branch() if known.all() else else_branch())
    return tuple(tf.cond(tf.reshape(condition, []), lambda: tuple(then_branch()), lambda: tuple(else_branch())))


@operator("Loop", shapes=("trips", "condition"))
def loop(trips: Any, condition: Any, *carried: Tensor, body: Body) -> tuple[Tensor, ...]:
    """ONNX Loop: what is carried, then what each turn gives, stacked."""
    limit = trips[0] if isinstance(trips, list) else trips
    goes_on = condition[0] if isinstance(condition, list) else condition
    if not isinstance(limit, int | None):
        raise Unsupported("a Loop whose number of turns depends on the data")
    values, turn = list(carried), 0
    scanned: list[list[Tensor]] | None = None
    while (limit is None or turn < limit) and (goes_on is None or goes_on):
        going, *found = body(tf.constant(turn, tf.int64), tf.constant(True), *values)
        values, rest = found[: len(carried)], found[len(carried) :]
        scanned = [[] for _ in rest] if scanned is None else scanned
        for each, value in zip(scanned, rest, strict=True):
            each.append(value)
        known = tf.get_static_value(going)
        if known is None:
            raise Unsupported("a Loop whose end depends on the data")
        goes_on, turn = bool(known), turn + 1
    return (*values, *(tf.stack(each) for each in scanned or []))


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
    if any(tensor.shape[axis] is None for tensor, axis in zip(scanned, axes, strict=True)):
        raise Unsupported("a Scan over an axis whose size is not fixed")
    turns = [
        tf.unstack(tensor, axis=axis)[:: -1 if backwards else 1]
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
        tf.stack(column[::-1] if backwards else column, axis)
        for column, axis, backwards in zip(outputs, to_axes, to_directions, strict=True)
    ]
    return (*states, *stacked)
