"""Narrow the int8 weights of NNCF's networks where processors without VNNI would cut sums off (see saturation.py).

Knows how NNCF writes weights (int8, a conversion, a scale) and ranges of activations (FakeQuantize).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from maasdam.engines.openvino_library import openvino
from maasdam.pipeline.examples import Inputs
from maasdam.pipeline.quantize.saturation import Array, Peaks, mean, narrowing, peaks_of

if TYPE_CHECKING:
    import openvino as ov

KINDS = ("Convolution", "GroupConvolution", "MatMul")
SHAPES_ONLY = ("Reshape", "Transpose", "Squeeze", "Unsqueeze")


@dataclass(frozen=True, slots=True)
class Layer:
    """A product of activations of 256 levels and constant int8 weights."""

    node: Any
    constant: Any
    multiply: Any
    low: float
    high: float

    @property
    def name(self) -> str:
        return str(self.node.get_friendly_name())

    @property
    def is_product(self) -> bool:
        return bool(self.node.get_type_name() == "MatMul")

    @property
    def output_axes(self) -> tuple[int, ...]:
        """Of the weights as they are stored: where the groups and output channels are."""
        if self.is_product:
            return (0,) if self.node.get_attributes()["transpose_b"] else (1,)
        return (0, 1) if self.node.get_type_name() == "GroupConvolution" else (0,)

    @property
    def channel_axis(self) -> int:
        """Of the activations."""
        if self.is_product:
            return -2 if self.node.get_attributes()["transpose_a"] else -1
        return 1


def narrow(quantized: ov.Model, plain: ov.Model, inputs: Iterable[Inputs]) -> tuple[int, int]:
    """Narrow weights in place; (output channels narrowed, all of them). `plain`: the network in float, for exact weights."""
    from openvino import opset13 as ops

    layers = list(_layers(quantized))
    seen = _peaks(quantized, layers, inputs)
    exact = _constants_beside(plain)
    narrowed = total = 0
    done: set[str] = set()
    for layer in layers:
        if layer.name not in seen or layer.constant.get_friendly_name() in done:
            continue  # weights shared by two layers are left alone after the first
        done.add(layer.constant.get_friendly_name())
        steps = np.asarray(layer.constant.data)
        scale_node = layer.multiply.input_value(1).get_node()
        scale = np.asarray(scale_node.data)
        along = [n if axis in layer.output_axes else 1 for axis, n in enumerate(steps.shape)]
        factors = narrowing(_grouped(steps, layer), seen[layer.name]).reshape(along)
        total += factors.size
        if scale.size == 1:
            factors = np.full_like(factors, factors.max())
        elif scale.size != factors.size:
            continue
        narrowed += int((factors > 1).sum())
        if (factors == 1).all():
            continue
        in_steps = _in_steps(exact.get(layer.name), steps, scale, along)
        narrower = ops.constant(np.clip(np.rint(in_steps / factors), -127, 127).astype(np.int8))
        narrower.set_friendly_name(layer.constant.get_friendly_name())
        wider = scale * (factors.max() if scale.size == 1 else factors.reshape(scale.shape))
        for user in list(layer.constant.output(0).get_target_inputs()):
            user.replace_source_output(narrower.output(0))
        layer.multiply.input(1).replace_source_output(ops.constant(wider.astype(scale.dtype)).output(0))
    quantized.validate_nodes_and_infer_types()
    return narrowed, total


def _layers(model: ov.Model) -> Iterator[Layer]:
    for node in model.get_ordered_ops():
        if node.get_type_name() not in KINDS:
            continue
        multiply = node.input_value(1).get_node()
        if multiply.get_type_name() != "Multiply" or multiply.input_value(1).get_node().get_type_name() != "Constant":
            continue
        convert = multiply.input_value(0).get_node()
        constant = convert.input_value(0).get_node() if convert.get_type_name() == "Convert" else None
        if constant is None or constant.get_type_name() != "Constant" or np.asarray(constant.data).dtype != np.int8:
            continue
        if node.get_type_name() == "MatMul" and np.asarray(constant.data).ndim != 2:
            continue
        limits = _range(node.input_value(0).get_node())
        if limits is not None:
            yield Layer(node, constant, multiply, *limits)


def _range(node: Any) -> tuple[float, float] | None:
    """Of the activations that come out of `node`, where they have 256 levels between two numbers."""
    while node.get_type_name() in SHAPES_ONLY:
        node = node.input_value(0).get_node()
    if node.get_type_name() != "FakeQuantize" or node.get_attributes()["levels"] != 256:
        return None
    ends = [node.input_value(port).get_node() for port in (3, 4)]
    if any(end.get_type_name() != "Constant" or np.asarray(end.data).size != 1 for end in ends):
        return None
    low, high = (float(np.asarray(end.data).reshape(())) for end in ends)
    return (low, high) if high > low else None


def _peaks(model: ov.Model, layers: Sequence[Layer], inputs: Iterable[Inputs]) -> dict[str, Peaks]:
    """By layer, from the network with float activations: the same on every processor."""
    if not layers:
        return {}
    plain = model.clone()
    nodes = {node.get_friendly_name(): node for node in plain.get_ordered_ops()}
    for node in nodes.values():
        if node.get_type_name() == "FakeQuantize":
            for user in list(node.output(0).get_target_inputs()):
                user.replace_source_output(node.input_value(0))
    asked = [nodes[layer.name].input_value(0) for layer in layers]
    names = [(output.get_node().get_friendly_name(), output.get_index()) for output in asked]
    place = {name: len(model.outputs) + number for number, name in enumerate(dict.fromkeys(names))}
    plain.add_outputs([asked[names.index(name)] for name in place])
    compiled = openvino().Core().compile_model(plain, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    seen: dict[str, list[Peaks]] = defaultdict(list)
    for tensors in inputs:
        answers = compiled(tensors)
        for name, layer in zip(names, layers, strict=True):
            values = np.asarray(answers[place[name]])
            if values.size:
                seen[layer.name].append(peaks_of(values, layer.channel_axis, layer.low, layer.high))
    return {name: mean(found) for name, found in seen.items()}


def _grouped(steps: Array, layer: Layer) -> Array:
    """(groups, outputs, inputs, taps)."""
    if layer.is_product:
        steps = steps if layer.output_axes == (0,) else steps.T
        return steps[None, :, :, None].astype(np.float32)
    if len(layer.output_axes) == 1:
        steps = steps[None]
    return steps.reshape(*steps.shape[:3], -1).astype(np.float32)


def _constants_beside(model: ov.Model) -> dict[str, Array]:
    """By layer's name, the float weights it multiplies with."""
    found = {}
    for node in model.get_ordered_ops():
        if node.get_type_name() in KINDS and node.input_value(1).get_node().get_type_name() == "Constant":
            found[node.get_friendly_name()] = np.asarray(node.input_value(1).get_node().data)
    return found


def _in_steps(exact: Array | None, steps: Array, scale: Array, along: list[int]) -> Array:
    """The float weights in steps, so that they are rounded once; the rounded ones where the float ones are not at hand."""
    rounded = steps.astype(np.float64)
    if exact is None or exact.shape != steps.shape:
        return rounded
    unrounded: Array = exact.astype(np.float64) / (scale if scale.size == 1 else scale.reshape(along))
    return unrounded if np.abs(unrounded - rounded).max() <= 1 else rounded
