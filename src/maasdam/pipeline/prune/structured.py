"""Cut whole channels, attention heads and hidden units of feed-forward layers. Knows torch-pruning; never files or training.

channels   the outputs of convolutional (and hidden linear) layers, with everything that depends on them
heads      whole attention heads; where several query heads share one key head, they go together
ffn        hidden units between the two halves of a feed-forward layer
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maasdam.errors import Unsupported, from_extra
from maasdam.pipeline.prune.layers import Attention, attentions, feed_forwards, head, head_size, is_transformer, layers
from maasdam.pipeline.training import logits_of

if TYPE_CHECKING:
    import torch

TARGETS = ("auto", "channels", "heads", "ffn", "heads+ffn")
ROUND_TO = (8, 4, 2)
"""Widths stay multiples of the first of these that cuts the narrowest layer no further than twice the ratio."""


def prune_structured(
    model: torch.nn.Module, example: Mapping[str, torch.Tensor], ratio: float, targets: str, folder: Path, round_to: int = 0
) -> dict[str, Any]:
    """Cut `ratio` of what `targets` names, the least by weight magnitude, and say what was cut.

    `example` is one input, batch 1, by name. Widths stay multiples of `round_to`, rounded down; 0 chooses. Raises Unsupported
    where nothing can be cut, or the network does not run afterwards.
    """
    import torch

    if targets == "auto":
        targets = "ffn" if is_transformer(model) else "channels"
    if targets == "channels" and is_transformer(model):
        raise Unsupported(
            "targets = 'channels' is for convolutional networks; this one attends: use 'heads', 'ffn' or 'heads+ffn'"
        )
    if targets != "channels" and not is_transformer(model):
        raise Unsupported(f"targets = '{targets}' is for transformers; this network has no attention: use 'channels'")
    cut: dict[str, Any] = {"targets": targets}
    model.requires_grad_(True)  # torch-pruning follows the gradients' graph
    if "heads" in targets:
        cut["heads"] = _prune_heads(model, ratio, head_size(model, folder))
    if targets == "channels":
        _prune_widths(model, example, ratio, keep=[head(model)], round_to=round_to)
    elif "ffn" in targets:
        chosen = feed_forwards(model)
        if not chosen:
            raise Unsupported("no feed-forward layer was found: none of its linear layers widens its input")
        cut["ffn_layers"] = len(chosen)
        _prune_widths(model, example, ratio, keep=_all_but(model, chosen), round_to=round_to)
    try:
        with torch.no_grad():
            model(**example)
    except (RuntimeError, ValueError) as error:
        raise Unsupported(f"the network does not run when {targets} are cut: its shapes are fixed ({error})") from error
    return cut


def _prune_heads(model: torch.nn.Module, ratio: float, size: int) -> list[int]:
    """[heads before, heads after] of one attention, counted as key heads; every attention loses as many."""
    found = list(attentions(model))
    if not found:
        raise Unsupported("no attention was found whose projections have names of their own; use targets = 'ffn'")
    before = [a.key.out_features // size for a in found]
    gone = int(ratio * min(before))
    if gone < 1:
        raise Unsupported(f"no attention head could be cut at ratio {ratio:g}: the fewest there are is {min(before)}")
    for attention in found:
        _cut_heads(attention, size, gone)
    return [min(before), min(before) - gone]


def _cut_heads(attention: Attention, size: int, count: int) -> None:
    """Take out the `count` key heads, with the query heads that read them, whose weights are the smallest."""
    import torch_pruning as tp

    keys = attention.key.out_features // size
    shared = attention.query.out_features // size // keys

    def energy(weight: torch.Tensor) -> torch.Tensor:
        return weight.detach().float().square().reshape(keys, -1).sum(1)

    matter = sum(energy(layer.weight) for layer in (attention.query, attention.key, attention.value))
    matter = matter + energy(attention.output.weight.t().contiguous())
    gone = sorted(int(i) for i in matter.argsort()[:count])
    rows = [i for h in gone for i in range(h * size, (h + 1) * size)]
    wide = [i for h in gone for i in range(h * size * shared, (h + 1) * size * shared)]
    tp.prune_linear_out_channels(attention.query, wide)
    for layer in (attention.key, attention.value):
        tp.prune_linear_out_channels(layer, rows)
    tp.prune_linear_in_channels(attention.output, wide)


def _prune_widths(
    model: torch.nn.Module, example: Mapping[str, torch.Tensor], ratio: float, keep: list[torch.nn.Module], round_to: int
) -> None:
    """Cut `ratio` of the outputs of every layer but those of `keep`, and whatever depends on them, by group magnitude."""
    with from_extra("build", "torch-pruning"):
        import torch_pruning as tp
    before = _widths(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it names parameters that no layer owns; none of them is as wide as what is cut
        pruner = tp.pruner.BasePruner(
            model,
            dict(example),
            importance=tp.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=ratio,
            ignored_layers=keep,
            round_to=round_to or _round_to(model, keep, ratio),
            forward_fn=lambda m, inputs: logits_of(m(**inputs)),
        )
        pruner.step()
    if _widths(model) == before:
        raise Unsupported(
            f"nothing could be pruned at ratio {ratio:g}: no layer is wide enough to lose a channel; use a larger ratio"
        )


def _widths(model: torch.nn.Module) -> list[int]:
    return [int(layer.weight.shape[0]) for layer in layers(model)]


def _all_but(model: torch.nn.Module, chosen: list[torch.nn.Linear]) -> list[torch.nn.Module]:
    import torch

    kept: list[torch.nn.Module] = [m for m in model.modules() if isinstance(m, torch.nn.Embedding)]
    return kept + [layer for layer in layers(model) if all(layer is not c for c in chosen)]


def _round_to(model: torch.nn.Module, kept: list[torch.nn.Module], ratio: float) -> int:
    """Vector units like round widths, but the pruner rounds down: a narrow layer would lose far more than was asked."""
    widths = [int(layer.weight.shape[0]) for layer in layers(model) if all(layer is not k for k in kept)]
    return next((size for size in ROUND_TO if size <= ratio * min(widths, default=0)), 1)
