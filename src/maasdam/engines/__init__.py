"""Which engines there are, what files each opens, and how one is opened.

Knows layouts and engine names. Refuses to know tasks, payloads and HTTP; each engine's library is imported only when
that engine is opened.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, cast

from maasdam.core import Artifact, Engine, Layout
from maasdam.engines import options as deployed
from maasdam.engines.processor import available_threads
from maasdam.errors import InvalidInput, Unsupported


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """One engine: all that is known of it before its library is imported."""

    name: str
    module: str
    """The module of this room that has its `open(artifact, device, settings)`."""
    kind: Literal["tensor", "sequence"]
    layouts: tuple[Layout, ...]
    """What it opens, what it is best at first."""
    libraries: tuple[str, ...]
    """Import names of what it needs."""
    devices: tuple[str, ...]
    probe: str
    """Python that imports its libraries and prints the devices they see."""
    extra: str | None = None
    """The extra that brings the libraries; None is part of the core."""
    may_import_transformers: bool = False
    holds_forms: bool = False
    """Whether it can hold answers to a JSON schema, an expression or a grammar."""
    likeliest: int = 0
    """How many of the likeliest tokens it tells beside each of a text, whatever chose that."""
    options: tuple[str, ...] = ()
    """Of OPTIONS: what a deployment may ask of it."""


_TORCH = "import {}; print('cpu', *(['cuda'] if torch.cuda.is_available() else []))"
_CUDA = ("cpu", "cuda")
# fmt: off
ENGINES: dict[str, EngineInfo] = {
    info.name: info
    for info in (
        EngineInfo("onnxruntime", "onnxruntime_engine", "tensor", ("onnx",), ("onnxruntime",), _CUDA,
                   "import onnxruntime as o; print(*[p[:-17].lower() for p in o.get_available_providers()])"),
        EngineInfo("openvino", "openvino_engine", "tensor", ("ir", "onnx", "savedmodel"), ("openvino",), ("cpu", "gpu"),
                   "import openvino as o; print(*[d.lower() for d in o.Core().available_devices])"),
        EngineInfo("pytorch", "pytorch_engine", "tensor", ("huggingface", "pt2", "torchscript"), ("torch",), _CUDA,
                   _TORCH.format("torch"), extra="pytorch", may_import_transformers=True),
        EngineInfo("tensorflow", "tensorflow_engine", "tensor", ("savedmodel", "keras"), ("tensorflow",), _CUDA,
                   "import tensorflow as t; print(*[d.device_type.lower() for d in t.config.list_physical_devices()])",
                   extra="tensorflow"),
        EngineInfo("openvino-genai", "genai_engine", "sequence", ("genai",),
                   ("openvino", "openvino_genai", "openvino_tokenizers"), ("cpu",),
                   "import openvino_genai, openvino_tokenizers; print('cpu')", holds_forms=True,
                   options=("prefix_cache", "prompt_lookup", "logprobs")),
        EngineInfo("transformers", "transformers_engine", "sequence", ("huggingface",), ("torch", "transformers"), _CUDA,
                   _TORCH.format("torch, transformers"), extra="pytorch", may_import_transformers=True, likeliest=20,
                   options=("logprobs",)),
        EngineInfo("ctranslate2", "whisper_engine", "sequence", ("ctranslate2",), ("ctranslate2", "faster_whisper"), _CUDA,
                   "import ctranslate2 as c, faster_whisper; print('cpu', *(['cuda'] if c.get_cuda_device_count() else []))",
                   extra="speech"),
    )
}
# fmt: on
"""Every engine. Of two that are as good at a layout the first is preferred."""
HOLD_FORMS = frozenset(info.name for info in ENGINES.values() if info.holds_forms)


def engines_for(layout: str, *, has_signature: bool = True) -> tuple[str, ...]:
    """The engines that open `layout`, the one that runs it "as it is" first. () for an unknown layout.

    Without a signature, which no tensors can be told by, those that take sequences come before the others.
    """
    able = [info for info in ENGINES.values() if layout in info.layouts]
    able.sort(key=lambda info: (not has_signature and info.kind == "tensor", info.layouts.index(cast(Layout, layout))))
    return tuple(info.name for info in able)


def installed_version(library: str) -> str | None:
    """The version of a library by the name it is imported by; its packages are named after what they run on, too."""
    for package in (library, f"{library}-gpu", f"{library}-cpu"):
        with suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(package)
    return None


def in_force(
    artifact: Artifact, *, device: str | None = None, threads: int = 0, settings: Mapping[str, Any] | None = None
) -> tuple[str, dict[str, Any]]:
    """The device and the settings that `open_engine` opens `artifact` with when it is given the same."""
    merged = {**artifact.settings, **(settings or {})}
    count = (settings or {}).get("threads") or threads or artifact.settings.get("threads") or available_threads()
    return device or str(merged.get("device") or "cpu"), merged | {"threads": count}


def import_library(engine: str) -> None:
    """Import what an engine computes with, where it can be imported by itself: opening a model does it anyway."""
    for library in ENGINES[engine].libraries if engine in ENGINES else ():
        if library in ("onnxruntime", "openvino"):
            with suppress(ImportError):  # opening says it
                importlib.import_module(library)


def check_options(engine: str, options: Mapping[str, Any]) -> None:
    """Raise Unsupported or InvalidInput where an engine can't do what a deployment asks of it."""
    info = ENGINES.get(engine)
    deployed.check(options, engine, info.options if info else ())


def open_engine(
    artifact: Artifact, *, device: str | None = None, threads: int = 0, settings: Mapping[str, Any] | None = None
) -> Engine:
    """Open `artifact` with the engine it names.

    `settings` override the artifact's own; `device` None is the artifact's, "cpu" where it names none; `threads` overrides
    its "threads" (0: the artifact's, else every core).
    Raises Unsupported (no such engine, layout, device or option), InvalidInput, MissingExtra, InvalidModel (the files don't
    load).
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
    count = merged["threads"]
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise InvalidInput(f"setting 'threads' is {count!r}; it takes a whole number, at least 1")
    check_options(info.name, merged)
    module = importlib.import_module(f"maasdam.engines.{info.module}")
    return cast(Engine, module.open(artifact, device, merged))
