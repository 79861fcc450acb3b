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
from maasdam.pipeline.quantize.saturation import LARGEST_LEVEL, Array, Peaks, in_steps, narrowing, usual

if TYPE_CHECKING:
    import openvino as ov

KINDS = ("Convolution", "GroupConvolution", "MatMul")
SAME_VALUES = (
    *("Reshape", "Transpose", "Squeeze", "Unsqueeze", "MaxPool", "Split", "VariadicSplit", "Pad", "StridedSlice", "Slice"),
    *("Gather", "DepthToSpace", "SpaceToDepth", "ShuffleChannels", "Broadcast", "Tile"),
)
"""What comes out of them went in: it has the range that was chosen before them."""


@dataclass(frozen=True, slots=True)
class OpenVinoLayer:
    """A product of activations of 256 levels and constant int8 weights."""

    node: Any
    constant: Any
    multiply: Any
    low: Array
    high: Array

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

    @property
    def channels(self) -> int:
        """Of the activations."""
        groups, _, inputs, _ = _grouped(np.asarray(self.constant.data), self).shape
        return int(groups * inputs)

    @property
    def padding(self) -> float:
        """The level of what is put around a picture."""
        attributes = self.node.get_attributes()
        if self.is_product or not any([*attributes["pads_begin"], *attributes["pads_end"], "same" in attributes["auto_pad"]]):
            return 0.0
        return float(np.clip(np.max(-self.low * LARGEST_LEVEL / (self.high - self.low)), 0, LARGEST_LEVEL))


def narrow(quantized: ov.Model, plain: ov.Model, inputs: Iterable[Inputs]) -> tuple[int, int]:
    """Narrow weights in place; (output channels narrowed, all of them). `plain`: the network in float, for exact weights."""
    from openvino import opset13 as ops

    layers = list(_layers(quantized))
    seen = _peaks(quantized, layers, inputs)
    exact = _constants_beside(plain)
    narrowed = total = 0
    users: dict[str, list[OpenVinoLayer]] = defaultdict(list)
    for layer in layers:
        if layer.name in seen:
            users[layer.constant.get_friendly_name()].append(layer)
    for sharing in users.values():
        layer = sharing[0]
        steps = np.asarray(layer.constant.data)
        scale = np.asarray(layer.multiply.input_value(1).get_node().data)
        along = [n if axis in layer.output_axes else 1 for axis, n in enumerate(steps.shape)]
        each = [narrowing(_grouped(steps, user), seen[user.name].padded(user.padding)) for user in sharing]
        factors = np.maximum.reduce([f.reshape(-1) for f in each]).reshape(along)
        total += factors.size
        if scale.size == 1:
            factors = np.full_like(factors, factors.max())
        elif scale.size != factors.size:
            continue
        narrowed += int((factors > 1).sum())
        if (factors == 1).all():
            continue
        unrounded = in_steps(exact.get(layer.name), steps, scale, along)
        narrower = ops.constant(np.clip(np.rint(unrounded / factors), -127, 127).astype(np.int8))
        narrower.set_friendly_name(layer.constant.get_friendly_name())
        wider = scale * (factors.max() if scale.size == 1 else factors.reshape(scale.shape))
        for user in list(layer.constant.output(0).get_target_inputs()):
            user.replace_source_output(narrower.output(0))
        for multiply in {user.multiply.get_friendly_name(): user.multiply for user in sharing}.values():
            multiply.input(1).replace_source_output(ops.constant(wider.astype(scale.dtype)).output(0))
    quantized.validate_nodes_and_infer_types()
    return narrowed, total


def _layers(model: ov.Model) -> Iterator[OpenVinoLayer]:
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
            yield OpenVinoLayer(node, constant, multiply, *limits)


def _range(node: Any, is_direct: bool = True) -> tuple[Array, Array] | None:
    """Of the activations that `node` gives, where they have 256 levels: numbers, or by channel where nothing lies between."""
    kind = node.get_type_name()
    if kind in SAME_VALUES:
        return _range(node.input_value(0).get_node(), is_direct=False)
    if kind == "Concat":
        found = [_range(node.input_value(port).get_node(), is_direct=False) for port in range(len(node.inputs()))]
        first = found[0]
        same = first is not None and all(f is not None and f[0] == first[0] and f[1] == first[1] for f in found)
        return first if same else None
    if kind != "FakeQuantize" or node.get_attributes()["levels"] != 256:
        return None
    ends = [node.input_value(port).get_node() for port in (3, 4)]
    if any(end.get_type_name() != "Constant" for end in ends):
        return None
    low, high = (np.asarray(end.data) for end in ends)
    if low.size == 1 and high.size == 1:
        low, high = low.reshape(()), high.reshape(())
    elif not is_direct:
        return None
    return (low, high) if (high > low).all() else None


def _peaks(model: ov.Model, layers: Sequence[OpenVinoLayer], inputs: Iterable[Inputs]) -> dict[str, Peaks]:
    """By layer, from the network with float activations: the same on every processor.

    The network finds its own peaks, so that no more of its activations is held at once than while it serves.
    """
    if not layers:
        return {}
    plain = model.clone()
    nodes = {node.get_friendly_name(): node for node in plain.get_ordered_ops()}
    for node in nodes.values():
        if node.get_type_name() == "FakeQuantize":
            for user in list(node.output(0).get_target_inputs()):
                user.replace_source_output(node.input_value(0))
    watched = [layer for layer in layers if nodes[layer.name].input_value(0).get_partial_shape().rank.is_static]
    first = len(plain.outputs)
    plain.add_outputs([output for layer in watched for output in _highest(nodes[layer.name].input_value(0), layer)])
    compiled = openvino().Core().compile_model(plain, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    seen: dict[str, list[Peaks]] = defaultdict(list)
    for tensors in inputs:
        answers = compiled(tensors)
        for number, layer in enumerate(watched):
            each, pairs, shape = (np.array(answers[first + 3 * number + part]) for part in range(3))
            if shape.all():
                whole = pairs if len(each) % 2 == 0 else np.concatenate([pairs, each[-1:]])
                seen[layer.name].append(Peaks(each, whole, int(shape.prod()) // len(each)))
    return {name: usual(found) for name, found in seen.items()}


def _highest(activations: ov.Output, layer: OpenVinoLayer) -> list[ov.Output]:
    """What `saturation.peaks_of` computes, as outputs of the network: each channel's, neighbours' sums', and the shape."""
    from openvino import opset13 as ops

    rank = activations.get_partial_shape().rank.get_length()
    axis = layer.channel_axis % rank
    others = np.array([number for number in range(rank) if number != axis], np.int64)
    low, high = layer.low.astype(np.float32), layer.high.astype(np.float32)
    clipped = ops.minimum(ops.maximum(activations, ops.constant(low)), ops.constant(high))
    scaled = ops.constant((LARGEST_LEVEL / (high - low)).astype(np.float32))
    levels = ops.multiply(ops.subtract(clipped, ops.constant(low)), scaled)
    even = np.arange(0, layer.channels - 1, 2, dtype=np.int64)
    at = ops.constant(np.int64(axis))
    sums = ops.add(ops.gather(levels, ops.constant(even), at), ops.gather(levels, ops.constant(even + 1), at))
    found = [ops.reduce_max(values, ops.constant(others), keep_dims=False) for values in (levels, sums)]
    return [*(node.output(0) for node in found), ops.shape_of(activations).output(0)]


def _grouped(steps: Array, layer: OpenVinoLayer) -> Array:
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
