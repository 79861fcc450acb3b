"""Models of transformers that are loaded at once don't spoil one another."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from maasdam.engines.transformers_library import open_module


def test_tied_weights_stay_tied_however_many_models_load(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    tie = PreTrainedModel.tie_weights
    with ThreadPoolExecutor(8) as threads:
        for module in threads.map(open_module, [tmp_path] * 16):
            assert module.lm_head.weight is module.model.embed_tokens.weight
    assert PreTrainedModel.tie_weights is tie
