"""If, Loop and Scan. What they decide, and how often a body runs, may be data: what follows from the model is unrolled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf
from tensorflow import Tensor

from maasdam.convert.operators.tensorflow.sizes import dims, scalar
from maasdam.convert.operators.tensorflow.table import operator
from maasdam.errors import Unsupported

Body = Callable[..., list[Tensor]]
MOST = 256
"""More turns than this are a loop of the graph, not unrolled."""


@operator("If")
def if_(condition: Tensor, then_branch: Body, else_branch: Body) -> tuple[Tensor, ...]:
    """ONNX If."""
    known = tf.get_static_value(condition)
    if known is not None:
        return tuple(then_branch() if known.all() else else_branch())
    return tuple(tf.cond(tf.reshape(condition, []), lambda: tuple(then_branch()), lambda: tuple(else_branch())))


@operator("Loop", shapes=("trips",))
def loop(trips: Any, condition: Tensor | None, *carried: Tensor, body: Body) -> tuple[Tensor, ...]:
    """ONNX Loop: what is carried, then what each turn gives, stacked."""
    limit = trips[0] if isinstance(trips, list) else trips
    start = None if condition is None else tf.get_static_value(condition)
    if (condition is not None and start is None) or not isinstance(limit, int | None) or (limit is not None and limit > MOST):
        return _running(limit, condition, carried, body)
    unrolled = _unrolled(limit, start is None or bool(start.all()), carried, body)
    return _running(limit, condition, carried, body) if unrolled is None else unrolled


def _unrolled(limit: int | None, goes_on: bool, carried: tuple[Tensor, ...], body: Body) -> tuple[Tensor, ...] | None:
    """None where the end depends on the data, or no turn gives what each one would."""
    values, turn = list(carried), 0
    scanned: list[list[Tensor]] | None = None
    while (limit is None or turn < limit) and goes_on:
        going, *found = body(tf.constant(turn, tf.int64), tf.constant(True), *values)
        values, rest = found[: len(carried)], found[len(carried) :]
        scanned = [[] for _ in rest] if scanned is None else scanned
        for each, value in zip(scanned, rest, strict=True):
            each.append(value)
        known = tf.get_static_value(going)
        if known is None or turn == MOST:
            return None
        goes_on, turn = bool(known.all()), turn + 1
    return None if scanned is None else (*values, *(tf.stack(each) for each in scanned))


def _running(limit: Any, condition: Tensor | None, carried: tuple[Tensor, ...], body: Body) -> tuple[Tensor, ...]:
    """As a loop of the graph. What is carried may change its sizes, never its number of axes."""
    if any(isinstance(v, list | None) for v in carried):
        raise Unsupported("a Loop over a sequence that runs until the data says so")
    count = len(carried)
    most = scalar(2**62 if limit is None else limit)
    going = tf.constant(True) if condition is None else tf.reshape(condition, [])
    values = [tf.convert_to_tensor(v) for v in carried]
    specs = [tf.TensorSpec(v.shape, v.dtype) for v in values]
    while True:  # until the sizes that a turn changes are found: each round opens an axis
        found = _traced(body, specs)
        opened = [_common(a, b) for a, b in zip(specs, found[1 : count + 1], strict=True)]
        if opened == specs:
            break
        specs = opened
    rest = found[count + 1 :]
    arrays = [tf.TensorArray(s.dtype, 0, True, infer_shape=False, element_shape=s.shape) for s in rest]

    def turn(i: Tensor, going: Tensor, values: list[Tensor], arrays: list[Any]) -> tuple[Any, ...]:
        going, *after = body(i, tf.constant(True), *values)
        written = [a.write(tf.cast(i, tf.int32), v) for a, v in zip(arrays, after[count:], strict=True)]
        return i + 1, tf.reshape(going, []), after[:count], written

    shapes = (tf.TensorShape([]), tf.TensorShape([]), [s.shape for s in specs], [tf.TensorShape(None) for _ in arrays])
    begin = (tf.zeros([], tf.int64), going, values, arrays)
    done = tf.while_loop(lambda i, going, *_: (i < most) & going, turn, begin, shapes)
    return (*done[2], *(_stacked(array, spec) for array, spec in zip(done[3], rest, strict=True)))


def _traced(body: Body, specs: list[tf.TensorSpec]) -> list[tf.TensorSpec]:
    """What a turn gives, from values like these."""
    function = tf.function(lambda i, going, *values: body(i, going, *values), autograph=False)
    concrete = function.get_concrete_function(tf.TensorSpec([], tf.int64), tf.TensorSpec([], tf.bool), *specs)
    return [tf.TensorSpec(v.shape, v.dtype) for v in concrete.outputs]


def _common(a: tf.TensorSpec, b: tf.TensorSpec) -> tf.TensorSpec:
    if a.dtype != b.dtype or a.shape.rank is None or a.shape.rank != b.shape.rank:
        raise Unsupported("a Loop that changes the type or the number of axes of what it carries")
    return tf.TensorSpec([m if m == n else None for m, n in zip(a.shape, b.shape, strict=True)], a.dtype)


def _stacked(array: Any, spec: tf.TensorSpec) -> Tensor:
    out = array.stack()
    out.set_shape([None, *spec.shape])
    return out


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
    states, scanned = inputs[:-num_scan_inputs], list(inputs[-num_scan_inputs:])
    axes, backwards = scan_input_axes or [0] * num_scan_inputs, scan_input_directions or [0] * num_scan_inputs
    scanned = [
        _first(tf.reverse(v, [axis]) if back else v, axis) for v, axis, back in zip(scanned, axes, backwards, strict=True)
    ]

    def turn(i: Tensor, going: Tensor, *values: Tensor) -> list[Tensor]:
        return [going, *body(*values, *(v[i] for v in scanned))]

    found = loop(dims(scanned[0])[0], None, *states, body=turn)
    outputs = found[len(states) :]
    to_axes, to_backwards = scan_output_axes or [0] * len(outputs), scan_output_directions or [0] * len(outputs)
    stacked = [
        _from_first(tf.reverse(v, [0]) if back else v, axis)
        for v, axis, back in zip(outputs, to_axes, to_backwards, strict=True)
    ]
    return (*found[: len(states)], *stacked)


def _first(x: Tensor, axis: int) -> Tensor:
    axis = axis % x.shape.rank
    return x if axis == 0 else tf.transpose(x, [axis, *(i for i in range(x.shape.rank) if i != axis)])


def _from_first(x: Tensor, axis: int) -> Tensor:
    axis = axis % x.shape.rank
    return x if axis == 0 else tf.transpose(x, [*range(1, axis + 1), 0, *range(axis + 1, x.shape.rank)])


@operator("Scan")
def scan_of_batches(
    lengths: Tensor | None, *inputs: Tensor, body: Body, num_scan_inputs: int, directions: list[int] | None = None
) -> tuple[Tensor, ...]:
    """ONNX Scan before 9: each item of a batch by itself."""
    count = inputs[0].shape[0]
    if lengths is not None or count is None:
        raise Unsupported("a Scan before operator set 9 over sequences of their own lengths, or a batch that is not fixed")
    found = [
        scan(*(v[i] for v in inputs), body=body, num_scan_inputs=num_scan_inputs, scan_input_directions=directions)
        for i in range(count)
    ]
    return tuple(tf.stack(each) for each in zip(*found, strict=True))
