"""Four-bit integers in groups: where a group's grid lies, and which value of it is nearest. Knows arithmetic alone.

A weight is [out, in]; each row's columns are cut into groups that share a scale and a zero point:

    w ≈ (q - zero) * scale        q, zero in -8..7; zero is 0 where the grid is symmetric
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

LOWEST, HIGHEST = -8, 7
STEPS = HIGHEST - LOWEST


@dataclass(frozen=True, slots=True)
class Grid:
    """Scales and zero points of one weight, float32 [out, in / group]; zero points hold whole numbers."""

    scales: torch.Tensor
    zeros: torch.Tensor
    group: int
    """Columns that share a scale."""

    def round(self, weight: torch.Tensor) -> torch.Tensor:
        """Every weight at its nearest value of the grid: [out, in] -> [out, in], float32."""
        rows, columns = weight.shape
        grouped = weight.reshape(rows, columns // self.group, self.group)
        near = nearest(grouped, self.scales[:, :, None], self.zeros[:, :, None])
        return near.reshape(rows, columns)


def nearest(weight: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
    """The nearest value (q - zero) * scale for each weight; the shapes broadcast."""
    import torch

    return (torch.round(weight / scale + zero).clamp(LOWEST, HIGHEST) - zero) * scale


def grid_of(
    weight: torch.Tensor, group: int, kept: torch.dtype, *, is_symmetric: bool, shrink: torch.Tensor | float = 1.0
) -> Grid:
    """The grid that spans each group's smallest and largest weight, times `shrink` ([out, groups, 1] or a number).

    Scales are rounded to `kept`, the type they are stored in, before anything is rounded to them. `group` divides the columns.
    """
    import torch

    grouped = weight.float().reshape(weight.shape[0], -1, group)
    low = (grouped.amin(2, keepdim=True).clamp_max(0) * shrink).squeeze(2)
    high = (grouped.amax(2, keepdim=True).clamp_min(0) * shrink).squeeze(2)
    span = 2 * torch.maximum(-low, high) if is_symmetric else high - low
    scales = (span / STEPS).to(kept).float()
    scales = torch.where(scales == 0, torch.ones_like(scales), scales)  # a group of zeros, or too small for `kept`
    zeros = torch.zeros_like(scales) if is_symmetric else torch.round(LOWEST - low / scales).clamp(LOWEST, HIGHEST)
    return Grid(scales, zeros, group)


def output_error(change: torch.Tensor, gram: torch.Tensor) -> float:
    """How far a change of the weight moves the outputs: the sum of squares of x @ changeᵀ over the inputs of `gram`.

    change [out, in]; gram [in, in], the mean of xᵀx over the calibration tokens: the sum is then over outputs, a token's mean.
    """
    return float(((change @ gram) * change).sum())
