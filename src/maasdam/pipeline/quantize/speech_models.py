"""Whisper in fewer bits, for CTranslate2. Knows what CTranslate2 keeps weights in and computes with; nothing of audio."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maasdam.artifacts.produced import Produced
from maasdam.convert.directions.companions import copy_companions
from maasdam.convert.modules import called, is_whisper
from maasdam.core import Artifact
from maasdam.errors import Unsupported
from maasdam.pipeline.passes import PassContext

KEPT: dict[str, tuple[str, str]] = {
    "weights-int8": ("int8", "f32"),
    "dynamic-int8": ("int8", "int8"),
    "bf16": ("bfloat16", "bf16"),
    "fp16": ("float16", "f32"),
}
"""Scheme -> what CTranslate2 keeps weights in, and the engine's precision: processors have no arithmetic in float16."""


def weights(source: Artifact, out: Path, settings: Mapping[str, Any], context: PassContext) -> Produced:
    """Write `source`, a Hugging Face Whisper, with its weights in fewer bits. Raises Unsupported for every other model."""
    from maasdam.convert.directions.whisper_to_ctranslate2 import write

    if source.layout != "huggingface" or not is_whisper(source):
        raise Unsupported(
            f"{called(source)} ({source.layout}) is not quantised: of models that hear and write by themselves only a Whisper "
            "in Hugging Face layout is"
        )
    kept, precision = KEPT[settings["scheme"]]
    write(source, out, kept)
    copy_companions(source.path, out)
    return Produced("pytorch", "ctranslate2", "ctranslate2", None, {"precision": precision})
