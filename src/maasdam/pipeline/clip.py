"""The pass "clip": cut single large weights down before quantisation, so that the others keep more of the levels.

Knows ranges of weights, per output of a layer. Refuses to quantise: the pass after it does, for the same number of bits.

    mse         each output's range is the one at which rounding to `bits` changes its weights the least
    percentile  each output's range holds `percentile` per cent of its weights

What it wins in rounding and loses in clipping stands in the facts, as the error that quantising would make with and without.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from maasdam.artifacts.produced import PassFacts, Produced
from maasdam.core import Artifact
from maasdam.errors import Unsupported
from maasdam.pipeline.passes import Pass, PassContext, Setting

if TYPE_CHECKING:
    from maasdam.core import type_array

NARROWEST = 0.3
"""The share of an output's largest weight below which no range is tried."""
TRIED = 36
"""How many ranges are tried between that and the largest weight itself."""
Clip = Callable[["type_array"], "type_array"]
"""Weights [outputs, …] -> the same, clipped."""


@dataclass(slots=True)
class Tally:
    """What happened to all weights together."""

    bits: int
    weights: int = 0
    clipped: int = 0
    errors: dict[str, float] = field(default_factory=lambda: {"without": 0.0, "with": 0.0})
    energy: float = 0.0

    def add(self, before: type_array, after: type_array) -> None:
        """One layer's weights, [outputs, …]."""
        self.weights += before.size
        self.clipped += int((before != after).sum())
        self.errors["without"] += _square(before - rounded(before, self.bits))
        self.errors["with"] += _square(before - rounded(after, self.bits))
        self.energy += _square(before)

    def to_json(self) -> dict[str, Any]:
        """The facts of the pass; errors are relative to the weights' own squares."""
        scale = self.energy or 1.0
        return {
            "weights": self.weights,
            "clipped": self.clipped,
            "quantization_error": {"bits": self.bits, **{name: value / scale for name, value in self.errors.items()}},
        }


def run(source: Artifact, out: Path, settings: Mapping[str, Any], context: PassContext) -> Produced:
    """Clip every linear and convolutional layer's weights. Raises Unsupported where there is none, or for other formats."""
    context.progress("clip weights")
    tally = Tally(settings["bits"])
    limits = clip_by_error(settings["bits"]) if settings["method"] == "mse" else clip_by_percentile(settings["percentile"])

    def clip(weights: type_array) -> type_array:
        clipped = limits(weights)
        tally.add(weights, clipped)
        return clipped

    if source.format == "onnx":
        made = _onnx(source, out, clip)
    elif source.format == "pytorch":
        made = _pytorch(source, out, clip)
    else:
        raise Unsupported(f"clipping takes a PyTorch or an ONNX model; this one is {source.format}: clip it before")
    if not tally.weights:
        raise Unsupported("the network has no linear or convolutional layer with constant weights; there is nothing to clip")
    return replace(made, facts=PassFacts({"method": settings["method"], **tally.to_json()}))


def clip_by_error(bits: int) -> Clip:
    """Clip each output at the range where rounding to `bits` errs least, in squares."""

    def clip(weights: type_array) -> type_array:
        rows = weights.reshape(len(weights), -1)
        largest = np.abs(rows).max(1, keepdims=True)
        best, least = largest.copy(), np.full((len(rows), 1), np.inf)
        for share in np.linspace(1.0, NARROWEST, TRIED):
            limit = largest * share
            error = np.square(rows - rounded(rows, bits, limit)).sum(1, keepdims=True)
            is_better = error < least * (1 - 1e-6)  # the widest of equals: nothing is clipped for nothing
            best, least = np.where(is_better, limit, best), np.where(is_better, error, least)
        return _within(rows, best).reshape(weights.shape)

    return clip


