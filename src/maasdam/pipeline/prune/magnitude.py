"""Set single weights to zero: the smallest of all, or all but N of every M neighbours. Knows weights; never files.

Zeros take as much room and time as other weights in every engine here: only a compressed file shrinks.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from maasdam.errors import InvalidInput, Unsupported
from maasdam.pipeline.prune.layers import head, layers

if TYPE_CHECKING:
    import torch

ANY = "any"
"""The pattern of unstructured pruning: zeros may lie anywhere."""


@dataclass(frozen=True, slots=True)
class Zeros:
    """What was set to zero."""

    again: Callable[[], None]
    """Sets them to zero once more: a training step moves them."""
    count: int
    layers_left_whole: int = 0
    """Layers whose inputs don't divide into groups of M."""


def prune_magnitude(model: torch.nn.Module, ratio: float, pattern: str = ANY) -> Zeros:
    """Zero the smallest weights of linear and convolutional layers, the last excepted.

    Pattern "any": `ratio` of them all, wherever they lie. Pattern "N:M" ("2:4"): of every M weights that lie side by side
    along a layer's inputs the N largest stay, and `ratio` has no say. Raises InvalidInput for other patterns.
    """
    chosen = _weights(model)
    if pattern == ANY:
        masks: list[Any] = _smallest(chosen, ratio)
    else:
        keep, group = parse_pattern(pattern)
        masks = [_n_of_m(w, keep, group) for w in chosen]
    kept = [(w, m) for w, m in zip(chosen, masks, strict=True) if m is not None]
    if not kept:
        raise Unsupported(f"no layer's inputs divide into groups of {pattern.partition(':')[2]}; use pattern = 'any'")

    def again() -> None:
        import torch

        with torch.no_grad():
            for weight, mask in kept:
                weight.mul_(mask)

    again()
    return Zeros(again, sum(int((~mask).sum()) for _, mask in kept), len(chosen) - len(kept))


def parse_pattern(pattern: str) -> tuple[int, int]:
    """(N, M) of "N:M". Raises InvalidInput where it is none, or N is not below M."""
    found = re.fullmatch(r"(\d{1,2}):(\d{1,2})", pattern)
    keep, group = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 0 < keep < group:
        raise InvalidInput(f"'pattern' is '{pattern}'; it takes 'any', or 'N:M' with N below M, such as '2:4'")
    return keep, group


def _weights(model: torch.nn.Module) -> list[torch.Tensor]:
    last = head(model)
    found = {id(layer.weight): layer.weight for layer in layers(model) if layer is not last}  # a shared weight counts once
    found.pop(id(last.weight), None)
    if not found:
        raise Unsupported("the model has no layer to prune but its last, which is left whole")
    return list(found.values())


def _smallest(weights: list[torch.Tensor], ratio: float) -> list[torch.Tensor]:
    import torch

    sizes = torch.cat([w.detach().abs().flatten() for w in weights])
    count = int(ratio * sizes.numel())
    threshold = sizes.kthvalue(max(1, count)).values
    return [w.detach().abs() > threshold for w in weights]


def _n_of_m(weight: torch.Tensor, keep: int, group: int) -> torch.Tensor | None:
    """Which weights stay, [out, in, …]; None where the inputs don't divide into groups."""
    import torch

    if weight.shape[1] % group:
        return None
    sizes = weight.detach().abs().movedim(1, -1)  # convolutions are grouped along their input channels, as linear layers are
    grouped = sizes.reshape(-1, group)
    mask = torch.zeros_like(grouped, dtype=torch.bool).scatter_(1, grouped.topk(keep, dim=1).indices, True)
    return mask.reshape(sizes.shape).movedim(-1, 1)
