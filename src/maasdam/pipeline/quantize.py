"""The pass "quantize": fewer bits for weights, or for weights and activations.

Knows NNCF, ONNX Runtime's quantiser and OpenVINO's files. Refuses to know labels, and to judge what it made: verify does.

| scheme       | openvino                                  | onnx                                      |
|--------------|-------------------------------------------|-------------------------------------------|
| static-int8  | NNCF post-training quantisation           | QDQ, activations U8, weights S8 per channel |
| dynamic-int8 | -                                         | weights S8, activations while running     |
| weights-int8 | NNCF compress_weights, asymmetric         | -                                         |
| weights-int4 | NNCF compress_weights, symmetric, groups  | -                                         |
| bf16, fp16   | constants kept in 16 bits                 | -                                         |
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maasdam.core import TEXT_GENERATION, Artifact, Format
from maasdam.errors import InvalidInput, Unsupported, missing_extra
from maasdam.pipeline.examples import Inputs, calibration_inputs, describe
from maasdam.pipeline.passes import Pass, PassContext, Produced, Reads, Setting

if TYPE_CHECKING:
    import openvino as ov

SCHEMES: dict[str, tuple[Format, ...]] = {
    "static-int8": ("openvino", "onnx"),
    "dynamic-int8": ("onnx",),
    "weights-int8": ("openvino",),
    "weights-int4": ("openvino",),
    "bf16": ("openvino",),
    "fp16": ("openvino",),
}
F16_LARGEST = 65504.0
SMALLEST_GROUP = 8
"""Where the group size does not divide a layer's width, the largest power of two that does, down to this."""
NOT_FOR_TEXT = ("static-int8", "dynamic-int8")
"""Text generation runs on OpenVINO GenAI, where weights alone are quantised."""


def formats_of(scheme: str, task: str | None) -> tuple[Format, ...]:
    """The formats a scheme exists for. Raises Unsupported where it is none for this task, naming what is."""
    if task == TEXT_GENERATION and scheme in NOT_FOR_TEXT:
        raise Unsupported(f"scheme '{scheme}' does not exist for {task}; use weights-int8 or weights-int4")
    return SCHEMES[scheme]


def run(source: Artifact, out: Path, settings: Mapping[str, Any], context: PassContext) -> Produced:
    """Quantise `source`, which is OpenVINO or ONNX. Raises InvalidInput for calibration data that is no good."""
    scheme = settings["scheme"]
    if source.format not in formats_of(scheme, source.task):
        raise Unsupported(f"scheme '{scheme}' does not exist for {source.format} artifacts")
    if scheme == "static-int8":
        inputs, facts = _calibration(source, settings, context)
        make = _static_openvino if source.format == "openvino" else _static_onnx
        return make(source, out, settings, context, inputs, facts)
    if scheme == "dynamic-int8":
        return _dynamic_onnx(source, out)
    return _weights_openvino(source, out, settings)


def _calibration(source: Artifact, settings: Mapping[str, Any], context: PassContext) -> tuple[list[Inputs], dict[str, Any]]:
    path = context.calibrate or context.data
    if path is None:
        raise InvalidInput("static int8 needs calibration data: name a folder with --calibrate or --data")
    context.progress("prepare calibration data")
    inputs = calibration_inputs(source, path, settings["samples"])
    facts = {
        "samples": len(inputs),
        "data": describe(path),
        "is_sample_of_evaluation_data": context.calibrate is None,
        "says": f"{len(inputs)} unlabelled examples of --calibrate"
        if context.calibrate is not None
        else f"an unlabelled sample of the evaluation data (--data), {len(inputs)} examples: --calibrate was not given",
    }
    return inputs, {"calibration": facts}


def _static_openvino(
    source: Artifact, out: Path, settings: Mapping[str, Any], context: PassContext, inputs: list[Inputs], facts: dict[str, Any]
) -> Produced:
    nncf = _nncf()
    import openvino as ov

    model = ov.Core().read_model(source.path / "model.xml")
    is_transformer = _is_transformer(model)
    seen = _Counted(inputs, context)
    with _quiet():
        quantized = nncf.quantize(
            model,
            nncf.Dataset(seen, lambda tensors: tensors),
            subset_size=len(inputs),
            preset=nncf.QuantizationPreset.MIXED if is_transformer else nncf.QuantizationPreset.PERFORMANCE,
            fast_bias_correction=settings["fast_bias_correction"],
            model_type=nncf.ModelType.TRANSFORMER if is_transformer else None,
        )
    _copy_all_but(source.path, out, {"model.xml", "model.bin"})
    _save(quantized, out / "model.xml")
    facts |= {"method": "NNCF post-training quantisation", "model_type": "transformer" if is_transformer else "convolutional"}
    return Produced("openvino", "ir", "openvino", source.signature, dict(source.settings), facts)


