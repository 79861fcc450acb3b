"""PyTorch's functions as operators name them: see operators/arrays.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from maasdam.convert.operators.arrays import Arrays, kinds_of
from maasdam.convert.operators.pytorch import (
    control,
    detection,
    elementwise,
    layers,
    rearrange,
    recurrent,
    reduce,
    signal,
    spatial,
)
from maasdam.errors import Unsupported


def tensor(array: np.ndarray[Any, Any]) -> Tensor:
    """A tensor of a numpy array; one of dtype object holds integers and symbols."""
    if array.dtype != object:
        if array.dtype.name == "bfloat16":
            return torch.from_numpy(array.view(np.uint16).copy()).view(torch.bfloat16)
        if array.dtype.kind not in "iufbc" or array.dtype.name.startswith("float8"):
            raise Unsupported(f"PyTorch has no tensors of {array.dtype} here")
        if not array.size:
            return torch.zeros(array.shape, dtype=torch.from_numpy(array.copy()).dtype)
        return torch.from_numpy(array.copy()).reshape(array.shape)
    parts = [torch.scalar_tensor(v, dtype=torch.int64) for v in array.flat]
    return torch.stack(parts).reshape(array.shape)


def _limits(kind: torch.dtype) -> tuple[Any, Any]:
    found = torch.finfo(kind) if kind.is_floating_point else torch.iinfo(kind)
    return found.min, found.max


ARRAYS = Arrays(
    name="PyTorch",
    control=control,
    detection=detection,
    elementwise=elementwise,
    layers=layers,
    rearrange=rearrange,
    recurrent=recurrent,
    reduce=reduce,
    signal=signal,
    spatial=spatial,
    math=torch,
    float32=torch.float32,
    float64=torch.float64,
    int32=torch.int32,
    int64=torch.int64,
    uint8=torch.uint8,
    kinds=kinds_of(torch),
    limits=_limits,
    is_float=torch.is_floating_point,
    cast=lambda x, kind: x.to(kind),
    as_tensor=lambda x, kind: torch.as_tensor(x, dtype=kind),
    tensor=tensor,
    small=lambda x: x.tolist(),
    known=control.known,
    rank=lambda x: x.dim(),
    dims=lambda x: list(x.shape),
    number=lambda size: size,
    real=lambda size, kind: torch.scalar_tensor(size, dtype=kind),
    whole=lambda x: x.item(),
    larger=torch.sym_max,
    tie=lambda a, b: torch._check(a == b),  # so that torch.export takes them for one
    broadcast_sizes=lambda have, want: [h if isinstance(w, int) and w == 1 else w for h, w in zip(have, want, strict=True)],
    reshape=torch.reshape,
    transpose=rearrange.transpose,
    squeeze=lambda x, axes: x.squeeze(tuple(axes)),
    unsqueeze=torch.unsqueeze,
    broadcast=lambda x, sizes: x.expand(sizes),
    concat=lambda *values, axis: torch.cat(values, axis),
    split=lambda x, sizes, axis: torch.split(x, list(sizes), axis),
    stack=lambda parts, axis: torch.stack(list(parts), axis),
    flip=lambda x, axis: x.flip(axis),
    repeat=lambda x, times, axis: x.repeat_interleave(times, axis),
    tile=lambda x, times: x.repeat(times),
    take=lambda x, places, axis: x.index_select(axis, places),
    nonzero=lambda x: torch.nonzero(x),
    full=lambda sizes, value, kind: torch.full(sizes, value, dtype=kind),
    zeros_like=torch.zeros_like,
    arange=lambda *bounds: torch.arange(*bounds),
    equal=torch.eq,
    where=torch.where,
    clip=torch.clamp,
    extremes=lambda x: (x.min(), x.max()),
    total=lambda parts: torch.stack(parts).sum(0),
    sum=lambda x, axes, keep: x.sum(axes, keepdim=keep, dtype=x.dtype),
    mean=lambda x, axes, keep: x.mean(axes, keepdim=keep),
    moments=lambda x, axes, keep: (x.mean(axes, keepdim=keep), x.var(axes, correction=0, keepdim=keep)),
    gelu=lambda x, approximate: functional.gelu(x, approximate=approximate),
    leaky_relu=functional.leaky_relu,
    relu=torch.relu,
    shifted=torch.bitwise_right_shift,
    matmul=torch.matmul,
    linear=functional.linear,
    scores=lambda query, key: torch.matmul(query, key.transpose(-1, -2)),
    einsum=torch.einsum,
    at_places=lambda x, places: x.gather(2, places[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3])),
    spans=lambda mask, batch: (mask[:batch], mask[batch:] if mask.shape[0] != batch else None),
    pixels=lambda x, item, row, column: x[item, row, column],
)
