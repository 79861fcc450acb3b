"""The pass "quantize": fewer bits for weights, or for weights and activations.

Knows which scheme exists for which format: `SCHEMES`, from which docs/compression.md has its table. Refuses to judge what it
made: verify does. Labels are read only where `max_drop` asks for it, and then those of --train.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from maasdam.artifacts.produced import Produced
from maasdam.core import TEXT_GENERATION, Artifact, Format
from maasdam.errors import MaasdamError, Unsupported
from maasdam.pipeline.passes import OPTIMIZED_FORMATS, Pass, PassContext, Reads, Run, Setting

log = logging.getLogger("maasdam.pipeline")

Kind = Literal["tensors", "text-generation", "speech"]
"""What a model is to a scheme: "text-generation" runs on OpenVINO GenAI or as it is (no engine here generates from a plain
ONNX graph), "speech" hears and writes by itself on CTranslate2 (Whisper), the rest are tensors."""
TENSORS: tuple[Kind, ...] = ("tensors",)
TEXT: tuple[Kind, ...] = ("text-generation",)
SPEECH: tuple[Kind, ...] = ("speech",)
CALIBRATES: tuple[Reads, ...] = ("calibrate",)


@dataclass(frozen=True, slots=True)
class Scheme:
    """One way to keep numbers, for one format and the kinds of models that it exists for."""

    name: str
    format: Format
    make: str
    """MODULE.FUNCTION of this room; it is called as a pass is run."""
    says: str
    """What is done, for the documentation."""
    kinds: tuple[Kind, ...] = TENSORS
    reads: tuple[Reads, ...] = ()
    held: str = ""
    """As `make`, where max_drop is given; it reads labels too."""


SCHEMES = (
    Scheme(
        "static-int8", "openvino", "openvino_models.static_int8", "NNCF; with `max_drop` its accuracy control",
        reads=CALIBRATES, held="controlled.static_int8",
    ),
    Scheme("static-int8", "onnx", "onnx_models.static_int8", "QDQ, U8S8, per channel", reads=CALIBRATES),
    Scheme("dynamic-int8", "onnx", "onnx_models.dynamic_int8", "matrix products, embeddings"),
    Scheme("dynamic-int8", "pytorch", "pytorch_models.weights", "linear layers, as `.pt2`"),
    Scheme("dynamic-int8", "pytorch", "speech_models.weights", "kept and computed in int8", SPEECH),
    Scheme("tensorrt-int8", "onnx", "onnx_models.tensorrt_int8", "QDQ, S8S8, zero points 0", reads=CALIBRATES),
    Scheme("weights-int8", "openvino", "openvino_models.weights", "NNCF, asymmetric", TENSORS + TEXT),
    Scheme("weights-int8", "onnx", "onnx_models.weights", "MatMulNBits in blocks of 32"),
    Scheme("weights-int8", "pytorch", "pytorch_models.weights", "linear layers, embeddings, as `.pt2`"),
    Scheme("weights-int8", "pytorch", "speech_models.weights", "kept in int8, computed in float32", SPEECH),
    Scheme("weights-int4", "openvino", "openvino_models.weights", "NNCF, in groups", TENSORS + TEXT),
    Scheme("weights-int4", "onnx", "onnx_models.weights", "MatMulNBits in groups"),
    Scheme("bf16", "openvino", "openvino_models.weights", "constants kept in 16 bits", TENSORS + TEXT),
    Scheme("bf16", "pytorch", "pytorch_models.weights", "weights kept in 16 bits", TENSORS + TEXT),
    Scheme("bf16", "pytorch", "speech_models.weights", "computed so where the processor can", SPEECH),
    Scheme("fp16", "openvino", "openvino_models.weights", "constants kept in 16 bits", TENSORS + TEXT),
    Scheme("fp16", "onnx", "onnx_models.weights", "weights and arithmetic"),
    Scheme("fp16", "pytorch", "pytorch_models.weights", "weights kept in 16 bits", TENSORS + TEXT),
    Scheme("fp16", "pytorch", "speech_models.weights", "kept in 16 bits", SPEECH),
    Scheme("fp8", "pytorch", "vllm_layouts.write", "for vLLM", TEXT),
    Scheme("gptq", "pytorch", "vllm_layouts.write", "Llama-like models, for vLLM", TEXT, CALIBRATES),
    Scheme("awq", "pytorch", "vllm_layouts.write", "Llama-like models, for vLLM", TEXT, CALIBRATES),
)  # fmt: skip
"""The first format of a scheme is taken where nothing else decides. What is for vLLM is a Hugging Face folder of the
compressed-tensors format; here transformers runs it, as floats."""
NAMES = tuple(dict.fromkeys(row.name for row in SCHEMES))


def kind_of(source: Artifact) -> Kind:
    """What a model is to a scheme."""
    return "speech" if source.writes_speech else "text-generation" if source.task == TEXT_GENERATION else "tensors"


def formats_of(scheme: str, kind: Kind) -> tuple[Format, ...]:
    """The formats a scheme exists for. Raises Unsupported where it is none for this kind of model, naming what is."""
    if found := tuple(row.format for row in SCHEMES if row.name == scheme and kind in row.kinds):
        return found
    if kind == "speech":
        names = ", ".join(row.name for row in SCHEMES if kind in row.kinds)
        raise Unsupported(
            f"scheme '{scheme}' does not exist for models that hear and write by themselves (Whisper): CTranslate2, which "
            f"runs them, has {names} (recipes int8-weights, int8-dynamic, bf16)"
        )
    if kind == "text-generation":
        raise Unsupported(f"scheme '{scheme}' does not exist for {kind}; use weights-int8 or weights-int4")
    raise Unsupported(f"scheme '{scheme}' exists for {TEXT_GENERATION} only; use weights-int8 or fp16")


def run(source: Artifact, out: Path, settings: Mapping[str, Any], context: PassContext) -> Produced:
    """Quantise `source`. Raises InvalidInput for calibration data that is no good, Unsupported for what does not exist
    and for networks that the format's own tool breaks on: another format's may do it.
    """
    try:
        return _run(source, out, settings, context)
    except (MaasdamError, MemoryError, OSError):
        raise
    except Exception as error:  # the tools raise anything at all on graphs they don't know
        log.debug("quantisation of %s broke", source.digest, exc_info=True)
        why = " ".join(str(error).split())[:300] or "no message"
        raise Unsupported(
            f"the tool for {settings['scheme']} on {source.format} broke on this network ({type(error).__name__}: {why})"
        ) from error


def _run(source: Artifact, out: Path, settings: Mapping[str, Any], context: PassContext) -> Produced:
    scheme, kind = settings["scheme"], kind_of(source)
    if source.format not in formats_of(scheme, kind):
        raise Unsupported(f"scheme '{scheme}' does not exist for {source.format} artifacts")
    row = next(r for r in SCHEMES if (r.name, r.format) == (scheme, source.format) and kind in r.kinds)
    if settings["max_drop"] is not None and not row.held:
        raise Unsupported(f"max_drop is for static-int8 on openvino; this is {scheme} on {source.format}: leave it out")
    module, _, function = (row.make if settings["max_drop"] is None else row.held).partition(".")
    make: Run = getattr(importlib.import_module(f"{__name__}.{module}"), function)
    return make(source, out, settings, context)


def _reads(settings: Mapping[str, Any]) -> tuple[Reads, ...]:
    rows = [row for row in SCHEMES if row.name == settings["scheme"]]
    is_held = settings["max_drop"] is not None and any(row.held for row in rows)
    return (*rows[0].reads, "train") if is_held else rows[0].reads


def _wants(source: Artifact, settings: Mapping[str, Any]) -> Format | None:
    if settings["format"] != "auto":
        return cast(Format, settings["format"])
    formats = formats_of(settings["scheme"], kind_of(source))
    return source.format if source.format in formats else formats[0]


def _expands(
    settings: Mapping[str, Any], source: Artifact, to: Format | None, choice: tuple[Format, ...]
) -> tuple[Format, ...]:
    """For --to; else for all that the next pass chooses from; else the first of these that it can be made for."""
    can = formats_of(settings["scheme"], kind_of(source))
    if to is not None and to not in can:
        raise Unsupported(f"scheme '{settings['scheme']}' does not exist for --to {to}; it does for: {', '.join(can)}")
    if settings["format"] != "auto":
        return ()
    if to is not None:
        return (to,)
    if choice:
        return tuple(f for f in can if f in choice) or can[:1]
    return (can[0], *(f for f in can[1:] if f in OPTIMIZED_FORMATS))


PASS = Pass(
    use="quantize",
    version=8,
    settings={
        "scheme": Setting(str, None, choices=NAMES, says="what is quantised, and to what", is_required=True),
        "format": Setting(
            str, "auto", choices=("auto", "openvino", "onnx", "pytorch"), says="auto: what --to and the next pass ask for"
        ),
        "samples": Setting(int, 200, low=1, high=10_000, says="calibration examples (*-int8), pieces of text (gptq, awq)"),
        "max_drop": Setting(
            float,
            None,
            low=0,
            high=1,
            says="so much may the metric on --train fall; layers stay float for it (static-int8, OpenVINO)",
        ),
        "group_size": Setting(
            int, 64, low=8, high=1024, says="weights that share a scale (weights-int4; gptq and awq: 32, 64, 128)"
        ),
        "ends": Setting(str, "int8", choices=("int8", "int4"), says="embedding and last layer (weights-int4, OpenVINO)"),
        "precision": Setting(str, "f32", choices=("f32", "bf16"), says="what is computed in (weights-*, OpenVINO)"),
        "activations": Setting(
            str,
            None,
            choices=("float", "dynamic-int8"),
            says="dynamic-int8: faster, the default for text; else an answer depends on its batch then (weights-*, OpenVINO)",
        ),
    },
    run=run,
    libraries=("ctranslate2", "nncf", "openvino", "onnxruntime", "onnx", "torch", "transformers", "compressed-tensors"),
    reads=_reads,
    wants=_wants,
    expands=_expands,
    rounds=True,
)
