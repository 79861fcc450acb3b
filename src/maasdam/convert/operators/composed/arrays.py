"""What composed operators are made of: a framework's functions on tensors, under one set of names.

`pytorch/arrays.py` and `tensorflow/arrays.py` are such a set each; an operator names it `xp`. A size is a number, or the
framework's symbol of an axis that is open while a graph is traced; both add, multiply and divide.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from maasdam.convert.operators.narrow import Whole

Tensor: TypeAlias = Any
"""Of whichever framework."""
Kind: TypeAlias = Any
"""An element type of the framework's tensors."""
Size: TypeAlias = Any
"""Of an axis."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrays:
    """Functions named as an ONNX operator are that operator, as the framework's table has it."""

    float32: Kind
    float64: Kind
    int32: Kind
    int64: Kind
    uint8: Kind

    average_pool: Callable[..., Tensor]
    concat: Callable[..., Tensor]
    conv: Callable[..., Tensor]
    gather: Callable[..., Tensor]
    gelu: Callable[..., Tensor]
    gemm: Callable[..., Tensor]
    layer_normalization: Callable[..., Any]
    leaky_relu: Callable[..., Tensor]
    matmul: Callable[..., Tensor]
    rms_normalization: Callable[..., Tensor]
    slice_: Callable[..., Tensor]
    softmax: Callable[..., Tensor]
    softmax_flat: Callable[..., Tensor]
    split: Callable[..., tuple[Tensor, ...]]
    swish: Callable[..., Tensor]
    transpose: Callable[..., Tensor]
    where: Callable[..., Tensor]

    ceil: Callable[[Tensor], Tensor]
    relu: Callable[[Tensor], Tensor]
    round: Callable[[Tensor], Tensor]
    rsqrt: Callable[[Tensor], Tensor]
    sigmoid: Callable[[Tensor], Tensor]
    tanh: Callable[[Tensor], Tensor]

    dtype: Callable[[int], Kind]
    """Of ONNX's number of an element type."""
    holder: Callable[[Whole], Kind]
    held: Callable[[Tensor, int, bool], Tensor]
    """Both of narrow types: see operators/narrow.py."""
    limits: Callable[[Kind], tuple[Any, Any]]
    """The least and the largest number of an element type."""
    cast: Callable[[Tensor, Kind], Tensor]

    rank: Callable[[Tensor], int]
    dims: Callable[[Tensor], list[Size]]
    number: Callable[[Size], Any]
    """A size as tensors take it in arithmetic and indexing."""
    real: Callable[[Size, Kind], Tensor]
    """A size as a float of a type."""
    whole: Callable[[Tensor], Size]
    """A computed number as a size."""
    larger: Callable[[Size, Size], Size]
    tie: Callable[[Size, Size], None]
    """Say that two sizes are the same in every run."""
    reshape: Callable[[Tensor, Sequence[Size]], Tensor]
    full: Callable[[Sequence[Size], float, Kind], Tensor]
    arange: Callable[[Size], Tensor]
    """int64, from 0."""

    clip: Callable[[Tensor, Any, Any], Tensor]
    """Between two numbers; None for no limit."""
    extremes: Callable[[Tensor], tuple[Tensor, Tensor]]
    """The least and the largest element."""
    mean: Callable[[Tensor, list[int]], Tensor]
    """Along axes, each kept with size 1."""
    repeat: Callable[[Tensor, int, int], Tensor]
    """Each element so many times in a row, along an axis."""
    shifted: Callable[[Tensor, Tensor], Tensor]
    """Bits to the right."""
    stack: Callable[[list[Tensor], int], Tensor]
    sum: Callable[[Tensor, list[int]], Tensor]
    """Along axes, in the element type of the tensor."""
    largest: Callable[[Tensor, list[int]], Tensor]
    """Along axes."""

    linear: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    """x @ weight.T + bias."""
    scores: Callable[[Tensor, Tensor], Tensor]
    """query @ key.T, of the last two axes."""
    at_places: Callable[[Tensor, Tensor], Tensor]
    """Of x [B, H, T, D], each item's own places [B, K] of the third axis: [B, H, K, D]."""
    spans: Callable[[Tensor, Size], tuple[Tensor, Tensor | None]]
    """Where each item of a batch ends and begins, of a mask [B] or [2 B]; None where all begin at 0."""
    pixels: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    """Of images [B, Y, X, C], those at items, rows and columns that broadcast to each other: [..., C]."""
