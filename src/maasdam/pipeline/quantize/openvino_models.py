"""Quantise OpenVINO models with NNCF. Knows NNCF's calls and OpenVINO's files; never labels (see controlled.py)."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from maasdam.artifacts.produced import PassFacts, Produced
from maasdam.core import Artifact
from maasdam.errors import Unsupported, from_extra
from maasdam.pipeline.examples import Inputs
from maasdam.pipeline.passes import PassContext
from maasdam.pipeline.quantize import openvino_saturation, saturation
from maasdam.pipeline.quantize.shared import Counted, calibration, copy_all_but

if TYPE_CHECKING:
    import openvino as ov

F16_LARGEST = 65504.0
RECURRENT = frozenset({"GRUCell", "GRUSequence", "LSTMCell", "LSTMSequence", "RNNCell", "RNNSequence"})
SMALLEST_GROUP = 8
"""Where the group size does not divide a layer's width, the largest power of two that does, down to this."""


def static_int8(source: Artifact, out: Path, settings: Mapping[str, Any], context: PassContext) -> Produced:
    """Weights and activations to int8, the ranges from calibration inputs. Raises InvalidInput for inputs that are no good."""
    nncf = open_nncf()
    import openvino as ov

    inputs, examples = calibration(source, settings, context)
    model = ov.Core().read_model(source.path / "model.xml")
    check_is_float(model)
    was_half = as_float32(model)
    attends = is_transformer(model)
    seen = Counted([single(tensors, was_half) for tensors in inputs], context)
    with quiet():
        quantized = nncf.quantize(
            model,
            nncf.Dataset(seen, lambda tensors: tensors),
            subset_size=len(inputs),
            preset=nncf.QuantizationPreset.MIXED,  # decision 0015
            model_type=nncf.ModelType.TRANSFORMER if attends else None,
            ignored_scope=recurrent(nncf, model),
            advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.DISABLE),  # decision 0016
        )
    some = Counted([single(tensors, was_half) for tensors in inputs[: saturation.EXAMPLES]], context, saturation.STEP)
    facts = saturation.says(*openvino_saturation.narrow(quantized, model, some))
    quantized = with_halves_at_its_ends(quantized, was_half)
    copy_all_but(source.path, out, {"model.xml", "model.bin"})
    save(quantized, out / "model.xml")
    facts |= {"method": "NNCF post-training quantisation", "model_type": "transformer" if attends else "convolutional"}
    return Produced("openvino", "ir", "openvino", source.signature, dict(source.settings), PassFacts(facts, examples))


def weights(source: Artifact, out: Path, settings: Mapping[str, Any], context: PassContext) -> Produced:
    """Weights alone: int8, int4 in groups, bfloat16 or float16; the artifact's settings say how it is computed."""
    import openvino as ov

    scheme = settings["scheme"]
    name = "openvino_model" if source.layout == "genai" else "model"
    model = ov.Core().read_model(source.path / f"{name}.xml")
    check_is_float(model)
    if scheme in ("weights-int8", "weights-int4"):
        model, method = _compressed(model, settings)
    else:
        kind = ov.Type.bf16 if scheme == "bf16" else ov.Type.f16
        computed = "bfloat16" if scheme == "bf16" else "float32"
        kept = "bfloat16" if scheme == "bf16" else "float16"
        method = f"{_constants_to(model, kind)} constants kept in {kept}, computed in {computed}"
    copy_all_but(source.path, out, {f"{name}.xml", f"{name}.bin"})
    save(model, out / f"{name}.xml")
    chosen = {**source.settings, **_computation(source, settings)}
    return Produced("openvino", source.layout, source.engine, source.signature, chosen, PassFacts({"method": method}))


def _compressed(model: ov.Model, settings: Mapping[str, Any]) -> tuple[ov.Model, str]:
    """The model with int8 or int4 weights, and how that was done."""
    nncf = open_nncf()
    if settings["scheme"] == "weights-int8":
        with quiet():
            made = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)
        return made, "NNCF compress_weights, int8 asymmetric, one scale per channel"
    group, ends = settings["group_size"], settings["ends"]
    with quiet():
        made = nncf.compress_weights(
            model,
            mode=nncf.CompressWeightsMode.INT4_SYM,
            group_size=group,
            ratio=1.0,
            all_layers=ends == "int4",
            advanced_parameters=nncf.AdvancedCompressionParameters(
                group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST, min_adjusted_group_size=SMALLEST_GROUP
            ),
        )
    return made, f"NNCF compress_weights, int4 symmetric in groups of {group}; first and last layers {ends}"


