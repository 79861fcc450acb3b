"""Speech recognisers of many families, tiny and random, each a Hugging Face folder as transformers itself writes it.

What they write means nothing; that it is not the same for every recording is what a comparison needs. Sizes that say which
family and which release it is (mel bands, norms, strides, languages, layers that decode) are as in the releases.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

Maker = Callable[[Path], Path]
RATE = 16_000
LETTERS = "efghijklmnopqrstuvwxyzabcd"
WAVES: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, "initializer_range": 0.2,
    "conv_dim": (16,) * 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "vocab_size": 29,
    "pad_token_id": 0,
}  # fmt: skip
"""Strides and kernels are those of the releases: 20 ms a frame."""
BASE: dict[str, Any] = {"feat_extract_norm": "group", "do_stable_layer_norm": False}
LARGE: dict[str, Any] = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}


def _waves(kind: str, masked: bool, **sizes: Any) -> Maker:
    def make(folder: Path) -> Path:
        import transformers as t

        _random(getattr(t, f"{kind}ForCTC"), getattr(t, f"{kind}Config")(**(WAVES | sizes))).save_pretrained(folder)
        t.Wav2Vec2FeatureExtractor(return_attention_mask=masked).save_pretrained(folder)
        return _with_letters(folder)

    return make


def _bert(folder: Path) -> Path:
    import transformers as t

    sizes = {name: WAVES[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")}
    config = t.Wav2Vec2BertConfig(**sizes, output_hidden_size=32, vocab_size=29, pad_token_id=0, initializer_range=0.2)
    _random(t.Wav2Vec2BertForCTC, config).save_pretrained(folder)
    t.SeamlessM4TFeatureExtractor().save_pretrained(folder)
    return _with_letters(folder)


def _parakeet(folder: Path) -> Path:
    import transformers as t
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    pieces = ["<unk>", "▁", *LETTERS, *(f"▁{letter}" for letter in LETTERS), "en", "in", "▁the"]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    t.ParakeetTokenizer(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>").save_pretrained(folder)
    t.ParakeetFeatureExtractor(feature_size=80).save_pretrained(folder)
    encoder = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
        "intermediate_size": 48, "subsampling_conv_channels": 16, "initializer_range": 0.5,
    }  # fmt: skip
    config = t.ParakeetCTCConfig(
        vocab_size=len(pieces) + 1, pad_token_id=len(pieces), encoder_config=encoder, initializer_range=0.2
    )
    _random(t.ParakeetForCTC, config).save_pretrained(folder)
    return folder


def _moonshine(folder: Path) -> Path:
    import transformers as t
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    pieces = ["<unk>", "<s>", "</s>", "▁", *LETTERS, *(f"▁{letter}" for letter in LETTERS)]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    t.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    t.Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True).save_pretrained(folder)
    config = t.MoonshineConfig(
        vocab_size=len(pieces), hidden_size=32, intermediate_size=48, encoder_num_hidden_layers=2, decoder_num_hidden_layers=2,
        encoder_num_attention_heads=2, decoder_num_attention_heads=2, encoder_num_key_value_heads=2,
        decoder_num_key_value_heads=2, initializer_range=0.2, max_position_embeddings=194,
    )  # fmt: skip
    _random(t.MoonshineForConditionalGeneration, config).save_pretrained(folder)
    return folder


CTC: dict[str, Maker] = {
    "wav2vec2, base": _waves("Wav2Vec2", False, **BASE),
    "wav2vec2, large": _waves("Wav2Vec2", True, **LARGE),
    "HuBERT, base": _waves("Hubert", False, **BASE),
    "HuBERT, large": _waves("Hubert", True, **LARGE),
    "WavLM, base": _waves("WavLM", False, num_buckets=32, max_bucket_distance=64, **BASE),
    "WavLM, large": _waves("WavLM", True, num_buckets=32, max_bucket_distance=64, **LARGE),
    "data2vec-audio": _waves("Data2VecAudio", True, num_conv_pos_embeddings=5, conv_pos_kernel_size=3),
    "UniSpeech-SAT": _waves("UniSpeechSat", False, num_codevectors_per_group=4, **BASE),
    "Wav2Vec2-BERT": _bert,
    "Parakeet": _parakeet,
}
"""Families whose frames spell what was said, all at once."""
WRITERS: dict[str, Maker] = {"Moonshine": _moonshine}
"""Families that write token by token."""


def by_transformers(folder: Path, wave: Any) -> tuple[Any, str]:
    """What transformers makes of a recording at 16 kHz: logits [T, V], None of a model that writes, and the transcript."""
    import torch
    from transformers.models.auto.modeling_auto import MODEL_FOR_CTC_MAPPING_NAMES as SPELL

    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    module, extractor, tokenizer = _opened(folder, name)
    inputs = extractor(wave, sampling_rate=RATE, return_tensors="pt")
    with torch.inference_mode():
        if name in SPELL.values():
            logits = module(**inputs).logits[0]
            return logits.numpy(), str(tokenizer.decode(logits.argmax(-1))).strip()
        most = math.ceil(len(wave) / RATE * 13)
        ids = module.generate(**inputs, max_new_tokens=most)[0]
    return None, str(tokenizer.decode(ids, skip_special_tokens=True)).strip()


@cache
def _opened(folder: Path, name: str) -> tuple[Any, Any, Any]:
    import transformers as t

    module: Any = getattr(t, name).from_pretrained(folder, attn_implementation="eager").eval()
    return module, t.AutoFeatureExtractor.from_pretrained(folder), t.AutoTokenizer.from_pretrained(folder)


def _random(kind: Any, config: Any) -> Any:
    """With a head that tells frames apart, and statistics that a network has which saw something."""
    import torch

    torch.manual_seed(0)
    module = kind(config).eval()
    with torch.no_grad():
        for name, part in module.named_modules():
            if name.endswith(("lm_head", "ctc_head", "proj_out")):
                for weight in part.parameters():
                    if weight.ndim > 1:
                        weight.normal_(0, 0.5)
            if isinstance(part, torch.nn.BatchNorm1d):
                part.running_mean.normal_(0, 0.1)
                part.running_var.uniform_(0.5, 1.5)
    return module


def _with_letters(folder: Path) -> Path:
    words = {"<pad>": 0, "|": 1, "<unk>": 2} | {letter: 3 + i for i, letter in enumerate(LETTERS)}
    (folder / "vocab.json").write_text(json.dumps(words))
    said = {"tokenizer_class": "Wav2Vec2CTCTokenizer", "pad_token": "<pad>", "unk_token": "<unk>", "word_delimiter_token": "|"}
    (folder / "tokenizer_config.json").write_text(json.dumps(said | {"bos_token": None, "eos_token": None}))
    return folder
