"""Operators on each element: arithmetic, comparison, logic, activations, casts."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf
from tensorflow import Tensor

from maasdam.convert.operators.narrow import KINDS
from maasdam.convert.operators.tensorflow.narrow import held
from maasdam.convert.operators.tensorflow.table import dtype, known, operator

_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": tf.abs,
    "Acos": tf.acos,
    "Acosh": tf.acosh,
    "Asin": tf.asin,
    "Asinh": tf.asinh,
    "Atan": tf.atan,
    "Atanh": tf.atanh,
    "BitwiseNot": tf.bitwise.invert,
    "Ceil": tf.math.ceil,
    "Cos": tf.cos,
    "Cosh": tf.cosh,
    "Erf": tf.math.erf,
    "Exp": tf.exp,
    "Floor": tf.floor,
    "HardSwish": lambda x: x * tf.clip_by_value(x / 6 + 0.5, 0, 1),
    "Identity": tf.identity,
    "IsNaN": tf.math.is_nan,
    "Log": tf.math.log,
    "Mish": lambda x: x * tf.tanh(tf.math.softplus(x)),
    "Neg": tf.negative,
    "Not": tf.logical_not,
    "Reciprocal": tf.math.reciprocal,
    "Relu": tf.nn.relu,
    "Round": tf.round,
    "Sigmoid": tf.sigmoid,
    "Sign": tf.sign,
    "Sin": tf.sin,
    "Sinh": tf.sinh,
    "Softplus": tf.math.softplus,
    "Softsign": tf.nn.softsign,
    "Sqrt": tf.sqrt,
    "Tan": tf.tan,
    "Tanh": tf.tanh,
}

_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Add": tf.add,
    "And": tf.logical_and,
    "BitwiseAnd": tf.bitwise.bitwise_and,
    "BitwiseOr": tf.bitwise.bitwise_or,
    "BitwiseXor": tf.bitwise.bitwise_xor,
    "Equal": tf.equal,
    "Greater": tf.greater,
    "GreaterOrEqual": tf.greater_equal,
    "Less": tf.less,
    "LessOrEqual": tf.less_equal,
    "Mul": tf.multiply,
    "Or": tf.logical_or,
    "Sub": tf.subtract,
    "Xor": tf.math.logical_xor,
}


def _list_unary(name: str, function: Callable[[Tensor], Tensor]) -> None:
    @operator(name)
    def call(x: Tensor) -> Tensor:
        return function(x)


def _list_binary(name: str, function: Callable[[Tensor, Tensor], Tensor]) -> None:
    @operator(name)
    def call(a: Tensor, b: Tensor) -> Tensor:
        return function(a, b)


for _name, _function in _UNARY.items():
    _list_unary(_name, _function)
for _name, _pair in _BINARY.items():
    _list_binary(_name, _pair)


@operator("Div")
def divide(a: Tensor, b: Tensor) -> Tensor:
    """ONNX Div: integers are cut towards zero."""
    if not a.dtype.is_integer:
        return tf.divide(a, b)
    wide = tf.int64 if a.dtype.size >= 4 else tf.int32
    return tf.cast(tf.truncatediv(tf.cast(a, wide), tf.cast(b, wide)), a.dtype)


@operator("Mod")
def modulo(a: Tensor, b: Tensor, fmod: int = 0) -> Tensor:
    """ONNX Mod: with the sign of the divisor, or with `fmod` of the dividend."""
    wide = tf.int64 if a.dtype.is_integer else tf.float32 if a.dtype.size < 4 else a.dtype
    found = (tf.truncatemod if fmod else tf.math.floormod)(tf.cast(a, wide), tf.cast(b, wide))
    return tf.cast(found, a.dtype)


@operator("Pow")
def power(a: Tensor, b: Tensor) -> Tensor:
    """ONNX Pow: the base's element type is kept."""
    wide = a.dtype
    if a.dtype.is_integer:
        wide = tf.int64 if b.dtype.is_integer else tf.float64
    return tf.cast(tf.pow(tf.cast(a, wide), tf.cast(b, wide)), a.dtype)


@operator("BitShift")
def bit_shift(a: Tensor, b: Tensor, direction: str) -> Tensor:
    """ONNX BitShift. By a negative number or beyond the width nothing is left but the sign; TensorFlow leaves that open."""
    wide = tf.uint64 if a.dtype == tf.uint64 else tf.int64
    value, by = tf.cast(a, wide), tf.cast(b, tf.int64)
    is_inside = (by >= 0) & (by < 64)
    inside = tf.cast(tf.where(is_inside, by, 0), wide)
    if direction == "LEFT":
        return tf.cast(tf.where(is_inside, tf.bitwise.left_shift(value, inside), tf.zeros([], wide)), a.dtype)
    sign = tf.zeros([], wide) if wide == tf.uint64 else tf.bitwise.right_shift(value, tf.constant(63, wide))
    return tf.cast(tf.where(is_inside, tf.bitwise.right_shift(value, inside), sign), a.dtype)


@operator("Max")
def maximum(*values: Tensor) -> Tensor:
    """ONNX Max, of any number of inputs."""
    return functools.reduce(functools.partial(_computed, tf.maximum), values)