def _static_onnx(
    source: Artifact, out: Path, settings: Mapping[str, Any], context: PassContext, inputs: list[Inputs], facts: dict[str, Any]
) -> Produced:
    from onnxruntime import quantization as ort

    clean = _preprocessed(source, context.work)
    seen = _Counted(inputs, context)

    class Reader(ort.CalibrationDataReader):  # type: ignore[misc]  # ONNX Runtime's class has no types
        def __init__(self) -> None:
            self._left = iter(seen)

        def get_next(self) -> Inputs | None:
            return next(self._left, None)

    _copy_all_but(source.path, out, {"model.onnx"} | _external(source.path))
    ort.quantize_static(
        clean,
        out / "model.onnx",
        Reader(),
        quant_format=ort.QuantFormat.QDQ,
        per_channel=True,
        activation_type=ort.QuantType.QUInt8,
        weight_type=ort.QuantType.QInt8,
    )
    facts |= {"method": "ONNX Runtime static QDQ, activations U8, weights S8 per channel"}
    return Produced("onnx", "onnx", "onnxruntime", source.signature, dict(source.settings), facts)


def _dynamic_onnx(source: Artifact, out: Path) -> Produced:
    from onnxruntime import quantization as ort

    _copy_all_but(source.path, out, {"model.onnx"} | _external(source.path))
    ort.quantize_dynamic(
        source.path / "model.onnx",
        out / "model.onnx",
        op_types_to_quantize=["MatMul", "Gemm", "Gather"],
        per_channel=True,
        weight_type=ort.QuantType.QInt8,
    )
    facts = {"method": "ONNX Runtime dynamic int8: matrix products and embeddings; convolutions stay float"}
    return Produced("onnx", "onnx", "onnxruntime", source.signature, dict(source.settings), facts)


def _weights_openvino(source: Artifact, out: Path, settings: Mapping[str, Any]) -> Produced:
    import openvino as ov

    scheme = settings["scheme"]
    name = "openvino_model" if source.layout == "genai" else "model"
    model = ov.Core().read_model(source.path / f"{name}.xml")
    chosen = dict(source.settings)
    if scheme == "weights-int8":
        nncf = _nncf()
        with _quiet():
            model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)
        facts = {"method": "NNCF compress_weights, int8 asymmetric, one scale per channel"}
    elif scheme == "weights-int4":
        nncf = _nncf()
        group = settings["group_size"]
        with _quiet():
            model = nncf.compress_weights(
                model,
                mode=nncf.CompressWeightsMode.INT4_SYM,
                group_size=group,
                ratio=1.0,
                advanced_parameters=nncf.AdvancedCompressionParameters(
                    group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST, min_adjusted_group_size=SMALLEST_GROUP
                ),
            )
        facts = {"method": f"NNCF compress_weights, int4 symmetric in groups of {group}; first and last layers int8"}
    elif scheme == "bf16":
        count = _constants_to(model, ov.Type.bf16)
        chosen["precision"] = "bf16"
        if source.layout == "genai":
            chosen["kv_precision"] = "bf16"  # its attention takes no other cache then
        facts = {"method": f"{count} constants kept in bfloat16, computed in bfloat16"}
    else:
        count = _constants_to(model, ov.Type.f16)
        facts = {"method": f"{count} constants kept in float16, computed in float32"}
    _copy_all_but(source.path, out, {f"{name}.xml", f"{name}.bin"})
    _save(model, out / f"{name}.xml")
    return Produced("openvino", source.layout, source.engine, source.signature, chosen, facts)


