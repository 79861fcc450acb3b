"""Operators on each element: arithmetic, comparison, logic, activations, casts."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from maasdam.convert.operators.narrow import KINDS
from maasdam.convert.operators.pytorch.narrow import held
from maasdam.convert.operators.pytorch.table import dtype, operator

_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "BitwiseNot": lambda x: computed(torch.bitwise_not, x),
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "HardSwish": functional.hardswish,
    "Identity": lambda x: x,
    "IsNaN": torch.isnan,
    "Log": torch.log,
    "Mish": functional.mish,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Relu": torch.relu,
    "Round": torch.round,
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Softplus": functional.softplus,
    "Softsign": functional.softsign,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
}

_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Add": torch.add,
    "And": torch.logical_and,
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Mul": torch.mul,
    "Or": torch.logical_or,
    "Sub": torch.sub,
    "Xor": torch.logical_xor,
}


def _list_unary(name: str, function: Callable[[Tensor], Tensor]) -> None:
    @operator(name)
    def call(x: Tensor) -> Tensor:
        return function(x)


UNSIGNED = (torch.uint16, torch.uint32)
"""PyTorch stores these and hardly computes on them: that is done in int64."""


def _list_binary(name: str, function: Callable[[Tensor, Tensor], Tensor]) -> None:
    @operator(name)
    def call(a: Tensor, b: Tensor) -> Tensor:
        return computed(function, a, b)


def computed(function: Callable[..., Tensor], *values: Tensor) -> Tensor:
    """`function` of tensors of one element type, in a wider one where PyTorch can't do it in theirs."""
    kind = values[0].dtype
    if kind not in UNSIGNED:
        return function(*values)
    out = function(*(v.to(torch.int64) for v in values))
    return out if out.dtype == torch.bool else out.to(kind)


for _name, _function in _UNARY.items():
    _list_unary(_name, _function)
for _name, _pair in _BINARY.items():
    _list_binary(_name, _pair)


@operator("Div")
def divide(a: Tensor, b: Tensor) -> Tensor:
    """ONNX Div: integers are cut towards zero."""
    if a.is_floating_point() or a.is_complex():
        return torch.div(a, b)
    return computed(functools.partial(torch.div, rounding_mode="trunc"), a, b)


@operator("Mod")
def modulo(a: Tensor, b: Tensor, fmod: int = 0) -> Tensor:
    """ONNX Mod: with the sign of the divisor, or with `fmod` of the dividend."""
    return computed(torch.fmod if fmod else torch.remainder, a, b)


@operator("Pow")
def power(a: Tensor, b: Tensor) -> Tensor:
    """ONNX Pow: the base's element type is kept."""
    return torch.pow(a, b).to(a.dtype)


@operator("BitShift")
def bit_shift(a: Tensor, b: Tensor, direction: str) -> Tensor:
    """ONNX BitShift."""
    shift = torch.bitwise_left_shift if direction == "LEFT" else torch.bitwise_right_shift
    return shift(a.to(torch.int64), b.to(torch.int64)).to(a.dtype)


@operator("Max")
def maximum(*values: Tensor) -> Tensor:
    """ONNX Max, of any number of inputs."""
    return functools.reduce(functools.partial(computed, torch.maximum), values)


@operator("Min")
def minimum(*values: Tensor) -> Tensor:
    """ONNX Min, of any number of inputs."""
    return functools.reduce(functools.partial(computed, torch.minimum), values)


@operator("Sum")
def total(*values: Tensor) -> Tensor:
    """ONNX Sum, of any number of inputs."""
    return functools.reduce(torch.add, values)


@operator("Mean")
def mean(*values: Tensor) -> Tensor:
    """ONNX Mean, of any number of inputs."""
    return total(*values) / len(values)


@operator("Where")
def where(condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """ONNX Where."""
    return torch.where(condition, a, b)


@operator("Clip")
def clip(x: Tensor, min: Any = None, max: Any = None) -> Tensor:
    """ONNX Clip."""
    if min is not None:
        x = torch.maximum(x, torch.as_tensor(min, dtype=x.dtype))
    return x if max is None else torch.minimum(x, torch.as_tensor(max, dtype=x.dtype))


@operator("Cast")
def cast(x: Tensor, to: int = 1, saturate: int = 1, round_mode: str = "up") -> Tensor:
    """ONNX Cast. `to` is left out only in bodies of ONNX's window functions, whose own default is float32."""
    return held(x, to, bool(saturate)) if to in KINDS else x.to(dtype(to))


@operator("CastLike")
def cast_like(x: Tensor, like: Tensor, saturate: int = 1, round_mode: str = "up") -> Tensor:
    """ONNX CastLike."""
    return x.to(like.dtype)


@operator("BitCast")
def bit_cast(x: Tensor, to: int) -> Tensor:
    """ONNX BitCast: the same bits, read as another type of the same width."""
    return x.view(dtype(to))


@operator("IsInf")
def is_infinite(x: Tensor, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    """ONNX IsInf."""
    found = torch.isinf(x)
    if not detect_negative:
        found = found & (x > 0)
    return found if detect_positive else found & (x < 0)


@operator("Elu")
def elu(x: Tensor, alpha: float = 1.0) -> Tensor:
    """ONNX Elu."""
    return torch.where(x > 0, x, alpha * torch.expm1(x))


@operator("Celu")
def celu(x: Tensor, alpha: float = 1.0) -> Tensor:
    """ONNX Celu."""
    return functional.celu(x, alpha)


@operator("Selu")
def selu(x: Tensor, alpha: float = 1.67326319217681884765625, gamma: float = 1.05070102214813232421875) -> Tensor:
    """ONNX Selu."""
    return gamma * torch.where(x > 0, x, alpha * torch.expm1(x))


@operator("LeakyRelu")
def leaky_relu(x: Tensor, alpha: float = 0.01) -> Tensor:
    """ONNX LeakyRelu."""
    return functional.leaky_relu(x, alpha)


@operator("PRelu")
def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """ONNX PRelu: the slope broadcasts to x from its last axis."""
    return torch.where(x >= 0, x, x * slope)


@operator("ThresholdedRelu")
def thresholded_relu(x: Tensor, alpha: float = 1.0) -> Tensor:
    """ONNX ThresholdedRelu."""
    return torch.where(x > alpha, x, torch.zeros_like(x))


@operator("HardSigmoid")
def hard_sigmoid(x: Tensor, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    """ONNX HardSigmoid."""
    return torch.clamp(alpha * x + beta, 0, 1)


@operator("Shrink")
def shrink(x: Tensor, bias: float = 0.0, lambd: float = 0.5) -> Tensor:
    """ONNX Shrink."""
    zero = torch.zeros_like(x)
    return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, zero)).to(x.dtype)


@operator("Gelu")
def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    """ONNX Gelu: exact by erf, or by tanh."""
    return functional.gelu(x, approximate=approximate)


@operator("Swish")
def swish(x: Tensor, alpha: float = 1.0) -> Tensor:
    """ONNX Swish: x * sigmoid(alpha * x)."""
    return x * torch.sigmoid(alpha * x)