@operator("Min")
def minimum(*values: Tensor) -> Tensor:
    """ONNX Min, of any number of inputs."""
    return functools.reduce(functools.partial(_computed, tf.minimum), values)


def _computed(function: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor) -> Tensor:
    """In a wider type where TensorFlow can't do it in theirs."""
    if a.dtype not in (tf.uint16, tf.uint32):
        return function(a, b)
    return tf.cast(function(tf.cast(a, tf.int64), tf.cast(b, tf.int64)), a.dtype)


@operator("Sum")
def total(*values: Tensor) -> Tensor:
    """ONNX Sum, of any number of inputs."""
    return functools.reduce(tf.add, values)


@operator("Mean")
def mean(*values: Tensor) -> Tensor:
    """ONNX Mean, of any number of inputs."""
    return total(*values) / len(values)


@operator("Where")
def where(condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """ONNX Where."""
    return tf.where(condition, a, b)


@operator("Clip")
def clip(x: Tensor, min: Any = None, max: Any = None) -> Tensor:
    """ONNX Clip."""
    if min is not None:
        x = _computed(tf.maximum, x, tf.cast(min, x.dtype))
    return x if max is None else _computed(tf.minimum, x, tf.cast(max, x.dtype))


@operator("Cast")
def cast(x: Tensor, to: int = 1, saturate: int = 1, round_mode: str = "up") -> Tensor:
    """ONNX Cast. `to` is left out only in bodies of ONNX's window functions, whose own default is float32."""
    return held(x, to, bool(saturate)) if to in KINDS else _cast(x, dtype(to))


@operator("CastLike")
def cast_like(x: Tensor, like: Tensor, saturate: int = 1, round_mode: str = "up") -> Tensor:
    """ONNX CastLike."""
    return _cast(x, like.dtype)


def _cast(x: Tensor, to: tf.DType) -> Tensor:
    known(x.dtype, to)
    if to == tf.bool and x.dtype != tf.bool:
        return tf.not_equal(x, tf.zeros([], x.dtype))
    return tf.cast(x, to)


@operator("BitCast")
def bit_cast(x: Tensor, to: int) -> Tensor:
    """ONNX BitCast: the same bits, read as another type of the same width."""
    wanted = dtype(to)
    bits = tf.cast(x, tf.uint8) if x.dtype == tf.bool else x
    return tf.cast(tf.bitcast(bits, tf.uint8), tf.bool) if wanted == tf.bool else tf.bitcast(bits, wanted)


@operator("IsInf")
def is_infinite(x: Tensor, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    """ONNX IsInf."""
    found = tf.math.is_inf(x)
    if not detect_negative:
        found = found & (x > 0)
    return found if detect_positive else found & (x < 0)


@operator("Elu")
def elu(x: Tensor, alpha: float = 1.0) -> Tensor:
    """ONNX Elu."""
    return tf.where(x > 0, x, alpha * tf.math.expm1(tf.minimum(x, 0)))


@operator("Celu")
def celu(x: Tensor, alpha: float = 1.0) -> Tensor:
    """ONNX Celu."""
    return tf.where(x > 0, x, alpha * tf.math.expm1(tf.minimum(x, 0) / alpha))


@operator("Selu")
def selu(x: Tensor, alpha: float = 1.67326319217681884765625, gamma: float = 1.05070102214813232421875) -> Tensor:
    """ONNX Selu."""
    return gamma * elu(x, alpha)


@operator("LeakyRelu")
def leaky_relu(x: Tensor, alpha: float = 0.01) -> Tensor:
    """ONNX LeakyRelu."""
    return tf.where(x >= 0, x, x * alpha)


@operator("PRelu")
def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """ONNX PRelu: the slope broadcasts to x from its last axis."""
    return tf.where(x >= 0, x, x * slope)


@operator("ThresholdedRelu")
def thresholded_relu(x: Tensor, alpha: float = 1.0) -> Tensor:
    """ONNX ThresholdedRelu."""
    return tf.where(x > alpha, x, tf.zeros_like(x))


@operator("HardSigmoid")
def hard_sigmoid(x: Tensor, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    """ONNX HardSigmoid."""
    return tf.clip_by_value(alpha * x + beta, 0, 1)


@operator("Shrink")
def shrink(x: Tensor, bias: float = 0.0, lambd: float = 0.5) -> Tensor:
    """ONNX Shrink."""
    wide = x if x.dtype.is_floating else tf.cast(x, tf.float32)
    zero = tf.zeros_like(wide)
    return tf.cast(tf.where(wide < -lambd, wide + bias, tf.where(wide > lambd, wide - bias, zero)), x.dtype)


@operator("Gelu")
def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    """ONNX Gelu: exact by erf, or by tanh."""
    return tf.nn.gelu(x, approximate=approximate == "tanh")


@operator("Swish")
def swish(x: Tensor, alpha: float = 1.0) -> Tensor:
    """ONNX Swish: x * sigmoid(alpha * x)."""
    return x * tf.sigmoid(alpha * x)
