"""A Hugging Face tokenizer -> openvino_tokenizer.xml and openvino_detokenizer.xml, which OpenVINO GenAI loads."""

from __future__ import annotations

from pathlib import Path

from maasdam.convert.directions.pytorch_to_onnx import quiet_exporter
from maasdam.convert.modules import raising
from maasdam.errors import InvalidModel, Unsupported

TOKENIZER, DETOKENIZER = "openvino_tokenizer.xml", "openvino_detokenizer.xml"


def write_tokenizer(folder: Path, out: Path) -> None:
    """Convert the tokenizer of `folder` into `out`. Raises InvalidModel (none there), Unsupported (its kind)."""
    import openvino as ov
    from openvino_tokenizers import convert_tokenizer
    from transformers import AutoTokenizer

    with raising(InvalidModel, "no tokenizer can be loaded beside the model"):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with raising(Unsupported, "the tokenizer does not convert to OpenVINO"), quiet_exporter():
        models = convert_tokenizer(tokenizer, with_detokenizer=True)
    for model, name in zip(models, (TOKENIZER, DETOKENIZER), strict=True):
        ov.save_model(model, out / name)
