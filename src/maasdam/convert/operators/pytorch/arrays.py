"""PyTorch's functions as composed operators name them: see operators/composed/arrays.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from maasdam.convert.operators.composed.arrays import Arrays
from maasdam.convert.operators.pytorch import elementwise, layers, rearrange, reduce
from maasdam.convert.operators.pytorch.narrow import held, holder
from maasdam.convert.operators.pytorch.table import dtype


def _limits(kind: torch.dtype) -> tuple[Any, Any]:
    found = torch.finfo(kind) if kind.is_floating_point else torch.iinfo(kind)
    return found.min, found.max


def _at_places(x: Tensor, places: Tensor) -> Tensor:
    return x.gather(2, places[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))


def _spans(mask: Tensor, batch: Any) -> tuple[Tensor, Tensor | None]:
    return mask[:batch], mask[batch:] if mask.shape[0] != batch else None


ARRAYS = Arrays(
    float32=torch.float32,
    float64=torch.float64,
    int32=torch.int32,
    int64=torch.int64,
    uint8=torch.uint8,
    average_pool=layers.average_pool,
    concat=rearrange.concat,
    conv=layers.conv,
    gather=rearrange.gather,
    gelu=elementwise.gelu,
    gemm=layers.gemm,
    layer_normalization=layers.layer_normalization,
    leaky_relu=elementwise.leaky_relu,
    matmul=layers.matmul,
    rms_normalization=layers.rms_normalization,
    slice_=rearrange.slice_,
    softmax=reduce.softmax,
    softmax_flat=reduce.softmax_flat,
    split=rearrange.split,
    swish=elementwise.swish,
    transpose=rearrange.transpose,
    where=elementwise.where,
    ceil=torch.ceil,
    relu=torch.relu,
    round=torch.round,
    rsqrt=torch.rsqrt,
    sigmoid=torch.sigmoid,
    tanh=torch.tanh,
    dtype=dtype,
    holder=holder,
    held=held,
    limits=_limits,
    cast=lambda x, kind: x.to(kind),
    rank=lambda x: x.dim(),
    dims=lambda x: list(x.shape),
    number=lambda size: size,
    real=lambda size, kind: torch.scalar_tensor(size, dtype=kind),
    whole=lambda x: x.item(),
    larger=torch.sym_max,
    tie=lambda a, b: torch._check(a == b),  # so that torch.export takes them for one
    reshape=torch.reshape,
    full=lambda sizes, value, kind: torch.full(sizes, value, dtype=kind),
    arange=lambda count: torch.arange(count),
    clip=torch.clamp,
    extremes=lambda x: (x.min(), x.max()),
    mean=lambda x, axes: x.mean(axes, keepdim=True),
    repeat=lambda x, times, axis: x.repeat_interleave(times, axis),
    shifted=torch.bitwise_right_shift,
    stack=lambda parts, axis: torch.stack(parts, axis),
    sum=lambda x, axes: x.sum(axes, dtype=x.dtype),
    largest=lambda x, axes: x.amax(axes),
    linear=linear,
    scores=lambda query, key: torch.matmul(query, key.transpose(-1, -2)),
    at_places=_at_places,
    spans=_spans,
    pixels=lambda x, item, row, column: x[item, row, column],
)
