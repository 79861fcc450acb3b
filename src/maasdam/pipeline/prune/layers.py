"""Which layers a network has, and which may lose outputs. Knows kinds and names of modules; refuses to cut."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maasdam.errors import Unsupported
from maasdam.tasks.files import read_json

if TYPE_CHECKING:
    import torch

EXPANDS = 1.5
"""A linear layer that widens its input so much is a feed-forward layer's first half."""
QUERIES = ("q_proj", "query", "q_lin")
KEYS = ("k_proj", "key", "k_lin")
VALUES = ("v_proj", "value", "v_lin")
OUTPUTS = ("o_proj", "out_proj", "out_lin")
"""What transformers calls the projections of an attention; BERT's output lies beside them, as output.dense."""


@dataclass(frozen=True, slots=True)
class Attention:
    """The four projections of one multi-head attention: [width] to [heads * head size] and back."""

    query: Any
    key: Any
    value: Any
    output: Any


def attentions(model: torch.nn.Module) -> Iterator[Attention]:
    """Every attention whose projections have names of their own."""
    import torch

    linear = {name: m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}

    def first(*names: str) -> Any:
        return next((linear[name] for name in names if name in linear), None)

    for name, query in linear.items():
        folder, _, last = name.rpartition(".")
        if last not in QUERIES:
            continue
        above = folder.rpartition(".")[0]
        key = first(*(f"{folder}.{k}" for k in KEYS))
        value = first(*(f"{folder}.{v}" for v in VALUES))
        output = first(*(f"{folder}.{o}" for o in OUTPUTS), f"{above}.output.dense")
        if key is not None and value is not None and output is not None and output.in_features == query.out_features:
            yield Attention(query, key, value, output)


def layers(model: torch.nn.Module) -> list[Any]:
    """The linear and convolutional layers, in order; GPT-2's Conv1D is none: it stores its weights the other way round."""
    import torch

    return [m for m in model.modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv1d | torch.nn.Conv2d)]


def head(model: torch.nn.Module) -> torch.nn.Module:
    """The layer that gives the logits: the last linear or convolutional one. Raises Unsupported where there is none."""
    found = layers(model)
    if not found:
        raise Unsupported("the model has no linear or convolutional layer to prune")
    last: torch.nn.Module = found[-1]
    return last


def is_transformer(model: torch.nn.Module) -> bool:
    """Whether it attends; a lifted program says so itself."""
    return (
        bool(getattr(model, "attends", False))
        or any(True for _ in attentions(model))
        or any("attention" in type(m).__name__.lower() for m in model.modules())
    )


def feed_forwards(model: torch.nn.Module) -> list[torch.nn.Linear]:
    """The first halves of feed-forward layers: linear layers that widen their input, outside attentions, the last excepted."""
    import torch

    last = head(model)
    busy = {id(m) for a in attentions(model) for m in (a.query, a.key, a.value, a.output)}
    return [
        layer
        for layer in layers(model)
        if isinstance(layer, torch.nn.Linear)
        and layer is not last
        and id(layer) not in busy
        and layer.out_features >= EXPANDS * layer.in_features
    ]


def head_size(model: torch.nn.Module, folder: Path) -> int:
    """Numbers in one attention head, from the config. Raises Unsupported where nothing tells."""
    config = getattr(model, "config", None)
    facts: Any = config.to_dict() if config is not None else read_json(folder / "config.json")
    heads, width = facts.get("num_attention_heads"), facts.get("hidden_size")
    found = facts.get("head_dim") or (width // heads if isinstance(heads, int) and isinstance(width, int) and heads else None)
    if not isinstance(found, int) or found < 1:
        raise Unsupported("nothing tells how wide an attention head is (config.json: num_attention_heads); use targets = 'ffn'")
    return found


def parameters_of(model: torch.nn.Module) -> int:
    """How many parameters a model has; one that two layers share counts once."""
    return sum(p.numel() for p in model.parameters())
