"""Kernels of operators that resample images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from maasdam.errors import Unsupported

affine_grid = functional.affine_grid


def scaled(size: Any, factor: float) -> Any:
    """floor(size x factor), of a symbol."""
    if factor == int(factor):
        return size * int(factor)
    if 1 / factor == int(1 / factor):
        return size // int(1 / factor)
    raise Unsupported(f"Resize by {factor:.4g} of an axis whose size is not fixed; fix the image size of the model")


def grid_sample(x: Tensor, grid: Tensor, by_middles: bool, mode: str, padding: str) -> Tensor:
    """Of two or three spatial axes."""
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode)
    return functional.grid_sample(x, grid, mode=mode, padding_mode=padding, align_corners=by_middles)


def summed_at(columns: Tensor, places: Tensor, count: int) -> Tensor:
    """[..., count]: each column of the last axis added to what is at its place."""
    return torch.zeros([*columns.shape[:-1], count], dtype=columns.dtype).index_add(-1, places, columns)
