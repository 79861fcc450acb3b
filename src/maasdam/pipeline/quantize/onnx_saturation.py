"""Narrow the int8 weights of a QDQ graph where processors without VNNI would cut sums off (see saturation.py).

Knows where ONNX keeps weights, scales and biases. Runs the graph unfused, which is float arithmetic on every processor.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from maasdam.pipeline.examples import Inputs
from maasdam.pipeline.quantize.saturation import Array, Peaks, any_level, mean, narrowing, peaks_of

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True, slots=True)
class Layer:
    """A product of quantised activations and constant int8 weights."""

    levels: str
    """The tensor of unsigned 8-bit activations."""
    channel_axis: int
    weights: str
    scale: str
    output_axis: int
    """Of the weights: where the output channels are."""
    groups: int
    bias: tuple[str, str] | None
    """Initialisers of int32 values and of their scale."""


def narrow(quantized: onnx.ModelProto, plain: onnx.ModelProto, inputs: Iterable[Inputs]) -> tuple[int, int]:
    """Narrow weights in place; (output channels narrowed, all of them). `plain`: the graph in float, for its exact weights."""
    layers = list(_layers(quantized))
    return _narrow(quantized, plain, layers, _peaks(quantized, layers, inputs))


def narrow_unseen(quantized: onnx.ModelProto, plain: onnx.ModelProto) -> tuple[int, int]:
    """The same of a graph that quantises activations while it runs: they may have any level, so the weights alone decide."""
    layers = list(_dynamic_layers(quantized))
    rows = {t.name: t.dims[0] for t in quantized.graph.initializer if t.dims}
    return _narrow(quantized, plain, layers, {layer.levels: any_level(rows[layer.weights]) for layer in layers})


def _narrow(
    quantized: onnx.ModelProto, plain: onnx.ModelProto, layers: Sequence[Layer], seen: Mapping[str, Peaks]
) -> tuple[int, int]:
    from onnx import numpy_helper

    constants = {t.name: t for t in quantized.graph.initializer}
    exact = {f"{t.name}_quantized": t for t in plain.graph.initializer}
    narrowed = total = 0
    users = Counter(name for layer in layers for name in (layer.weights, *(layer.bias or ())))
    for layer in layers:
        if layer.levels not in seen or any(users[name] > 1 for name in (layer.weights, *(layer.bias or ()))):
            continue  # what two layers share fits both only as it is
        steps = numpy_helper.to_array(constants[layer.weights])
        scale = numpy_helper.to_array(constants[layer.scale])
        factors = narrowing(_grouped(steps, layer), seen[layer.levels]).reshape(-1)
        total += factors.size
        if scale.size == 1:
            factors = np.full_like(factors, factors.max())
        narrowed += int((factors > 1).sum())
        if (factors == 1).all():
            continue
        along = [1] * steps.ndim
        along[layer.output_axis] = -1
        in_steps = _in_steps(exact.get(layer.weights), steps, scale, along)
        _replace(constants[layer.weights], np.clip(np.rint(in_steps / factors.reshape(along)), -127, 127).astype(np.int8))
        _replace(constants[layer.scale], _scaled(scale, factors))
        if layer.bias is not None:
            values, bias_scale = (numpy_helper.to_array(constants[name]) for name in layer.bias)
            _replace(constants[layer.bias[0]], np.rint(values / factors).astype(np.int32))
            _replace(constants[layer.bias[1]], _scaled(bias_scale, factors))
    return narrowed, total


def _layers(model: onnx.ModelProto) -> Iterator[Layer]:
    made_by = {name: node for node in model.graph.node for name in node.output}
    constants = {t.name: t for t in model.graph.initializer}

    def behind(name: str, kind: str) -> Any:
        node = made_by.get(name)
        return node if node is not None and node.op_type == kind else None

    for node in model.graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        shown, stored = (behind(name, "DequantizeLinear") for name in node.input[:2])
        if shown is None or stored is None or any(name not in constants for name in stored.input):
            continue
        rounded = behind(shown.input[0], "QuantizeLinear")
        attributes = {a.name: a.i for a in node.attribute}
        is_flat = node.op_type == "Conv" or len(constants[stored.input[0]].dims) == 2
        if rounded is None or not _is_unsigned(rounded, constants) or attributes.get("transA") or not is_flat:
            continue
        added = behind(node.input[2], "DequantizeLinear") if len(node.input) > 2 else None
        yield Layer(
            levels=shown.input[0],
            channel_axis=1 if node.op_type == "Conv" else -1,
            weights=stored.input[0],
            scale=stored.input[1],
            output_axis=0 if node.op_type == "Conv" or attributes.get("transB") else 1,
            groups=attributes.get("group", 1),
            bias=(added.input[0], added.input[1]) if added is not None and added.input[0] in constants else None,
        )


def _dynamic_layers(model: onnx.ModelProto) -> Iterator[Layer]:
    """Products of activations quantised while running: their weights' scales are multiplied in afterwards, by name."""
    constants = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        name = node.input[1] if node.op_type == "MatMulInteger" else ""
        scale = name.removesuffix("_quantized") + "_scale"
        if name in constants and scale in constants and len(constants[name].dims) == 2 and _is_signed(constants[name]):
            yield Layer(node.input[0], -1, name, scale, output_axis=1, groups=1, bias=None)


