"""GPTQ (Frantar et al., 2023): round a weight column by column, and let the columns to come make up for each error.

Knows one weight and how its inputs go together; refuses to know models. For outputs x @ Wᵀ the loss of rounding is
quadratic with the Hessian H = mean(xᵀx). Rounding column c by an error e is made up for best by changing the later
columns by -e / U[c, c] * U[c, later], where U is the upper Cholesky factor of H⁻¹.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from maasdam.core import Progress
from maasdam.pipeline.quantize.groups import Grid, grid_of, nearest, output_error

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    import torch

BLOCK = 128
"""Columns after which the rest of the matrix is updated, in one product instead of one by one."""
DAMPING = 0.01
"""Added to H's diagonal, as a share of its mean: keeps H invertible where inputs are alike."""


def quantize(
    model: Any, texts: Sequence[Sequence[int]], group: int, kept: torch.dtype, progress: Progress
) -> tuple[dict[str, Grid], dict[str, Any]]:
    """Round the linear layers of a Llama-like `model` in place; their grids by name, and facts for the report.

    `texts` are token ids of the calibration data. Grids are symmetric, scales exact in `kept`.
    """
    from maasdam.pipeline.quantize.layerwise import SHARING, walk

    grids: dict[str, Grid] = {}
    errors = {"gptq": 0.0, "round_to_nearest": 0.0}
    for stage in walk(model, texts, progress):
        for first, names in SHARING.items():
            gram = stage.seen[first].gram
            for name in names:
                linear = stage.linear(name)
                weight = linear.weight.data
                grid, rounded = gptq(weight, gram, group, kept)
                plain = grid_of(weight, group, kept, is_symmetric=True).round(weight)
                errors["gptq"] += output_error(rounded - weight, gram)
                errors["round_to_nearest"] += output_error(plain - weight, gram)
                linear.weight.data = rounded
                grids[f"{stage.name}.{name}"] = grid
    return grids, {"output_error": errors}


def gptq(weight: torch.Tensor, gram: torch.Tensor, group: int, kept: torch.dtype) -> tuple[Grid, torch.Tensor]:
    """(grid, rounded weight) for a float32 weight [out, in] with inputs of this `gram`, [in, in].

    Columns whose inputs are largest go first, while the most columns are left to make up for them (act-order). Grids are
    those of the weight as it was, so that the order changes nothing in the file. `group` divides the columns.
    """
    import torch

    grid = grid_of(weight, group, kept, is_symmetric=True)
    order = torch.argsort(gram.diagonal(), descending=True)
    left = weight.T[order].double().contiguous()  # a column at a time is read and written: they lie together so
    scales, zeros = (part.T.repeat_interleave(group, 0)[order].double() for part in (grid.scales, grid.zeros))
    upper = _inverse_factor(gram[order][:, order].double())
    for start in range(0, len(left), BLOCK):
        end = min(start + BLOCK, len(left))
        errors = torch.empty_like(left[start:end])
        for c in range(start, end):
            rounded = nearest(left[c], scales[c], zeros[c])
            errors[c - start] = (left[c] - rounded) / upper[c, c]
            left[c] = rounded
            left[c + 1 : end] -= torch.outer(upper[c, c + 1 : end], errors[c - start])
        left[end:] -= upper[start:end, end:].T @ errors
    rounded = torch.empty_like(left)
    rounded[order] = left
    return grid, grid.round(rounded.T.float())  # the same values, as float32 says them


def _inverse_factor(hessian: torch.Tensor) -> torch.Tensor:
    """The upper Cholesky factor of the damped Hessian's inverse; float64, since inverses of alike inputs are delicate."""
    import torch

    damped = hessian.clone()
    diagonal = damped.diagonal()
    diagonal[diagonal == 0] = 1  # an input that is always zero: any weight will do
    diagonal += DAMPING * diagonal.mean()
    factor: torch.Tensor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)
    return factor
