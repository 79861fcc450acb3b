"""LoRA adapters that are merged: the sums are peft's, and what does not fit, or could run code, is refused in a sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from maasdam.errors import InvalidInput, InvalidModel, MaasdamError, UnsafeModel, Unsupported
from maasdam.sources import lora

LAYER = "model.layers.0.self_attn.q_proj"
A, B = (f"base_model.model.{LAYER}.lora_{one}.weight" for one in "AB")
CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 12, "target_modules": ["q_proj"], "bias": "none"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 32}
    folder = tmp_path_factory.mktemp("base")
    LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=1)).save_pretrained(folder)
    return folder


def _adapter(folder: Path, config: dict[str, Any] | None = None, tensors: dict[str, Any] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    generator = torch.Generator().manual_seed(1)
    made = {A: torch.randn(4, 16, generator=generator), B: torch.randn(16, 4, generator=generator)}
    (folder / lora.CONFIG).write_text(json.dumps(CONFIG | (config or {})))
    save_file(made if tensors is None else tensors, folder / lora.WEIGHTS)
    return folder


@pytest.mark.parametrize(("more", "scale"), [({}, 3.0), ({"use_rslora": True}, 6.0), ({"lora_alpha": 1.0}, 0.25)])
def test_a_merged_model_answers_as_the_model_with_its_adapter_beside_it(
    base: Path, tmp_path: Path, more: dict[str, Any], scale: float
) -> None:
    adapter = lora.read_adapter(_adapter(tmp_path / "adapter", more))
    out = tmp_path / "out"
    out.mkdir()
    lora.merge(base, adapter, out)
    plain, merged = (LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in (base, out))
    ids = torch.arange(12).reshape(1, 12)
    with torch.no_grad():
        before, after = plain(ids).logits, merged(ids).logits
        given = {name: tensor for name, tensor in _tensors(tmp_path / "adapter").items()}
        beside = lambda module, args, answer: answer + scale * (args[0] @ given[A].T @ given[B].T)  # noqa: E731  one line
        plain.model.layers[0].self_attn.q_proj.register_forward_hook(beside)
        wanted = plain(ids).logits
    assert torch.allclose(after, wanted, atol=1e-5) and not torch.allclose(after, before, atol=1e-4)
    other = "model.layers.1.self_attn.q_proj.weight"
    assert torch.equal(merged.state_dict()[other], plain.state_dict()[other])


def _tensors(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return dict(load_file(folder / lora.WEIGHTS))


def _pickle(folder: Path) -> None:
    (folder / lora.WEIGHTS).rename(folder / "adapter_model.bin")


def _no_config(folder: Path) -> None:
    (folder / lora.CONFIG).unlink()


def _cut(folder: Path) -> None:
    data = (folder / lora.WEIGHTS).read_bytes()
    (folder / lora.WEIGHTS).write_bytes(data[:-5])


def _away(folder: Path) -> None:
    (folder / lora.WEIGHTS).unlink()
    (folder / lora.WEIGHTS).symlink_to("/etc/passwd")


Z = torch.zeros
REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any] | Callable[[Path], None] | None, type[MaasdamError], str]] = {
    "a pickle": ({}, _pickle, UnsafeModel, "adapter_model.bin is a pickle"),
    "code": ({"auto_map": {"AutoModel": "evil.Model"}}, None, UnsafeModel, "code of its own"),
    "no config": ({}, _no_config, InvalidModel, "adapter_config.json"),
    "cut off": ({}, _cut, InvalidModel, "fetch it again"),
    "a link out of the folder": ({}, _away, MaasdamError, "."),
    "another type": ({"peft_type": "IA3"}, None, Unsupported, "IA3"),
    "DoRA": ({"use_dora": True}, None, Unsupported, "use_dora"),
    "biases": ({"bias": "all"}, None, Unsupported, "bias"),
    "whole modules": ({"modules_to_save": ["lm_head"]}, None, Unsupported, "modules_to_save"),
    "ranks by layer": ({"rank_pattern": {"q_proj": 8}}, None, Unsupported, "rank_pattern"),
    "rank 0": ({"r": 0}, None, InvalidModel, "r is 0"),
    "rank true": ({"r": True}, None, InvalidModel, "r is True"),
    "a huge rank": ({"r": 10**9}, None, InvalidModel, "r is 1000000000"),
    "another rank than its weights": ({"r": 8}, None, InvalidModel, "not of rank 8"),
    "no scale": ({"lora_alpha": None}, None, InvalidModel, "lora_alpha"),
    "a negative scale": ({"lora_alpha": -1}, None, InvalidModel, "lora_alpha"),
    "half a pair": ({}, {A: Z(4, 16)}, InvalidModel, "half a pair"),
    "nothing": ({}, {}, InvalidModel, "no weights"),
    "three axes": ({}, {A: Z(4, 16, 1), B: Z(16, 4)}, InvalidModel, "not of rank"),
    "embeddings": ({}, {"base_model.model.model.embed_tokens.lora_embedding_A": Z(4, 32)}, Unsupported, "no weight of a plain"),
    "whole weights": ({}, {A: Z(4, 16), B: Z(16, 4), "base_model.model.lm_head.weight": Z(32, 16)}, Unsupported, "lm_head"),
    "a layer that is not there": (
        {}, {A.replace("layers.0", "layers.7"): Z(4, 16), B.replace("layers.0", "layers.7"): Z(16, 4)}, InvalidModel, "has not",
    ),
    "another model's sizes": ({}, {A: Z(4, 64), B: Z(64, 4)}, InvalidModel, "this model's weight is"),
    "turned round": ({"fan_in_fan_out": True}, {A: Z(4, 16), B: Z(24, 4)}, InvalidModel, "this model's weight is"),
    "no numbers": ({}, {A: Z(4, 16) + float("nan"), B: Z(16, 4)}, InvalidModel, "no number"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_an_adapter_that_can_be_none_of_this_model_is_refused(base: Path, tmp_path: Path, what: str) -> None:
    config, given, kind, says = REFUSED[what]
    folder = _adapter(tmp_path / "adapter", config, given if isinstance(given, dict) else None)
    if callable(given):
        given(folder)
    (tmp_path / "out").mkdir()
    with pytest.raises(kind, match=says):
        lora.merge(base, lora.read_adapter(folder), tmp_path / "out")


def test_a_folder_without_weights_of_its_own_takes_no_adapter(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no Hugging Face folder"):
        lora.merge(tmp_path, lora.read_adapter(_adapter(tmp_path / "adapter")), tmp_path)
