"""Which engines there are, what files each opens, and how one is opened.

Knows layouts and engine names. Refuses to know tasks, payloads and HTTP; each engine's library is imported only when
that engine is opened.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from maasdam.core import TEXT_GENERATION, Artifact, Engine, Layout
from maasdam.engines.processor import available_threads
from maasdam.errors import InvalidInput, Unsupported


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """One engine: the module that has its `open`, the layouts it takes, the libraries it needs."""

    name: str
    module: str
    kind: Literal["tensor", "sequence"]
    layouts: tuple[Layout, ...]
    libraries: tuple[str, ...]
    """Import names of what it needs."""
    extra: str | None
    """The extra that brings them; None is part of the core."""
    devices: tuple[str, ...]


ENGINES: dict[str, EngineInfo] = {
    info.name: info
    for info in (
        EngineInfo("onnxruntime", "onnxruntime_engine", "tensor", ("onnx",), ("onnxruntime",), None, ("cpu", "cuda")),
        EngineInfo("openvino", "openvino_engine", "tensor", ("ir", "onnx", "savedmodel"), ("openvino",), None, ("cpu", "gpu")),
        EngineInfo(
            "pytorch", "pytorch_engine", "tensor", ("huggingface", "pt2", "torchscript"), ("torch",), "pytorch", ("cpu", "cuda")
        ),
        EngineInfo(
            "tensorflow", "tensorflow_engine", "tensor", ("savedmodel", "keras"), ("tensorflow",), "tensorflow", ("cpu", "cuda")
        ),
        EngineInfo(
            "openvino-genai",
            "genai_engine",
            "sequence",
            ("genai",),
            ("openvino", "openvino_genai", "openvino_tokenizers"),
            None,
            ("cpu",),
        ),
        EngineInfo(
            "transformers",
            "transformers_engine",
            "sequence",
            ("huggingface",),
            ("torch", "transformers"),
            "pytorch",
            ("cpu", "cuda"),
        ),
        EngineInfo(
            "ctranslate2",
            "whisper_engine",
            "sequence",
            ("ctranslate2",),
            ("ctranslate2", "faster_whisper"),
            "speech",
            ("cpu", "cuda"),
        ),
    )
}

_PREFERRED: dict[str, tuple[str, ...]] = {
    "huggingface": ("pytorch", "transformers"),
    "pt2": ("pytorch",),
    "torchscript": ("pytorch",),
    "onnx": ("onnxruntime", "openvino"),
    "savedmodel": ("tensorflow", "openvino"),
    "keras": ("tensorflow",),
    "ir": ("openvino",),
    "genai": ("openvino-genai",),
    "ctranslate2": ("ctranslate2",),
}


def engines_for(layout: str, task: str | None = None) -> tuple[str, ...]:
    """The engines that open `layout`, the one that runs it "as it is" first. () for an unknown layout."""
    names = _PREFERRED.get(layout, ())
    if layout == "huggingface" and task == TEXT_GENERATION:
        return ("transformers",)
    return names


def in_force(
    artifact: Artifact, *, device: str | None = None, threads: int = 0, settings: Mapping[str, Any] | None = None
) -> tuple[str, dict[str, Any]]:
    """The device and the settings that `open_engine` opens `artifact` with when it is given the same."""
    merged = {**artifact.settings, **(settings or {})}
    asked = (settings or {}).get("threads") or threads or artifact.settings.get("threads") or available_threads()
    return device or str(merged.get("device") or "cpu"), merged | {"threads": asked}


def open_engine(
    artifact: Artifact, *, device: str | None = None, threads: int = 0, settings: Mapping[str, Any] | None = None
) -> Engine:
    """Open `artifact` with the engine it names.

    `settings` override the artifact's own; `device` None is the artifact's, "cpu" where it names none; `threads` overrides
    its "threads" (0: the artifact's, else every core).
    Raises Unsupported (no such engine, layout or device), MissingExtra, InvalidModel (the files don't load).
    """
    device, merged = in_force(artifact, device=device, threads=threads, settings=settings)
    info = ENGINES.get(artifact.engine)
    if info is None:
        raise Unsupported(f"no engine '{artifact.engine}'; the engines are: {', '.join(ENGINES)}")
    if artifact.layout not in info.layouts:
        can = ", ".join(engines_for(artifact.layout)) or "none"
        raise Unsupported(f"engine {info.name} doesn't open layout '{artifact.layout}'; engines that do: {can}")
    if device not in info.devices:
        raise Unsupported(f"engine {info.name} runs on {' or '.join(info.devices)} here, not on '{device}'")
    asked = merged["threads"]
    if not isinstance(asked, int) or isinstance(asked, bool) or asked < 1:
        raise InvalidInput(f"setting 'threads' is {asked!r}; it takes a whole number, at least 1")
    module = importlib.import_module(f"maasdam.engines.{info.module}")
    return cast(Engine, module.open(artifact, device, merged))
