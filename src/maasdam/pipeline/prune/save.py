"""Write a pruned network: in Hugging Face layout where its config can say the new widths, else as a .pt2 program.

Knows configs and exporting. Refuses to know how it was cut.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from maasdam.artifacts.produced import PassFacts, Produced
from maasdam.convert.directions.companions import copy_companions
from maasdam.core import Artifact
from maasdam.errors import Unsupported
from maasdam.pipeline.prune.layers import attentions, head_size

if TYPE_CHECKING:
    import torch


def save(model: torch.nn.Module, source: Artifact, out: Path, facts: dict[str, Any], ffn_widths: set[int]) -> Produced:
    """Write `model`, cut from `source`, into `out`. Raises Unsupported where a language model's config has no words for it."""
    model.eval().requires_grad_(False)
    if source.layout == "huggingface" and _config_says_shapes(model, source, ffn_widths):
        saved: Any = model
        saved.save_pretrained(out, safe_serialization=True)
        copy_companions(source.path, out)
        return Produced("pytorch", "huggingface", source.engine, source.signature, dict(source.settings), PassFacts(facts))
    if source.signature is None:
        raise Unsupported("the config of this language model has no words for the pruned widths; use method = 'magnitude'")
    from maasdam.convert.modules import name_module
    from maasdam.convert.programs import export_module, save_pt2

    program = export_module(name_module(model, source.signature), source.signature, source.path)
    save_pt2(program, str(out / "model.pt2"))
    copy_companions(source.path, out)
    if source.layout == "huggingface":
        facts["layout"] = "pt2: the config has no words for these widths"
    return Produced("pytorch", "pt2", "pytorch", source.signature, dict(source.settings), PassFacts(facts))


def _config_says_shapes(model: torch.nn.Module, source: Artifact, ffn_widths: set[int]) -> bool:
    """Whether a model built from the config fits, after telling it the widths and heads there are now.

    What does not help is taken back.
    """
    config: Any = model.config
    if _builds_alike(model, config):
        return True
    wanted = _words(model, source, ffn_widths)
    before = {name: getattr(config, name) for name in wanted}
    for name, value in wanted.items():
        setattr(config, name, value)
    if _builds_alike(model, config):
        return True
    for name, value in before.items():
        setattr(config, name, value)
    return False


def _words(model: torch.nn.Module, source: Artifact, ffn_widths: set[int]) -> dict[str, int]:
    config: Any = model.config
    found: dict[str, int] = {}
    if len(ffn_widths) == 1 and hasattr(config, "intermediate_size"):
        found["intermediate_size"] = next(iter(ffn_widths))
    heads = list(attentions(model))
    if heads and hasattr(config, "head_dim"):
        size = head_size(model, source.path)
        queries = {a.query.out_features // size for a in heads}
        keys = {a.key.out_features // size for a in heads}
        if len(queries) == len(keys) == 1:
            found |= {"head_dim": size, "num_attention_heads": queries.pop()}
            if hasattr(config, "num_key_value_heads"):
                found["num_key_value_heads"] = keys.pop()
    return found


def _builds_alike(model: torch.nn.Module, config: Any) -> bool:
    import torch

    try:
        with torch.device("meta"):
            fresh: Any = type(model)(config)
    except (ValueError, RuntimeError):  # transformers checks configs in its own words
        return False
    shapes = {name: tensor.shape for name, tensor in fresh.state_dict().items()}
    return shapes == {name: tensor.shape for name, tensor in model.state_dict().items()}
