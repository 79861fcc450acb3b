"""What operators are made of: a framework's functions on tensors, under one set of names.

`pytorch/arrays.py` and `tensorflow/arrays.py` are such a set each; an operator names it `xp`. A size is a number, or the
framework's symbol of an axis that is open while a graph is traced; both add, multiply and divide.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from maasdam.errors import Unsupported

Tensor: TypeAlias = Any
"""Of whichever framework."""
Kind: TypeAlias = Any
"""An element type of the framework's tensors."""
Size: TypeAlias = Any
"""Of an axis."""
Module: TypeAlias = Any
"""Of Python."""
KINDS = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool", 10: "float16",
    11: "float64", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128", 16: "bfloat16",
}  # fmt: skip
"""By ONNX's number of an element type (TensorProto.DataType), what every framework calls it."""


def kinds_of(library: Module) -> dict[int, Kind]:
    """A framework's element types by ONNX's numbers of them."""
    return {number: getattr(library, name) for number, name in KINDS.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrays:
    """A framework: first the kernels it has for itself, then what it has in common with the others."""

    name: str
    """As users know it."""
    control: Module
    detection: Module
    elementwise: Module
    layers: Module
    rearrange: Module
    recurrent: Module
    reduce: Module
    signal: Module
    spatial: Module
    """Files of the framework's folder: `xp.layers.conv` is the `conv` in its `layers.py`."""
    math: Module
    """The framework's own module of functions on numbers; only what every framework has in its own under the same name."""

    float32: Kind
    float64: Kind
    int32: Kind
    int64: Kind
    uint8: Kind
    kinds: Mapping[int, Kind]
    """By ONNX's numbers of element types."""
    limits: Callable[[Kind], tuple[Any, Any]]
    """The least and the largest number of an element type."""
    is_float: Callable[[Tensor], bool]
    """Are its elements real numbers?"""
    cast: Callable[[Tensor, Kind], Tensor]
    as_tensor: Callable[[Any, Kind], Tensor]
    """A number or a tensor as a tensor of an element type."""
    tensor: Callable[[np.ndarray[Any, Any]], Tensor]
    """Of a numpy array; one of dtype object holds integers some of which are symbols."""
    small: Callable[[Tensor], list[Any]]
    """The integers in a tensor of at most one axis, as numbers or symbols. Raises ValueError where they can't be had."""
    known: Callable[[Any], Any]
    """The number that a value of one element is, in every run; None where only the run can tell."""

    rank: Callable[[Tensor], int]
    dims: Callable[[Tensor], list[Size]]
    """The sizes of a tensor's axes: numbers where known, else symbols."""
    number: Callable[[Size], Any]
    """A size as tensors take it in arithmetic and indexing."""
    real: Callable[[Size, Kind], Tensor]
    """A size as a float of a type."""
    whole: Callable[[Tensor], Size]
    """A computed number as a size."""
    larger: Callable[[Size, Size], Size]
    tie: Callable[[Size, Size], None]
    """Say that two sizes are the same in every run."""
    broadcast_sizes: Callable[[list[Size], list[Size]], list[Size]]
    """What two shapes of the same rank broadcast to."""
    counted: Callable[[Size], Size] | None = None
    """A symbol by itself for a quotient or a rest of sizes, which only the run counts: conditions on it put none on axes."""

    reshape: Callable[[Tensor, Sequence[Size]], Tensor]
    transpose: Callable[[Tensor, Sequence[int] | None], Tensor]
    squeeze: Callable[[Tensor, Sequence[int]], Tensor]
    unsqueeze: Callable[[Tensor, int], Tensor]
    broadcast: Callable[[Tensor, Sequence[Size]], Tensor]
    concat: Callable[..., Tensor]
    split: Callable[[Tensor, Sequence[Size], int], Sequence[Tensor]]
    """Into parts of these sizes along an axis."""
    stack: Callable[[Sequence[Tensor], int], Tensor]
    flip: Callable[[Tensor, int], Tensor]
    repeat: Callable[[Tensor, int, int], Tensor]
    """Each element so many times in a row, along an axis."""
    tile: Callable[[Tensor, Sequence[Size]], Tensor]
    take: Callable[[Tensor, Tensor, int], Tensor]
    """What is at these places, counted from 0, of an axis."""
    nonzero: Callable[[Tensor], Tensor]
    """The coordinates of what is not zero: [how many, rank]."""
    full: Callable[[Sequence[Size], Any, Kind], Tensor]
    zeros_like: Callable[[Tensor], Tensor]
    arange: Callable[..., Tensor]
    """int64, from 0 or another size to a size."""

    equal: Callable[[Tensor, Tensor], Tensor]
    where: Callable[[Tensor, Any, Any], Tensor]
    clip: Callable[[Tensor, Any, Any], Tensor]
    """Between two numbers; None for no limit."""
    extremes: Callable[[Tensor], tuple[Tensor, Tensor]]
    """The least and the largest element."""
    total: Callable[[list[Tensor]], Tensor]
    """The sum of tensors of one shape."""
    sum: Callable[[Tensor, list[int], bool], Tensor]
    """Along axes, kept with size 1 or not; so are the next ones. In the element type of the tensor."""
    mean: Callable[[Tensor, list[int], bool], Tensor]
    moments: Callable[[Tensor, list[int], bool], tuple[Tensor, Tensor]]
    """The mean and the variance."""
    gelu: Callable[[Tensor, str], Tensor]
    """Exact by erf ("none"), or by "tanh"."""
    leaky_relu: Callable[[Tensor, float], Tensor]
    relu: Callable[[Tensor], Tensor]
    shifted: Callable[[Tensor, Tensor], Tensor]
    """Bits to the right."""

    matmul: Callable[[Tensor, Tensor], Tensor]
    linear: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    """x @ weight.T + bias."""
    scores: Callable[[Tensor, Tensor], Tensor]
    """query @ key.T, of the last two axes."""
    einsum: Callable[..., Tensor]
    at_places: Callable[[Tensor, Tensor], Tensor]
    """Of x [B, H, T, D], each item's own places [B, K] of the third axis: [B, H, K, D]."""
    spans: Callable[[Tensor, Size], tuple[Tensor, Tensor | None]]
    """Where each item of a batch ends and begins, of a mask [B] or [2 B]; None where all begin at 0."""
    pixels: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    """Of images [B, Y, X, C], those at items, rows and columns that broadcast to each other: [..., C]."""

    def dtype(self, number: int) -> Kind:
        """The element type of an ONNX number. Raises Unsupported for strings and the 8-bit and narrower floats."""
        if number not in self.kinds:
            raise Unsupported(f"{self.name} tensors here have no ONNX element type number {number}")
        return self.kinds[number]
