"""Operators along axes: sums, extremes, softmax, order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf
from tensorflow import Tensor

from maasdam.convert.operators.tensorflow.sizes import Size, dims, product, rank, reshaped, scalar
from maasdam.convert.operators.tensorflow.table import operator


def _list_reduction(name: str, function: Callable[[Tensor, list[int], bool], Tensor]) -> None:
    @operator(name, shapes=("axes",))
    def call(x: Tensor, axes: Any = None, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
        axes = [axes] if isinstance(axes, int) else axes
        if not axes:
            axes = [] if noop_with_empty_axes else list(range(rank(x)))
        if not axes and rank(x):
            return _elementwise(name, x)
        return tf.cast(function(x, axes, bool(keepdims)), x.dtype)


def _elementwise(name: str, x: Tensor) -> Tensor:
    """A reduction over no axis: each element by itself."""
    if name in ("ReduceL1", "ReduceL2"):
        return tf.abs(x)
    if name == "ReduceSumSquare":
        return x * x
    return tf.math.log(x) if name == "ReduceLogSum" else x


def _real(x: Tensor) -> Tensor:
    return x if x.dtype.is_floating else tf.cast(x, tf.float64)


def _extreme(function: Callable[..., Tensor], of_bools: Callable[..., Tensor]) -> Callable[[Tensor, list[int], bool], Tensor]:
    return lambda x, axes, keep: (of_bools if x.dtype == tf.bool else function)(x, axes, keep)


_REDUCTIONS: dict[str, Callable[[Tensor, list[int], bool], Tensor]] = {
    "ReduceL1": lambda x, axes, keep: tf.reduce_sum(tf.abs(x), axes, keep),
    "ReduceL2": lambda x, axes, keep: tf.sqrt(tf.reduce_sum(tf.square(_real(x)), axes, keep)),
    "ReduceLogSum": lambda x, axes, keep: tf.math.log(tf.reduce_sum(_real(x), axes, keep)),
    "ReduceLogSumExp": lambda x, axes, keep: tf.reduce_logsumexp(_real(x), axes, keep),
    "ReduceMax": _extreme(tf.reduce_max, tf.reduce_any),
    "ReduceMean": lambda x, axes, keep: tf.reduce_mean(_real(x), axes, keep),
    "ReduceMin": _extreme(tf.reduce_min, tf.reduce_all),
    "ReduceProd": tf.reduce_prod,
    "ReduceSum": tf.reduce_sum,
    "ReduceSumSquare": lambda x, axes, keep: tf.reduce_sum(tf.square(x), axes, keep),
}
for _name, _reduction in _REDUCTIONS.items():
    _list_reduction(_name, _reduction)


@operator("ArgMax")
def argmax(x: Tensor, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    """ONNX ArgMax."""
    return _place(tf.argmax, x, axis, keepdims, select_last_index)


@operator("ArgMin")
def argmin(x: Tensor, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    """ONNX ArgMin."""
    return _place(tf.argmin, x, axis, keepdims, select_last_index)


def _place(function: Callable[..., Tensor], x: Tensor, axis: int, keepdims: int, last: int) -> Tensor:
    axis = axis % rank(x)
    found = function(tf.reverse(x, [axis]) if last else x, axis, tf.int64)
    if last:
        found = scalar(dims(x)[axis]) - 1 - found
    return tf.expand_dims(found, axis) if keepdims else found


@operator("CumSum", shapes=("axis",))
def cumulative_sum(x: Tensor, axis: Any, exclusive: int = 0, reverse: int = 0) -> Tensor:
    """ONNX CumSum."""
    return tf.cumsum(x, axis[0] if isinstance(axis, list) else axis, bool(exclusive), bool(reverse))


@operator("CumProd", shapes=("axis",))
def cumulative_product(x: Tensor, axis: Any, exclusive: int = 0, reverse: int = 0) -> Tensor:
    """ONNX CumProd."""
    return tf.math.cumprod(x, axis[0] if isinstance(axis, list) else axis, bool(exclusive), bool(reverse))


@operator("Softmax", since=13)
def softmax(x: Tensor, axis: int = -1) -> Tensor:
    """ONNX Softmax."""
    return tf.nn.softmax(x, axis)


@operator("LogSoftmax", since=13)
def log_softmax(x: Tensor, axis: int = -1) -> Tensor:
    """ONNX LogSoftmax."""
    return tf.nn.log_softmax(x, axis)


@operator("Hardmax", since=13)
def hardmax(x: Tensor, axis: int = -1) -> Tensor:
    """ONNX Hardmax: one at the first largest element, else zero."""
    axis = axis % rank(x)
    return tf.one_hot(tf.argmax(x, axis), tf.shape(x)[axis], axis=axis, dtype=x.dtype)


@operator("Softmax")
def softmax_flat(x: Tensor, axis: int = 1) -> Tensor:
    """ONNX Softmax before 13: over all axes from `axis` on."""
    return _flat(softmax, x, axis)


@operator("LogSoftmax")
def log_softmax_flat(x: Tensor, axis: int = 1) -> Tensor:
    """ONNX LogSoftmax before 13: over all axes from `axis` on."""
    return _flat(log_softmax, x, axis)


@operator("Hardmax")
def hardmax_flat(x: Tensor, axis: int = 1) -> Tensor:
    """ONNX Hardmax before 13: over all axes from `axis` on."""
    return _flat(hardmax, x, axis)


def _flat(function: Callable[[Tensor, int], Tensor], x: Tensor, axis: int) -> Tensor:
    sizes, axis = dims(x), axis % rank(x)
    if axis == len(sizes) - 1:
        return function(x, -1)
    return reshaped(function(reshaped(x, [*sizes[:axis], product(sizes[axis:])]), -1), sizes)


@operator("LpNormalization")
def lp_normalization(x: Tensor, axis: int = -1, p: int = 2) -> Tensor:
    """ONNX LpNormalization; a vector of zeros stays zero."""
    return tf.math.divide_no_nan(x, tf.norm(x, p, axis, keepdims=True))


@operator("TopK", shapes=("k",))
def top_k(x: Tensor, k: Any, axis: int = -1, largest: int = 1, sorted: int = 1) -> tuple[Tensor, Tensor]:
    """ONNX TopK: of equal values the first one wins."""
    count = k[0] if isinstance(k, list) else k
    axis, last = axis % rank(x), rank(x) - 1
    order = [*(a for a in range(last + 1) if a != axis), axis]
    moved = x if axis == last else tf.transpose(x, order)
    count = tf.cast(count.tensor, tf.int32) if isinstance(count, Size) else count
    places = tf.argsort(moved, direction="DESCENDING" if largest else "ASCENDING", stable=True)[..., :count]
    values = tf.gather(moved, places, batch_dims=last)
    places = tf.cast(places, tf.int64)
    if axis == last:
        return values, places
    back = [order.index(a) for a in range(last + 1)]
    return tf.transpose(values, back), tf.transpose(places, back)


@operator("Unique")
def unique(x: Tensor, axis: int | None = None, sorted: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """ONNX Unique: values, their first places, each element's place among them, their counts."""
    flat = tf.reshape(x, [-1]) if axis is None else x
    along = (axis or 0) % rank(flat)
    values, inverse, counts = tf.raw_ops.UniqueWithCountsV2(x=flat, axis=[along], out_idx=tf.int64)
    places = tf.range(tf.size(inverse, tf.int64), dtype=tf.int64)
    first = tf.math.unsorted_segment_min(places, inverse, tf.size(counts, tf.int64))
    if sorted:
        order = _sorted_slices(values, along)
        back = tf.cast(tf.argsort(order), tf.int64)
        values, first, counts, inverse = (
            tf.gather(values, order, axis=along), tf.gather(first, order), tf.gather(counts, order), tf.gather(back, inverse),
        )  # fmt: skip
    return values, first, inverse, counts


def _sorted_slices(x: Tensor, axis: int) -> Tensor:
    """The order of slices along an axis, by their first element, then the second, and so on: sorted by the last one first."""
    if rank(x) == 1:
        return tf.argsort(x, stable=True)
    first = tf.transpose(x, [axis, *(a for a in range(rank(x)) if a != axis)])
    columns = tf.transpose(tf.reshape(first, tf.stack([tf.shape(first)[0], -1])))

    def turn(i: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
        return i - 1, tf.gather(order, tf.argsort(tf.gather(columns[i], order), stable=True))

    begin = (tf.shape(columns)[0] - 1, tf.range(tf.shape(columns)[1]))
    shapes = (tf.TensorShape([]), tf.TensorShape([None]))
    return tf.while_loop(lambda i, _: i >= 0, turn, begin, shapes)[1]
