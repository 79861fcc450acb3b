"""The Hugging Face files that travel with a model. Knows their names; refuses to know what is in them."""

from __future__ import annotations

import shutil
from fnmatch import fnmatch
from pathlib import Path

from maasdam.tasks.custom_code import CODE

PATTERNS: tuple[str, ...] = (
    "config.json",
    "detection.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "feature_extractor_config.json",
    "tokenizer*.json",
    "tokenizer*.model",
    "sentencepiece*.model",
    "spiece.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*.json",
    "vocab*.txt",
    "merges.txt",
    "normalizer.json",
    "chat_template*.j*",
    "modules.*",
    "sentence_*_config.json",
    "config_sentence_transformers.json",
    CODE,
    "likeness.json",
    "LICENSE*",
)
"""What describes the processor, the labels and the generation, never the weights."""


def copy_companions(source: Path, out: Path) -> None:
    """Copy them flat from `source` into `out`, keeping files that are there already."""
    for file in source.iterdir():
        is_one = file.is_file() and any(fnmatch(file.name, pattern) for pattern in PATTERNS)
        if is_one and not (out / file.name).exists():
            shutil.copyfile(file, out / file.name)
