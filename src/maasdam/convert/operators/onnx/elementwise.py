"""Operators on each element: arithmetic, comparison, logic, activations, casts."""

from __future__ import annotations

import functools
import operator as arithmetic
from collections.abc import Callable
from typing import Any

from maasdam.convert.operators.arrays import Arrays, Tensor
from maasdam.convert.operators.narrow import KINDS
from maasdam.convert.operators.onnx.narrow import held
from maasdam.convert.operators.table import ANY, operator

_NAMESAKES = (
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Ceil", "Cos", "Cosh", "Erf", "Exp", "Floor", "Log", "Reciprocal",
    "Round", "Sigmoid", "Sign", "Sin", "Sinh", "Sqrt", "Tan", "Tanh",
)  # fmt: skip
"""In every framework's `math` under ONNX's own name in lower case."""
_OWN = {"HardSwish": "hard_swish", "IsNaN": "is_nan", "Mish": "mish", "Softplus": "softplus", "Softsign": "softsign"}
"""Each framework's own, by its name there."""
_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Add": arithmetic.add,
    "And": arithmetic.and_,
    "BitwiseAnd": arithmetic.and_,
    "BitwiseOr": arithmetic.or_,
    "BitwiseXor": arithmetic.xor,
    "Greater": arithmetic.gt,
    "GreaterOrEqual": arithmetic.ge,
    "Less": arithmetic.lt,
    "LessOrEqual": arithmetic.le,
    "Mul": arithmetic.mul,
    "Or": arithmetic.or_,
    "Sub": arithmetic.sub,
    "Xor": arithmetic.xor,
}
UNSIGNED = (4, 12)
"""ONNX's numbers of uint16 and uint32. Frameworks store these and hardly compute on them: that is done in int64."""


def computed(xp: Arrays, function: Callable[..., Tensor], *values: Tensor) -> Tensor:
    """`function` of tensors of one element type, in a wider one where frameworks can't do it in theirs."""
    kind = values[0].dtype
    if kind not in (xp.dtype(number) for number in UNSIGNED):
        return function(*values)
    out = function(*(xp.cast(v, xp.int64) for v in values))
    return xp.cast(out, kind) if out.dtype == xp.int64 else out


def _list_unary(name: str, room: str, kernel: str) -> None:
    @operator(name)
    def call(xp: Arrays, x: Tensor) -> Tensor:
        return getattr(getattr(xp, room), kernel)(x)


def _list_binary(name: str, function: Callable[[Tensor, Tensor], Tensor]) -> None:
    @operator(name, weights=ANY if name in ("Add", "Mul", "Sub") else ())
    def call(xp: Arrays, a: Tensor, b: Tensor) -> Tensor:
        return computed(xp, function, a, b)


for _name in _NAMESAKES:
    _list_unary(_name, "math", _name.lower())
for _name, _kernel in _OWN.items():
    _list_unary(_name, "elementwise", _kernel)
for _name, _function in _BINARY.items():
    _list_binary(_name, _function)


@operator("Relu")
def relu(xp: Arrays, x: Tensor) -> Tensor:
    """ONNX Relu."""
    return xp.relu(x)


@operator("Neg")
def negative(xp: Arrays, x: Tensor) -> Tensor:
    """ONNX Neg."""
    return -x


@operator("BitwiseNot", "Not")
def inverted(xp: Arrays, x: Tensor) -> Tensor:
    """ONNX Not, of booleans, and BitwiseNot, of integers."""
    return computed(xp, arithmetic.invert, x)


@operator("Equal")
def equal(xp: Arrays, a: Tensor, b: Tensor) -> Tensor:
    """ONNX Equal."""
    return computed(xp, xp.equal, a, b)


@operator("Div")
def divide(xp: Arrays, a: Tensor, b: Tensor) -> Tensor:
    """ONNX Div: integers are cut towards zero."""
    return computed(xp, xp.elementwise.divide, a, b)


@operator("Mod")
def modulo(xp: Arrays, a: Tensor, b: Tensor, fmod: int = 0) -> Tensor:
    """ONNX Mod: with the sign of the divisor, or with `fmod` of the dividend."""
    return computed(xp, xp.elementwise.fmod if fmod else xp.elementwise.remainder, a, b)


@operator("Pow")
def power(xp: Arrays, a: Tensor, b: Tensor) -> Tensor:
    """ONNX Pow: the base's element type is kept."""
    return xp.cast(xp.elementwise.power(a, b), a.dtype)


@operator("BitShift")
def bit_shift(xp: Arrays, a: Tensor, b: Tensor, direction: str) -> Tensor:
    """ONNX BitShift. By a negative number or beyond the width nothing is left but the sign."""
    return xp.cast(xp.elementwise.bit_shift(a, b, direction == "LEFT"), a.dtype)


@operator("Max")
def maximum(xp: Arrays, *values: Tensor) -> Tensor:
    """ONNX Max, of any number of inputs."""
    return functools.reduce(functools.partial(computed, xp, xp.math.maximum), values)


