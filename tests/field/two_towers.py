"""Tiny models of pictures and texts with random weights, as Hugging Face folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_TEXT = "this is a photo of cat dog red green blue the big small car . !"
WORDS = ["<|endoftext|>", "<|startoftext|>", *_TEXT.split()]
LONGEST = {"CLIP": 16, "Siglip": 64}
SEES = {"num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}
_SIZES: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


def make(folder: Path, kind: str = "CLIP") -> Any:
    """Write one ("CLIP" or "Siglip"), and give its module."""
    import torch
    import transformers

    torch.manual_seed(0)
    reads = _SIZES | {"vocab_size": len(WORDS), "max_position_embeddings": LONGEST[kind], "initializer_range": 0.3}
    reads |= {"eos_token_id": 0, "bos_token_id": 1, "pad_token_id": 0}
    joint = {"projection_dim": 12} if kind == "CLIP" else {}
    config = getattr(transformers, f"{kind}Config")(
        text_config=reads | joint, vision_config=_SIZES | SEES | joint | {"initializer_range": 0.3}, **joint
    )
    module = getattr(transformers, f"{kind}Model")(config).eval()
    if kind == "Siglip":
        module.logit_scale.data.fill_(1.0)
        module.logit_bias.data.fill_(-0.5)
    module.save_pretrained(folder)
    tokenizer(kind).save_pretrained(folder)
    edge = {"height": 16, "width": 16}
    own = {"size": {"shortest_edge": 16}, "crop_size": edge} if kind == "CLIP" else {"size": edge}
    getattr(transformers, f"{kind}ImageProcessorPil")(**own).save_pretrained(folder)
    return module


def tokenizer(kind: str) -> Any:
    """Of words. SigLIP's puts nothing before a text, and gives no mask."""
    import transformers
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    begin, end = WORDS[1], WORDS[0]
    made: Any = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="!"))
    made.normalizer, made.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}" if kind == "CLIP" else f"$A {end}", special_tokens=[(begin, 1), (end, 0)]
    )
    inputs = ["input_ids", "attention_mask"] if kind == "CLIP" else ["input_ids"]
    names = {"bos_token": begin, "eos_token": end, "pad_token": end, "unk_token": "!"}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, model_max_length=LONGEST[kind], model_input_names=inputs, **names
    )
