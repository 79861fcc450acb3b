"""The files of a model, and how they lie. Knows names; refuses to open them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from maasdam.core.task_names import SPEECH_RECOGNITION
from maasdam.core.tensors import Signature

Format = Literal["pytorch", "onnx", "tensorflow", "openvino", "gguf", "upstream"]
FORMATS: tuple[Format, ...] = ("pytorch", "onnx", "tensorflow", "openvino")
"""Those that are converted to. GGUF is served as it is; "upstream" is no format of files: another server has them."""

Layout = Literal[
    "huggingface",  # config.json + model.safetensors, transformers builds the module        (pytorch)
    "pt2",  # model.pt2, torch.export                                                         (pytorch)
    "torchscript",  # model.pt                                                                (pytorch)
    "onnx",  # model.onnx [+ external data]                                                   (onnx)
    "savedmodel",  # saved_model.pb + variables/                                              (tensorflow)
    "keras",  # model.keras                                                                   (tensorflow)
    "ir",  # model.xml + model.bin                                                            (openvino)
    "genai",  # openvino_model.xml/.bin, openvino_(de)tokenizer.xml: OpenVINO GenAI           (openvino)
    "ctranslate2",  # model.bin + vocabulary: CTranslate2 (Whisper)                           (pytorch)
    "gguf",  # model.gguf, with tokenizer and chat template in it: llama.cpp                  (gguf)
    "upstream",  # upstream.json: where a server is that runs it                              (upstream)
]
"""How the files of an artifact lie in its folder. Each layout belongs to one format."""

CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length", "n_ctx")
"""What config.json may call the most tokens of a text, the first there is."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """Immutable files in one folder, with what is known of them.

    The folder is self-sufficient: model files and, flat beside them, the Hugging Face files that describe the
    processor (config.json with id2label, preprocessor_config.json, tokenizer files, chat template).
    """

    digest: str
    """"sha256:<hex>" over the names and bytes of the files and over every field below but `parents`."""
    path: Path
    format: Format
    layout: Layout
    task: str | None
    engine: str
    """The engine that runs it: onnxruntime, openvino, pytorch, tensorflow, openvino-genai, transformers, ctranslate2."""
    signature: Signature | None
    """None for sequence engines, which take no plain batch of tensors."""
    size_bytes: int
    """All files needed to serve."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Engine settings chosen at build time, e.g. {"precision": "f32", "threads": 2}."""
    parents: tuple[str, ...] = ()
    """Digests this one was made from, nearest first."""

    @property
    def writes_speech(self) -> bool:
        """Whether its engine hears and writes by itself (Whisper), instead of giving scores that are decoded (CTC)."""
        return self.task == SPEECH_RECOGNITION and self.signature is None
