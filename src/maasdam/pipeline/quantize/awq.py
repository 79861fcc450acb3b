"""AWQ (Lin et al., 2024): enlarge the weights of large inputs before rounding, shrink those inputs in the layer before.

Knows a Llama-like layer: whose output each linear layer reads. x @ Wᵀ = (x / s) @ (W * s)ᵀ for any s > 0, and rounding
W * s to groups hurts the inputs with large s less. s is searched between the inputs' mean sizes and one; x / s is folded
into what makes x: a norm's weight, or the rows of the linear layer before. After it, each group's range is cut where that
brings the outputs closer. What is closer is judged by the outputs on calibration tokens: tr(D H Dᵀ) with H = mean(xᵀx).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from maasdam.core import Progress
from maasdam.pipeline.quantize.groups import Grid, grid_of, nearest, output_error

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    import torch

    from maasdam.pipeline.quantize.layerwise import Stage

MAKERS = {
    "self_attn.q_proj": "input_layernorm",
    "self_attn.o_proj": "self_attn.v_proj",
    "mlp.gate_proj": "post_attention_layernorm",
    "mlp.down_proj": "mlp.up_proj",
}
"""What makes the input of the linear layers, by the keys of `layerwise.SHARING`."""
POWERS = tuple(i / 20 for i in range(20))
"""s = size ** power; 0 scales nothing."""
SHRINKS = tuple(1 - i / 20 for i in range(11))
"""A group's range, as a share of what its weights span."""
UNCUT = ("self_attn.q_proj", "self_attn.k_proj")
"""Their outputs are multiplied with each other, which a layer's own error says too little of: AWQ leaves their ranges."""


def quantize(
    model: Any, texts: Sequence[Sequence[int]], group: int, kept: torch.dtype, progress: Progress
) -> tuple[dict[str, Grid], dict[str, Any]]:
    """Scale and round the linear layers of a Llama-like `model` in place; their grids by name, and facts for the report.

    `texts` are token ids of the calibration data. Grids are asymmetric, scales exact in `kept`.
    """
    from maasdam.pipeline.quantize.layerwise import SHARING, walk

    grids: dict[str, Grid] = {}
    errors = {"awq": 0.0, "round_to_nearest": 0.0}
    pairs = {"scaled": 0, "left": 0}
    for stage in walk(model, texts, progress):
        scales = {first: _search(stage, first, group, kept) for first in SHARING}
        plain = {n: stage.linear(n).weight.data.clone() for names in SHARING.values() for n in names}
        for first, s in scales.items():
            pairs["left" if s is None else "scaled"] += 1
            if s is not None:
                _fold(stage, first, s)
        for first, names in SHARING.items():
            gram, s = stage.seen[first].gram, scales[first]
            scaled = gram if s is None else gram / (s[:, None] * s[None, :])
            for name in names:
                linear = stage.linear(name)
                grid = cut(linear.weight.data, scaled, group, kept, SHRINKS[:1] if name in UNCUT else SHRINKS)
                rounded = grid.round(linear.weight.data)
                rtn = grid_of(plain[name], group, kept, is_symmetric=False).round(plain[name])
                errors["awq"] += _error_of_folded(stage, name, rounded - linear.weight.data, scaled, scales)
                errors["round_to_nearest"] += output_error(rtn - plain[name], gram)
                linear.weight.data = rounded
                grids[f"{stage.name}.{name}"] = grid
    return grids, {"output_error": errors, "scales": pairs}


def _search(stage: Stage, first: str, group: int, kept: torch.dtype) -> torch.Tensor | None:
    """The scales [in] of the linear layers that share this input; None where their maker can't take them, or none helps."""
    import torch

    from maasdam.pipeline.quantize.layerwise import SHARING

    seen = stage.seen[first]
    maker = stage.module.get_submodule(MAKERS[first])
    if maker.weight.shape[0] != len(seen.size):
        return None  # grouped queries: one value feeds several heads, so their inputs can't be scaled apart
    weights = [stage.linear(name).weight.data for name in SHARING[first]]
    best, chosen = None, None
    for power in POWERS:
        s = seen.size.clamp_min(1e-4) ** power
        s = s / torch.sqrt(s.max() * s.min())
        error = 0.0
        for weight in weights:
            near = grid_of(weight * s, group, kept, is_symmetric=False).round(weight * s) / s
            error += output_error(near - weight, seen.gram)
        if best is None or error < best:
            best, chosen = error, (s if power else None)
    return chosen


def _fold(stage: Stage, first: str, s: torch.Tensor) -> None:
    """Multiply the columns of the linear layers by `s` [in], and divide what makes their input by it."""
    from maasdam.pipeline.quantize.layerwise import SHARING

    for name in SHARING[first]:
        linear = stage.linear(name)
        linear.weight.data = linear.weight.data * s
    maker = stage.module.get_submodule(MAKERS[first])
    maker.weight.data = maker.weight.data / (s if maker.weight.ndim == 1 else s[:, None])
    if getattr(maker, "bias", None) is not None:
        maker.bias.data = maker.bias.data / s


def cut(weight: torch.Tensor, gram: torch.Tensor, group: int, kept: torch.dtype, shrinks: Sequence[float]) -> Grid:
    """The grid whose groups span the share of their weights, among `shrinks`, that moves the outputs least.

    weight [out, in]; gram [in, in]. Each group is judged alone, by its own block of `gram`.
    """
    import torch

    rows, columns = weight.shape
    grouped = weight.reshape(rows, columns // group, group)
    numbers = torch.arange(columns // group)
    blocks = gram.reshape(len(numbers), group, len(numbers), group)[numbers, :, numbers, :]  # [groups, group, group]
    best = torch.full((rows, len(numbers), 1), torch.inf)
    shrink = torch.ones_like(best)
    for share in shrinks:
        grid = grid_of(weight, group, kept, is_symmetric=False, shrink=share)
        change = nearest(grouped, grid.scales[:, :, None], grid.zeros[:, :, None]) - grouped
        error = (torch.einsum("rgi,gij->rgj", change, blocks) * change).sum(2, keepdim=True)
        is_better = error < best
        best, shrink = torch.where(is_better, error, best), torch.where(is_better, share, shrink)
    return grid_of(weight, group, kept, is_symmetric=False, shrink=shrink)


def _error_of_folded(
    stage: Stage, name: str, change: torch.Tensor, gram: torch.Tensor, scales: dict[str, torch.Tensor | None]
) -> float:
    """`output_error` in the units of the unscaled layer: rows that a later layer's scales were folded into are scaled back."""
    later = next((scales[first] for first, maker in MAKERS.items() if maker == name), None)
    return output_error(change if later is None else change * later[:, None], gram)
