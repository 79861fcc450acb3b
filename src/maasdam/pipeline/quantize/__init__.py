"""The pass "quantize": fewer bits for weights, or for weights and activations.

Knows which scheme exists for which format. Refuses to judge what it made: verify does. Labels are read only where
`max_drop` asks for it, and then those of --train.

| scheme       | openvino                              | onnx                          | pytorch                       |
|--------------|---------------------------------------|-------------------------------|-------------------------------|
| static-int8  | NNCF; with max_drop accuracy-control  | QDQ, U8S8, per channel        | -                             |
| dynamic-int8 | -                                     | weights S8, activations later | linear layers alike, as .pt2  |
| tensorrt-int8| -                                     | QDQ, S8S8, zero points 0      | -                             |
| weights-int8 | NNCF compress_weights, asymmetric     | MatMulNBits in blocks of 32   | linear, embeddings, as .pt2   |
| weights-int4 | NNCF compress_weights, groups         | MatMulNBits in groups         | -                             |
| bf16, fp16   | constants kept in 16 bits             | fp16: weights and arithmetic  | weights kept in 16 bits       |
| fp8          | -                                     | -                             | language models, for vLLM     |
| gptq, awq    | -                                     | -                             | Llama-like models, for vLLM   |

Whisper goes to CTranslate2 (pytorch): weights-int8 and dynamic-int8 keep the same bytes, computed in float or int8; bf16, fp16.

tensorrt-int8 is the graph TensorRT takes as it stands (explicit quantisation); on a processor ONNX Runtime computes the same.
What is for vLLM is a Hugging Face folder of the compressed-tensors format; here transformers runs it, as floats.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maasdam.artifacts.produced import Produced
from maasdam.core import TEXT_GENERATION, Artifact, Format
from maasdam.errors import MaasdamError, Unsupported
from maasdam.pipeline.passes import Pass, PassContext, Reads, Setting

log = logging.getLogger("maasdam.pipeline")

SCHEMES: dict[str, tuple[Format, ...]] = {
    "static-int8": ("openvino", "onnx"),
    "dynamic-int8": ("onnx", "pytorch"),
    "tensorrt-int8": ("onnx",),
    "weights-int8": ("openvino", "onnx", "pytorch"),
    "weights-int4": ("openvino", "onnx"),
    "bf16": ("openvino", "pytorch"),
    "fp16": ("openvino", "onnx", "pytorch"),
    "fp8": ("pytorch",),
    "gptq": ("pytorch",),
    "awq": ("pytorch",),
}
"""Which formats a scheme exists for; the first is taken where nothing else decides."""
FOR_TEXT: dict[str, tuple[Format, ...]] = {
    "weights-int8": ("openvino",),
    "weights-int4": ("openvino",),
    "bf16": ("openvino", "pytorch"),
    "fp16": ("openvino", "pytorch"),
    "fp8": ("pytorch",),
    "gptq": ("pytorch",),
    "awq": ("pytorch",),
}
"""The same for text generation, which runs on OpenVINO GenAI or as it is: no engine here generates from a plain ONNX graph."""
FOR_WHISPER: dict[str, tuple[Format, ...]] = {
    scheme: ("pytorch",) for scheme in ("weights-int8", "dynamic-int8", "bf16", "fp16")
}
"""The same for models that hear and write by themselves, which run on CTranslate2."""
VLLM_SCHEMES = ("fp8", "gptq", "awq")
"""Those of vllm_layouts."""
STATIC = ("static-int8", "tensorrt-int8")
"""Those that quantise activations too, with ranges from calibration data."""


def formats_of(scheme: str, task: str | None, *, writes_speech: bool = False) -> tuple[Format, ...]:
    """The formats a scheme exists for. Raises Unsupported where it is none for this task, naming what is.

    `writes_speech`: the model hears and writes by itself (Whisper).
    """
    if writes_speech:
        if scheme not in FOR_WHISPER:
            raise Unsupported(
                f"scheme '{scheme}' does not exist for models that hear and write by themselves (Whisper): CTranslate2, which "
                f"runs them, has {', '.join(FOR_WHISPER)} (recipes int8-weights, int8-dynamic, bf16)"
            )
        return FOR_WHISPER[scheme]
    if task == TEXT_GENERATION:
        if scheme not in FOR_TEXT:
            raise Unsupported(f"scheme '{scheme}' does not exist for {task}; use weights-int8 or weights-int4")
        return FOR_TEXT[scheme]
    if scheme in VLLM_SCHEMES:
        raise Unsupported(f"scheme '{scheme}' exists for {TEXT_GENERATION} only; use weights-int8 or fp16")
    return SCHEMES[scheme]


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
    from maasdam.pipeline.quantize import controlled, onnx_models, openvino_models, pytorch_models, speech_models, vllm_layouts

    scheme = settings["scheme"]
    if source.format not in formats_of(scheme, source.task, writes_speech=source.writes_speech):
        raise Unsupported(f"scheme '{scheme}' does not exist for {source.format} artifacts")
    if settings["max_drop"] is not None and (scheme, source.format) != ("static-int8", "openvino"):
        raise Unsupported(f"max_drop is for static-int8 on openvino; this is {scheme} on {source.format}: leave it out")
    if source.writes_speech:
        return speech_models.weights(source, out, scheme)
    if scheme == "static-int8":
        if settings["max_drop"] is not None:
            return controlled.static_int8(source, out, settings, context)
        make = openvino_models.static_int8 if source.format == "openvino" else onnx_models.static_int8
        return make(source, out, settings, context)
    if scheme == "tensorrt-int8":
        return onnx_models.tensorrt_int8(source, out, settings, context)
    if scheme in VLLM_SCHEMES:
        return vllm_layouts.write(source, out, settings, context)
    if source.format == "pytorch":
        return pytorch_models.weights(source, out, settings)
    if source.format == "openvino":
        return openvino_models.weights(source, out, settings)
    return (
        onnx_models.dynamic_int8(source, out, context.work)
        if scheme == "dynamic-int8"
        else onnx_models.weights(source, out, settings)
    )


def _reads(settings: Mapping[str, Any]) -> tuple[Reads, ...]:
    if settings["scheme"] in ("gptq", "awq"):
        return ("calibrate",)
    if settings["scheme"] not in STATIC:
        return ()
    return ("calibrate",) if settings["max_drop"] is None else ("calibrate", "train")


def _wants(source: Artifact, settings: Mapping[str, Any]) -> Format | None:
    chosen: Format | None = None if settings["format"] == "auto" else settings["format"]
    formats = formats_of(settings["scheme"], source.task, writes_speech=source.writes_speech)
    return chosen or (source.format if source.format in formats else formats[0])


PASS = Pass(
    use="quantize",
    version=8,
    settings={
        "scheme": Setting(str, None, choices=tuple(SCHEMES), says="what is quantised, and to what", is_required=True),
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
            "float",
            choices=("float", "dynamic-int8"),
            says="dynamic-int8: faster, but an answer depends a little on what runs beside it (weights-*, OpenVINO)",
        ),
    },
    run=run,
    libraries=("ctranslate2", "nncf", "openvino", "onnxruntime", "onnx", "torch", "transformers", "compressed-tensors"),
    reads=_reads,
    wants=_wants,
)
