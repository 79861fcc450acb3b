"""Kernels of If and Loop. What they decide, and how often a body runs, may be data: what follows from the model is unrolled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow import Tensor

from maasdam.convert.operators.tensorflow.sizes import Size, scalar
from maasdam.errors import Unsupported

Body = Callable[..., list[Tensor]]
MOST = 256
"""More turns than this are a loop of the graph, not unrolled."""


def either(condition: Tensor, then_branch: Body, else_branch: Body) -> tuple[Tensor, ...]:
    """One of two branches, which only the run can tell."""
    return tuple(tf.cond(tf.reshape(condition, []), lambda: tuple(then_branch()), lambda: tuple(else_branch())))


def loop(limit: Any, condition: Any, carried: tuple[Tensor, ...], body: Body) -> tuple[Tensor, ...]:
    """What is carried, then what each turn gives, stacked."""
    start = True if condition is None else known(condition)
    if start is None or isinstance(limit, Size) or (limit is not None and limit > MOST):
        return _running(limit, condition, carried, body)
    unrolled = _unrolled(limit, bool(start), carried, body)
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
        still = known(going)
        if still is None or turn == MOST:
            return None
        goes_on, turn = bool(still), turn + 1
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


def known(value: Any) -> Any:
    """The number that a value of one element is, in every run; None where only the run can tell."""
    found = tf.get_static_value(value) if isinstance(value, Tensor) else value
    return None if found is None or isinstance(found, Size) else np.asarray(found).item()


def slice_at(x: Tensor, turn: Tensor) -> Tensor:
    """What a Scan's turn sees of its first axis."""
    return x[turn]