def clip_by_percentile(percentile: float) -> Clip:
    """Clip each output at the percentile of its weights' magnitudes."""

    def clip(weights: type_array) -> type_array:
        rows = weights.reshape(len(weights), -1)
        return _within(rows, np.percentile(np.abs(rows), percentile, axis=1, keepdims=True)).reshape(weights.shape)

    return clip


def rounded(weights: type_array, bits: int, limit: type_array | None = None) -> type_array:
    """Weights [outputs, …] as symmetric quantisation per output gives them back, the range being `limit` or the largest."""
    rows = weights.reshape(len(weights), -1)
    levels = 2 ** (bits - 1) - 1
    largest = np.abs(rows).max(1, keepdims=True) if limit is None else limit
    scale = np.maximum(largest, np.finfo(np.float32).tiny) / levels
    answer: type_array = (np.clip(np.round(rows / scale), -levels, levels) * scale).reshape(weights.shape)
    return answer


def _within(rows: type_array, limit: type_array) -> type_array:
    answer: type_array = np.clip(rows, -limit, limit).astype(rows.dtype)
    return answer


def _square(values: type_array) -> float:
    return float(np.square(values, dtype=np.float64).sum())


def _pytorch(source: Artifact, out: Path, clip: Clip) -> Produced:
    import torch

    from maasdam.pipeline.prune import open_to_cut
    from maasdam.pipeline.prune.layers import layers
    from maasdam.pipeline.prune.save import save

    model = open_to_cut(source)
    seen: set[int] = set()
    with torch.no_grad():
        for layer in layers(model):
            if id(layer.weight) not in seen:
                seen.add(id(layer.weight))
                layer.weight.copy_(torch.from_numpy(clip(layer.weight.detach().float().numpy())))
    return save(model, source, out, {}, set())


def _onnx(source: Artifact, out: Path, clip: Clip) -> Produced:
    import onnx
    from onnx import numpy_helper

    from maasdam.convert.onnx_files import external_files, write_onnx
    from maasdam.pipeline.quantize.shared import copy_all_but

    external = external_files(source.path / "model.onnx")
    model = onnx.load(source.path / "model.onnx")
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    done: set[str] = set()
    for node in model.graph.node:
        axis = _output_axis(node)
        name = node.input[1] if axis is not None and len(node.input) > 1 else ""
        if name not in stored or name in done or stored[name].data_type != onnx.TensorProto.FLOAT:
            continue
        weights = numpy_helper.to_array(stored[name])
        if weights.ndim < 2:
            continue
        assert axis is not None
        clipped = _along(weights, axis if axis >= 0 else weights.ndim + axis, clip)
        stored[name].CopyFrom(numpy_helper.from_array(clipped, name))
        done.add(name)
    copy_all_but(source.path, out, {"model.onnx"} | external)
    write_onnx(model, out / "model.onnx")
    return Produced("onnx", "onnx", source.engine, source.signature, dict(source.settings))


def _output_axis(node: Any) -> int | None:
    """The axis of a node's weights that is its outputs: Conv [out, …], Gemm [in, out] or transposed, MatMul […, out]."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        return 0 if any(a.name == "transB" and a.i for a in node.attribute) else 1
    return -1 if node.op_type == "MatMul" else None


def _along(weights: np.ndarray[Any, Any], axis: int, clip: Clip) -> type_array:
    """`clip` with the outputs first, and back."""
    moved = np.ascontiguousarray(np.moveaxis(weights, axis, 0))
    return np.ascontiguousarray(np.moveaxis(clip(moved), 0, axis))


PASS = Pass(
    use="clip",
    version=1,
    settings={
        "method": Setting(str, "mse", choices=("mse", "percentile"), says="how each output's range is found"),
        "bits": Setting(int, 8, choices=(8, 4), says="what the weights will be quantised to"),
        "percentile": Setting(float, 99.9, low=50, high=100, says="share of the weights kept as they are (percentile)"),
    },
    run=run,
    libraries=("torch", "transformers", "onnx"),
    wants=lambda source, settings: "onnx" if source.format == "tensorflow" else None,
)
