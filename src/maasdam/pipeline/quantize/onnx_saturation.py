"""Narrow the int8 weights of a QDQ graph where processors without VNNI would cut sums off (see saturation.py).

Knows where ONNX keeps weights, scales and biases. Runs the graph unfused, which is float arithmetic on every processor.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

from maasdam.pipeline.examples import Inputs
from maasdam.pipeline.quantize.saturation import Array, Peaks, any_level, in_steps, narrowing, peaks_of, usual


@dataclass(frozen=True, slots=True)
class OnnxLayer:
    """A product of quantised activations and constant int8 weights."""

    levels: str
    """The tensor of unsigned 8-bit activations."""
    channel_axis: int
    weights: str
    scale: str
    output_axis: int
    """Of the weights: where the output channels are."""
    groups: int = 1
    bias: tuple[str, str] | None = None
    """Initialisers of int32 values and of their scale."""
    padding: float = 0.0
    """The level of what is put around a picture."""


@dataclass(frozen=True, slots=True)
class Narrowed:
    """What was done: output channels narrowed, all that were looked at, and whether every int8 product was among them."""

    count: int
    channels: int
    is_whole: bool


def narrow(quantized: onnx.ModelProto, plain: onnx.ModelProto, inputs: Iterable[Inputs]) -> Narrowed:
    """Narrow weights in place. `plain`: the graph in float, for its exact weights."""
    products, layers = _layers(quantized)
    return _narrow(quantized, plain, layers, _peaks(quantized, layers, inputs), products)


def narrow_unseen(quantized: onnx.ModelProto, plain: onnx.ModelProto) -> Narrowed:
    """The same of a graph that quantises activations while it runs: they may have any level, so the weights alone decide."""
    products, layers = _dynamic_layers(quantized)
    rows = {t.name: t.dims[0] for t in quantized.graph.initializer if t.dims}
    seen = {(layer.levels, layer.channel_axis): any_level(rows[layer.weights]) for layer in layers}
    return _narrow(quantized, plain, layers, seen, products)


def _narrow(
    quantized: onnx.ModelProto,
    plain: onnx.ModelProto,
    layers: Sequence[OnnxLayer],
    seen: Mapping[tuple[str, int], Peaks],
    products: int,
) -> Narrowed:
    constants = {t.name: t for t in quantized.graph.initializer}
    exact = {f"{t.name}_quantized": t for t in plain.graph.initializer}
    users: dict[str, list[OnnxLayer]] = defaultdict(list)
    for layer in layers:
        if (layer.levels, layer.channel_axis) in seen:
            users[layer.weights].append(layer)
    narrowed = total = 0
    for name, sharing in users.items():
        layer = sharing[0]
        steps = numpy_helper.to_array(constants[name])
        scale = numpy_helper.to_array(constants[layer.scale])
        factors = np.maximum.reduce([_factors(steps, user, seen[user.levels, user.channel_axis]) for user in sharing])
        total += factors.size
        if scale.size == 1:
            factors = np.full_like(factors, factors.max(initial=1.0))
        narrowed += int((factors > 1).sum())
        if (factors == 1).all():
            continue
        along = [1] * steps.ndim
        along[layer.output_axis] = -1
        found = numpy_helper.to_array(exact[name]) if name in exact else None
        unrounded = in_steps(found, steps, scale, along)
        _replace(constants[name], np.clip(np.rint(unrounded / factors.reshape(along)), -127, 127).astype(np.int8))
        _replace(constants[layer.scale], _scaled(scale, factors))
        for bias in {user.bias for user in sharing if user.bias is not None}:
            values, bias_scale = (numpy_helper.to_array(constants[part]) for part in bias)
            _replace(constants[bias[0]], np.rint(values / factors).astype(np.int32))
            _replace(constants[bias[1]], _scaled(bias_scale, factors))
    return Narrowed(narrowed, total, sum(map(len, users.values())) == products)


def _factors(steps: Array, layer: OnnxLayer, peaks: Peaks) -> Array:
    return narrowing(_grouped(steps, layer), peaks.padded(layer.padding)).reshape(-1)


def _layers(model: onnx.ModelProto) -> tuple[int, list[OnnxLayer]]:
    """How many products of int8 weights there are, and those that can be narrowed."""
    made_by = {name: node for node in model.graph.node for name in node.output}
    constants = {t.name: t for t in model.graph.initializer}
    products, layers = 0, []
    for node in model.graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        activations, stored = (_behind(made_by, name, "DequantizeLinear") for name in node.input[:2])
        stored_first = activations is not None and activations.input[0] in constants
        if activations is None or stored is None or not (stored_first or stored.input[0] in constants):
            continue
        products += 1
        rounded = _behind(made_by, activations.input[0], "QuantizeLinear")
        if rounded is not None and all(name in constants for name in stored.input):
            layer = _layer(node, rounded, stored, made_by, constants)
            layers += [layer] if layer is not None else []
    biases = Counter(bias for _, bias in {(layer.weights, layer.bias) for layer in layers} if bias is not None)
    return products, [layer for layer in layers if layer.bias is None or biases[layer.bias] == 1]


def _layer(node: Any, rounded: Any, stored: Any, made_by: Mapping[str, Any], constants: Mapping[str, Any]) -> OnnxLayer | None:
    """What is known of a product, None where its weights are not as our quantisation writes them."""
    attributes = {a.name: a for a in node.attribute}
    is_convolution = node.op_type == "Conv"
    weights, scale = constants[stored.input[0]], constants[stored.input[1]]
    output_axis = 0 if is_convolution or ("transB" in attributes and attributes["transB"].i) else 1
    if len(weights.dims) <= output_axis:
        return None
    is_plain = _is_signed(weights) and all(not numpy_helper.to_array(constants[name]).any() for name in stored.input[2:])
    if not is_plain or not _is_unsigned(rounded, constants) or ("transA" in attributes and attributes["transA"].i):
        return None
    if (not is_convolution and len(weights.dims) != 2) or (
        scale.dims and list(scale.dims) not in ([1], [weights.dims[output_axis]])
    ):
        return None
    added = _behind(made_by, node.input[2], "DequantizeLinear") if len(node.input) > 2 else None
    is_padded = "auto_pad" in attributes or ("pads" in attributes and any(attributes["pads"].ints))
    zero_point = constants[rounded.input[2]] if len(rounded.input) > 2 else None
    return OnnxLayer(
        levels=rounded.output[0],
        channel_axis=1 if is_convolution else -1,
        weights=weights.name,
        scale=scale.name,
        output_axis=output_axis,
        groups=attributes["group"].i if "group" in attributes else 1,
        bias=(added.input[0], added.input[1]) if added is not None and added.input[0] in constants else None,
        padding=float(numpy_helper.to_array(zero_point)) if is_padded and zero_point is not None else 0.0,
    )


def _behind(made_by: Mapping[str, Any], name: str, kind: str) -> Any:
    node = made_by.get(name)
    return node if node is not None and node.op_type == kind else None


def _dynamic_layers(model: onnx.ModelProto) -> tuple[int, list[OnnxLayer]]:
    """Products of activations quantised while running: their weights' scales are multiplied in afterwards, by name."""
    constants = {t.name: t for t in model.graph.initializer}
    products, layers = 0, []
    for node in model.graph.node:
        name = node.input[1] if node.op_type == "MatMulInteger" else ""
        if name not in constants:
            continue
        products += 1
        scale = name.removesuffix("_quantized") + "_scale"
        if scale in constants and len(constants[name].dims) == 2 and _is_signed(constants[name]):
            layers.append(OnnxLayer(node.input[0], -1, name, scale, output_axis=1))
    return products, layers


