"""Hugging Face Whisper -> CTranslate2 folder, weights at float32 or in fewer bits. Knows CTranslate2's converter, not audio."""

from __future__ import annotations

from pathlib import Path

from maasdam.convert.directions.pytorch_to_onnx import quiet_exporter
from maasdam.convert.modules import raising
from maasdam.core import Artifact
from maasdam.errors import InvalidModel, Unsupported, from_extra

COPIED = ("tokenizer.json", "preprocessor_config.json")
"""What faster-whisper reads beside the model."""


def write(source: Artifact, out: Path, kept: str | None = None) -> None:
    """Write model.bin, config.json and the vocabulary into `out`. A model that generates has no signature of tensors.

    `kept` is CTranslate2's word for what weights are kept in ("int8", "bfloat16", "float16"); None is float32.
    """
    with from_extra("speech", "ctranslate2"):
        from ctranslate2.converters import TransformersConverter
    missing = [name for name in COPIED if not (source.path / name).is_file()]
    if missing:
        raise InvalidModel(f"the folder lacks {' and '.join(missing)}; Whisper needs its tokenizer and its feature extractor")
    with raising(Unsupported, "CTranslate2 can't convert this Whisper"), quiet_exporter():
        converter = TransformersConverter(str(source.path), copy_files=list(COPIED), trust_remote_code=False)
        converter.convert(str(out), force=True, quantization=kept)