def _is_signed(constant: Any) -> bool:
    import onnx

    return bool(constant.data_type == onnx.TensorProto.INT8)


def _is_unsigned(quantize: Any, constants: dict[str, Any]) -> bool:
    import onnx

    zero_point = constants.get(quantize.input[2]) if len(quantize.input) > 2 else None
    return zero_point is None or zero_point.data_type == onnx.TensorProto.UINT8


def _peaks(model: onnx.ModelProto, layers: Sequence[Layer], inputs: Iterable[Inputs]) -> dict[str, Peaks]:
    import onnx
    import onnxruntime as ort

    axes = {layer.levels: layer.channel_axis for layer in layers}
    if not axes:
        return {}
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    del shown.graph.output[:]
    shown.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, None) for name in axes)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(shown.SerializeToString(), options, providers=["CPUExecutionProvider"])
    seen: dict[str, list[Peaks]] = defaultdict(list)
    for tensors in inputs:
        answers = session.run(list(axes), tensors)
        for (name, axis), levels in zip(axes.items(), answers, strict=True):
            if levels.size:
                seen[name].append(peaks_of(levels.astype(np.float32), axis, 0.0, 255.0))
    return {name: mean(found) for name, found in seen.items()}


def _grouped(steps: Array, layer: Layer) -> Array:
    """(groups, outputs, inputs, taps)."""
    first = np.moveaxis(steps, layer.output_axis, 0).astype(np.float32)
    return first.reshape(layer.groups, len(first) // layer.groups, first.shape[1], -1)


def _in_steps(exact: Any, steps: Array, scale: Array, along: list[int]) -> Array:
    """The float weights in steps, so that they are rounded once; the rounded ones where the float ones are not at hand."""
    from onnx import numpy_helper

    if exact is None or tuple(exact.dims) != steps.shape:
        return steps.astype(np.float64)
    divisor = scale if scale.size == 1 else scale.reshape(along)
    unrounded: Array = numpy_helper.to_array(exact).astype(np.float64) / divisor
    return unrounded if np.abs(unrounded - steps).max() <= 1 else steps.astype(np.float64)


def _scaled(scale: Array, factors: Array) -> Array:
    wider: Array = scale * (factors.max() if scale.size == 1 else factors.reshape(scale.shape))
    return wider.astype(scale.dtype)


def _replace(constant: Any, values: Array) -> None:
    from onnx import numpy_helper

    constant.CopyFrom(numpy_helper.from_array(values, constant.name))
