"""Tiny encoders of texts with random weights, as Hugging Face folders, and what transformers itself says of texts."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = "the a cat dog sat on mat runs fast slow red green blue house river who what where is in paris london city big small"
VOCABULARY = [*SPECIAL, *WORDS.split(), "##s", "##ing", ".", ",", "?"]
LONGEST = 24
TEXTS = [
    "the cat sat on the mat", "a dog", "the river is big .", "who runs the house ?", "london is a big city",
    "paris is small", "the red cat sat", "blue dogs sat on the big red mat in the house", "where is the river ?",
    "what runs slow",
]  # fmt: skip
_SIZES: dict[str, Any] = {
    "vocab_size": len(VOCABULARY), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": LONGEST + 2, "initializer_range": 0.3, "pad_token_id": 0,
}  # fmt: skip
_ENDS = {"bos_token_id": 2, "eos_token_id": 3}
KINDS: dict[str, dict[str, Any]] = {
    "Bert": {},
    "Roberta": {"type_vocab_size": 1, **_ENDS},
    "DistilBert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24},
    "MPNet": _ENDS,
    "ModernBert": {"cls_token_id": 2, "sep_token_id": 3, "global_attn_every_n_layers": 2, "local_attention": 8, **_ENDS},
    "DebertaV2": {
        "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8, "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
    },
}  # fmt: skip


def make(folder: Path, kind: str = "Bert", head: str = "Model", **config: Any) -> Any:
    """Write one, and give its module."""
    import torch
    import transformers

    torch.manual_seed(0)
    settings = {**_SIZES, **KINDS[kind], **config}
    if kind == "DistilBert":
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
            settings.pop(name)
    module = getattr(transformers, f"{kind}{head}")(getattr(transformers, f"{kind}Config")(**settings)).eval()
    module.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return module


def tokenizer() -> Any:
    """Of words, in pieces as BERT has them."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    made: Any = Tokenizer(models.WordPiece({word: i for i, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, model_max_length=LONGEST, model_input_names=inputs, **names
    )


def sentences(
    folder: Path, *modules: tuple[str, dict[str, Any], dict[str, Any]], prompts: dict[str, str] | None = None
) -> None:
    """Make a sentence-transformers folder of one: (kind, config, tensors) of what comes behind the encoder."""
    from safetensors.numpy import save_file

    listed = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    for i, (kind, config, tensors) in enumerate(modules, 1):
        under = folder / f"{i}_{kind}"
        under.mkdir()
        (under / "config.json").write_text(json.dumps(config))
        if tensors:
            save_file(tensors, under / "model.safetensors")
        listed.append({"idx": i, "name": str(i), "path": under.name, "type": f"sentence_transformers.models.{kind}"})
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "config_sentence_transformers.json").write_text(
        json.dumps({"prompts": prompts or {}, "default_prompt_name": None})
    )


def padded(module: Any, texts: list[Any], **more: Any) -> tuple[Any, Any]:
    """What transformers says to texts, or pairs, as one padded batch at float32: (its answer, the mask)."""
    import torch

    asked = tokenizer()(texts, return_tensors="pt", padding=True, truncation=True, **more)
    takes = inspect.signature(module.forward).parameters
    with torch.no_grad():
        answer = module(**{name: value for name, value in asked.items() if name in takes})
    return answer, asked["attention_mask"]