@operator("Min")
def minimum(xp: Arrays, *values: Tensor) -> Tensor:
    """ONNX Min, of any number of inputs."""
    return functools.reduce(functools.partial(computed, xp, xp.math.minimum), values)


@operator("Sum")
def total(xp: Arrays, *values: Tensor) -> Tensor:
    """ONNX Sum, of any number of inputs."""
    return functools.reduce(arithmetic.add, values)


@operator("Mean")
def mean(xp: Arrays, *values: Tensor) -> Tensor:
    """ONNX Mean, of any number of inputs."""
    return total(xp, *values) / len(values)


@operator("Where")
def where(xp: Arrays, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """ONNX Where."""
    return xp.where(condition, a, b)


@operator("Clip")
def clip(xp: Arrays, x: Tensor, min: Any = None, max: Any = None) -> Tensor:
    """ONNX Clip."""
    if min is not None:
        x = computed(xp, xp.math.maximum, x, xp.as_tensor(min, x.dtype))
    return x if max is None else computed(xp, xp.math.minimum, x, xp.as_tensor(max, x.dtype))


@operator("Cast")
def cast(xp: Arrays, x: Tensor, to: int = 1, saturate: int = 1, round_mode: str = "up") -> Tensor:
    """ONNX Cast. `to` is left out only in bodies of ONNX's window functions, whose own default is float32."""
    return held(xp, x, to, bool(saturate)) if to in KINDS else xp.cast(x, xp.dtype(to))


@operator("CastLike")
def cast_like(xp: Arrays, x: Tensor, like: Tensor, saturate: int = 1, round_mode: str = "up") -> Tensor:
    """ONNX CastLike."""
    return xp.cast(x, like.dtype)


@operator("BitCast")
def bit_cast(xp: Arrays, x: Tensor, to: int) -> Tensor:
    """ONNX BitCast: the same bits, read as another type of the same width."""
    return xp.elementwise.bit_cast(x, xp.dtype(to))


@operator("IsInf")
def is_infinite(xp: Arrays, x: Tensor, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    """ONNX IsInf."""
    found = xp.elementwise.is_infinite(x)
    if not detect_negative:
        found = found & (x > 0)
    return found if detect_positive else found & (x < 0)


@operator("Elu")
def elu(xp: Arrays, x: Tensor, alpha: float = 1.0) -> Tensor:
    """ONNX Elu."""
    return xp.where(x > 0, x, alpha * xp.math.expm1(xp.clip(x, None, 0)))


@operator("Celu")
def celu(xp: Arrays, x: Tensor, alpha: float = 1.0) -> Tensor:
    """ONNX Celu."""
    return xp.where(x > 0, x, alpha * xp.math.expm1(xp.clip(x, None, 0) / alpha))


@operator("Selu")
def selu(xp: Arrays, x: Tensor, alpha: float = 1.67326319217681884765625, gamma: float = 1.05070102214813232421875) -> Tensor:
    """ONNX Selu."""
    return gamma * elu(xp, x, alpha)


@operator("LeakyRelu")
def leaky_relu(xp: Arrays, x: Tensor, alpha: float = 0.01) -> Tensor:
    """ONNX LeakyRelu."""
    return xp.leaky_relu(x, alpha)


@operator("PRelu", weights=(1,))
def prelu(xp: Arrays, x: Tensor, slope: Tensor) -> Tensor:
    """ONNX PRelu: the slope broadcasts to x from its last axis."""
    return xp.where(x >= 0, x, x * slope)


@operator("ThresholdedRelu")
def thresholded_relu(xp: Arrays, x: Tensor, alpha: float = 1.0) -> Tensor:
    """ONNX ThresholdedRelu."""
    return xp.where(x > alpha, x, xp.zeros_like(x))


@operator("HardSigmoid")
def hard_sigmoid(xp: Arrays, x: Tensor, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    """ONNX HardSigmoid."""
    return xp.clip(alpha * x + beta, 0, 1)


@operator("Shrink")
def shrink(xp: Arrays, x: Tensor, bias: float = 0.0, lambd: float = 0.5) -> Tensor:
    """ONNX Shrink."""
    wide = x if xp.is_float(x) else xp.cast(x, xp.float32)
    inner = xp.where(wide > lambd, wide - bias, xp.zeros_like(wide))
    return xp.cast(xp.where(wide < -lambd, wide + bias, inner), x.dtype)


@operator("Gelu", "com.microsoft.Gelu")
def gelu(xp: Arrays, x: Tensor, approximate: str = "none") -> Tensor:
    """ONNX Gelu: exact by erf, or by tanh; com.microsoft's is by erf."""
    return xp.gelu(x, approximate)


@operator("Swish")
def swish(xp: Arrays, x: Tensor, alpha: float = 1.0) -> Tensor:
    """ONNX Swish: x * sigmoid(alpha * x)."""
    return x * xp.math.sigmoid(alpha * x)
