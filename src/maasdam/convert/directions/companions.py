"""The Hugging Face files that travel with a model. Knows their names; refuses to know what is in them."""

from __future__ import annotations

import shutil
from fnmatch import fnmatch
from pathlib import Path

PATTERNS: tuple[str, ...] = (
    "config.json",
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
    "LICENSE*",
)
"""What describes the processor, the labels and the generation, never the weights."""


def copy_companions(source: Path, out: Path, *, skip: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Copy them flat from `source` into `out`, keeping files that are there already. Returns the names copied."""
    copied = []
    for file in sorted(source.iterdir()):
        name = file.name
        if not file.is_file() or name in skip or (out / name).exists():
            continue
        if any(fnmatch(name, pattern) for pattern in PATTERNS):
            shutil.copyfile(file, out / name)
            copied.append(name)
    return tuple(copied)