def _constants_to(model: ov.Model, kind: ov.Type) -> int:
    """Replace each float32 constant of several elements by one of `kind` and a conversion back; how many."""
    import numpy as np
    import openvino as ov
    from openvino import opset13 as ops

    count = 0
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Constant" or node.get_output_element_type(0) != ov.Type.f32:
            continue
        values = np.asarray(node.data)
        if values.size < 2 or (kind == ov.Type.f16 and float(np.abs(values).max()) > F16_LARGEST):
            continue
        users = list(node.output(0).get_target_inputs())
        small = ops.constant(values, dtype=kind)
        small.set_friendly_name(f"{node.get_friendly_name()}/small")
        wide = ops.convert(small, "f32")
        wide.set_friendly_name(node.get_friendly_name())
        for user in users:
            user.replace_source_output(wide.output(0))
        count += 1
    model.validate_nodes_and_infer_types()
    return count


@contextmanager
def _quiet() -> Iterator[None]:
    """NNCF draws bars and tables on stdout, which is for answers; the pass tells how far it is by itself."""
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        yield


class _Counted:
    """Calibration inputs that tell how far they were read. Iterates anew each time, as NNCF does."""

    def __init__(self, inputs: list[Inputs], context: PassContext) -> None:
        self._inputs, self._progress = inputs, context.progress

    def __len__(self) -> int:
        return len(self._inputs)

    def __iter__(self) -> Iterator[Inputs]:
        for done, tensors in enumerate(self._inputs, 1):
            yield tensors
            self._progress("calibrate", done, len(self._inputs))


def _save(model: ov.Model, path: Path) -> None:
    """Write the model without the tool's notes, which are larger than a small network."""
    import openvino as ov

    for key in ("nncf", "conversion_parameters"):
        if model.has_rt_info([key]):
            del model.rt_info[key]
    ov.save_model(model, path, compress_to_fp16=False)


def _is_transformer(model: ov.Model) -> bool:
    """Whether it attends: a softmax between two matrix products, or the fused operator."""
    kinds = [node.get_type_name() for node in model.get_ordered_ops()]
    return "ScaledDotProductAttention" in kinds or ("Softmax" in kinds and kinds.count("MatMul") > 2)


def _preprocessed(source: Artifact, work: Path) -> Path:
    """The ONNX file with shapes inferred and batch norms folded; as it is where that fails (external data, unknown shapes)."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    path = work / "clean.onnx"
    if _external(source.path):
        return source.path / "model.onnx"
    try:
        quant_pre_process(source.path / "model.onnx", path, skip_symbolic_shape=True)
    except Exception:  # it is an optimisation, and it raises anything at all on graphs it doesn't know
        return source.path / "model.onnx"
    return path


def _external(folder: Path) -> set[str]:
    """The files beside model.onnx that hold its weights."""
    import onnx

    model = onnx.load(folder / "model.onnx", load_external_data=False)
    return {entry.value for t in model.graph.initializer for entry in t.external_data if entry.key == "location"}


def _copy_all_but(folder: Path, out: Path, names: set[str]) -> None:
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name not in names | {"artifact.json"}:
            shutil.copyfile(path, out / path.name)


def _nncf() -> Any:
    try:
        import nncf
    except ImportError as error:
        raise missing_extra("nncf", "build") from error
    nncf.set_log_level(logging.ERROR)  # it logs to stdout
    return nncf


def _reads(settings: Mapping[str, Any]) -> tuple[Reads, ...]:
    return ("calibrate",) if settings["scheme"] == "static-int8" else ()


def _wants(source: Artifact, settings: Mapping[str, Any]) -> Format | None:
    chosen: Format | None = None if settings["format"] == "auto" else settings["format"]
    formats = formats_of(settings["scheme"], source.task)
    return chosen or (source.format if source.format in formats else formats[0])


PASS = Pass(
    use="quantize",
    version=2,
    settings={
        "scheme": Setting(str, None, choices=tuple(SCHEMES), says="what is quantised, and to what", is_required=True),
        "format": Setting(str, "auto", choices=("auto", "openvino", "onnx"), says="auto: what --to and the next pass ask for"),
        "samples": Setting(int, 200, low=1, high=10_000, says="calibration examples (static-int8)"),
        "fast_bias_correction": Setting(bool, True, says="false: slower, sometimes closer (static-int8 on OpenVINO)"),
        "group_size": Setting(int, 64, low=8, high=1024, says="weights that share a scale (weights-int4)"),
    },
    run=run,
    libraries=("nncf", "openvino", "onnxruntime", "onnx"),
    reads=_reads,
    wants=_wants,
)
