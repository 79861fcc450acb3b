"""A tiny Whisper with a byte tokenizer, random but fixed, as a Hugging Face folder and for CTranslate2. It babbles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from maasdam.core import Artifact

TASK = "automatic-speech-recognition"


Said = tuple[float, str, float]
"""When it begins, the text, when it ends."""


def huggingface(folder: Path, says: tuple[Said, ...] = (), languages: tuple[str, ...] = ()) -> Artifact:
    """Config, safetensors, feature extractor and tokenizer; with `languages` it is a multilingual one's.

    With `says` it writes that, whatever it hears, by what its positions hold; how sure it is depends on what it hears.
    """
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperTokenizer,
    )

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    alphabet += [""] if languages else []  # a token that multilingual Whispers have, by which CTranslate2 tells them
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|startoftranscript|>", "<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>"]
    special += [*(f"<|{code}|>" for code in languages), "<|nospeech|>", "<|notimestamps|>"]
    tokenizer.add_special_tokens([AddedToken(s, special=True) for s in special])
    tokenizer.add_tokens([AddedToken(f"<|{i * 0.02:.2f}|>") for i in range(1501)])
    WhisperTokenizer(tokenizer_object=tokenizer).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    WhisperFeatureExtractor().save_pretrained(folder)
    at = {s: tokenizer.token_to_id(s) for s in special}
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=tokenizer.get_vocab_size(),
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_target_positions=448,
        decoder_start_token_id=at["<|startoftranscript|>"],
        bos_token_id=at["<|endoftext|>"],
        eos_token_id=at["<|endoftext|>"],
        pad_token_id=at["<|endoftext|>"],
        init_std=0.3,
    )
    module = WhisperForConditionalGeneration(config).eval()
    if says:
        written: list[int] = []
        for begins, text, ends in says:
            times = [tokenizer.token_to_id(f"<|{at_:.2f}|>") for at_ in (begins, ends)]
            written += [times[0], *tokenizer.encode(text, add_special_tokens=False).ids, times[1]]
        _write(module.model.decoder, [*written, at["<|endoftext|>"]])
    module.generation_config = GenerationConfig(
        decoder_start_token_id=at["<|startoftranscript|>"],
        eos_token_id=at["<|endoftext|>"],
        pad_token_id=at["<|endoftext|>"],
        no_timestamps_token_id=at["<|notimestamps|>"],
        max_initial_timestamp_index=50,
        is_multilingual=bool(languages),
        max_length=60,
        **(
            {"lang_to_id": {f"<|{code}|>": tokenizer.token_to_id(f"<|{code}|>") for code in languages}}
            | {"task_to_id": {task: at[f"<|{task}|>"] for task in ("transcribe", "translate")}}
            if languages
            else {}
        ),
    )
    module.save_pretrained(folder)
    return Artifact("sha256:whisper", folder, "pytorch", "huggingface", TASK, "transformers", None, 1)


def _write(decoder: Any, tokens: list[int]) -> None:
    """Make each position's largest score that of its token."""
    import torch

    with torch.no_grad():
        words, places = decoder.embed_tokens.weight, decoder.embed_positions.weight
        words[tokens[-1]] = words[tokens[0]].flip(0)  # the end is the padding too, and begins as zeros
        words.mul_(3)
        for place, token in enumerate(tokens):
            places[place] = 4 * words[token]
        for layer in decoder.layers:
            for last in (layer.self_attn.out_proj, layer.encoder_attn.out_proj, layer.fc2):
                last.weight.mul_(0.2)


def ctranslate2(source: Artifact, folder: Path) -> Artifact:
    """The same model for CTranslate2."""
    from ctranslate2.converters import TransformersConverter

    converter = TransformersConverter(str(source.path), copy_files=["tokenizer.json", "preprocessor_config.json"])
    converter.convert(str(folder), force=True)
    return Artifact("sha256:ct2", folder, "pytorch", "ctranslate2", TASK, "ctranslate2", None, 1)