def _is_signed(constant: Any) -> bool:
    return bool(constant.data_type == onnx.TensorProto.INT8)


def _is_unsigned(quantize: Any, constants: Mapping[str, Any]) -> bool:
    zero_point = constants.get(quantize.input[2]) if len(quantize.input) > 2 else None
    return zero_point is None or zero_point.data_type == onnx.TensorProto.UINT8


def _peaks(model: onnx.ModelProto, layers: Sequence[OnnxLayer], inputs: Iterable[Inputs]) -> dict[tuple[str, int], Peaks]:
    """By tensor and axis of its channels."""
    places = sorted({(layer.levels, layer.channel_axis) for layer in layers})
    if not places:
        return {}
    names = sorted({name for name, _ in places})
    watching = onnx.ModelProto()
    watching.CopyFrom(model)
    del watching.graph.output[:]
    watching.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, None) for name in names)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(watching.SerializeToString(), options, providers=["CPUExecutionProvider"])
    seen: dict[tuple[str, int], list[Peaks]] = defaultdict(list)
    for tensors in inputs:
        answers = dict(zip(names, session.run(names, tensors), strict=True))
        for name, axis in places:
            if answers[name].size:
                seen[name, axis].append(peaks_of(answers[name].astype(np.float32), axis, 0.0, 255.0))
    return {key: usual(found) for key, found in seen.items()}


def _grouped(steps: Array, layer: OnnxLayer) -> Array:
    """(groups, outputs, inputs, taps)."""
    first = np.moveaxis(steps, layer.output_axis, 0).astype(np.float32)
    return first.reshape(layer.groups, len(first) // layer.groups, first.shape[1], -1)


def _scaled(scale: Array, factors: Array) -> Array:
    wider: Array = scale * (factors.max() if scale.size == 1 else factors.reshape(scale.shape))
    return wider.astype(scale.dtype)


def _replace(constant: Any, values: Array) -> None:
    constant.CopyFrom(numpy_helper.from_array(values, constant.name))