def _computation(source: Artifact, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Engine settings that make the network compute as the pass was asked to; what is the engine's default is left out."""
    chosen: dict[str, Any] = {}
    if settings["scheme"] == "bf16" or settings["precision"] == "bf16":
        chosen["precision"] = "bf16"
        if source.layout == "genai":
            chosen["kv_precision"] = "bf16"  # its attention takes no other cache then
    if settings["activations"] and settings["scheme"] in ("weights-int8", "weights-int4"):
        chosen["dynamic_quantization"] = settings["activations"] == "dynamic-int8"
    return chosen


def _constants_to(model: ov.Model, kind: ov.Type) -> int:
    """Replace each float32 constant of several elements by one of `kind` and a conversion back; how many."""
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
def quiet() -> Iterator[None]:
    """NNCF draws bars and tables on stdout, which is for answers; the pass tells how far it is by itself."""
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        yield


def save(model: ov.Model, path: Path) -> None:
    """Write the model without the tool's notes, which are larger than a small network."""
    import openvino as ov

    for key in ("nncf", "conversion_parameters"):
        if model.has_rt_info([key]):
            del model.rt_info[key]
    ov.save_model(model, path, compress_to_fp16=False)


def check_is_float(model: ov.Model) -> None:
    """Raise Unsupported for a network that is quantised already: rounding it again would lose more and gain nothing."""
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        small = kind == "Constant" and node.get_output_element_type(0).get_type_name() in ("i4", "u4", "i8", "u8", "nf4")
        widened = small and any(t.get_node().get_type_name() == "Convert" for t in node.output(0).get_target_inputs())
        if kind == "FakeQuantize" or (widened and len(node.get_output_shape(0)) > 1):
            raise Unsupported(
                f"the network is quantised already (it holds {'weights in 8 bits or fewer' if small else kind}); "
                "build it with the recipe fp32, or give the float network it was made from"
            )


def as_float32(model: ov.Model) -> frozenset[str]:
    """Let a network of halves compute in float32, which NNCF's tools take; the names of inputs and outputs that were halves."""
    import openvino as ov
    from openvino import opset13 as ops

    half = ov.Type.f16
    ends = frozenset(
        port.get_any_name() for port in (*model.inputs, *model.outputs) if port.get_element_type() == half and port.get_names()
    )
    if not ends:
        return ends
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        if kind == "Parameter" and node.get_output_element_type(0) == half:
            node.set_element_type(ov.Type.f32)
        elif kind in ("Constant", "Convert") and node.get_output_element_type(0) == half:
            wide = ops.constant(np.asarray(node.data).astype(np.float32)) if kind == "Constant" else None
            wide = wide or ops.convert(node.input_value(0), "f32")
            wide.set_friendly_name(node.get_friendly_name())
            for user in list(node.output(0).get_target_inputs()):
                user.replace_source_output(wide.output(0))
    model.validate_nodes_and_infer_types()
    return ends


def single(tensors: Inputs, was_half: frozenset[str]) -> Inputs:
    """Inputs that were halves as float32."""
    return {name: array.astype("float32") if name in was_half else array for name, array in tensors.items()}


def with_halves_at_its_ends(model: ov.Model, was_half: frozenset[str]) -> ov.Model:
    """The network that takes and gives halves where it did before."""
    if not was_half:
        return model
    from openvino import Type
    from openvino.preprocess import PrePostProcessor

    ends = PrePostProcessor(model)
    for port in [p for p in model.inputs if p.get_any_name() in was_half]:
        ends.input(port.get_any_name()).tensor().set_element_type(Type.f16)
    for port in [p for p in model.outputs if p.get_any_name() in was_half]:
        ends.output(port.get_any_name()).tensor().set_element_type(Type.f16)
    return ends.build()


def recurrent(nncf: Any, model: ov.Model) -> Any:
    """Layers that stay float: OpenVINO compiles no recurrent layer whose weights are computed, as rounded ones are."""
    kinds = {node.get_type_name() for node in model.get_ordered_ops()}
    return nncf.IgnoredScope(types=sorted(kinds & RECURRENT), validate=False)


def is_transformer(model: ov.Model) -> bool:
    """Whether it attends: a softmax between two matrix products, or the fused operator."""
    kinds = [node.get_type_name() for node in model.get_ordered_ops()]
    return "ScaledDotProductAttention" in kinds or ("Softmax" in kinds and kinds.count("MatMul") > 2)


def open_nncf() -> Any:
    """The nncf package, told to be quiet. Raises MissingExtra."""
    with from_extra("build", "nncf"):
        import nncf
    nncf.set_log_level(logging.ERROR)  # it logs to stdout
    return nncf
