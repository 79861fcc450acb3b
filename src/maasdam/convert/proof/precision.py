"""How finely a source computes, and so by how much a faithful conversion may differ.

Knows what halves and 8-bit numbers in a graph mean. Two engines add in another order; where a sum is then rounded to 8 bits
or 11, one that lies between two steps falls either way, in both rightly.
"""

from __future__ import annotations

import re

import onnx

from maasdam.convert.onnx_files import nodes_of, read_onnx
from maasdam.convert.proof.differences import Tolerance
from maasdam.core import Artifact

HALVES = ("float16", "bfloat16")
WHOLE = Tolerance()
HALF = Tolerance(relative=1e-2, spread=3.0, slices=0.1)
"""A half has 11 bits (bfloat16 8): layers of them differ by 1e-3 of the largest value and more."""
ROUNDED = Tolerance(relative=2e-2, spread=3.0, slices=0.3)
"""8 bits: one step is 4e-3 of a tensor's range, and a few fall otherwise. A wrong layer is off by 0.1 and more."""
ROUNDING = ("QuantizeLinear", "DynamicQuantize", "QLinear", "QGemm", "QAttention", "QMoE")
"""How the names of ONNX operators begin that round to 8 bits."""
QUANTIZED = (*ROUNDING, "ConvInteger", "DequantizeLinear", "GatherBlockQuantized", "MatMulInteger", "MatMulNBits")
"""The same of all that a quantised graph holds."""
_ROUNDING_ELSEWHERE = re.compile(
    r"FakeQuant|QuantizeAndDequantize|QuantizeV2|QuantizedMatMul|QuantizedConv"
    r"|fake_quantize|quantized_decomposed\.quantize|quantize_affine|\.quantize_per_"
)
"""TensorFlow's and torch's operators that round to 8 bits or fewer, within their names."""


def tolerance_of(source: Artifact) -> Tolerance:
    """What may differ from this source; the strict one wherever it computes at float32."""
    if source.layout == "onnx":
        graph = read_onnx(source.path / "model.onnx").graph
        if any(node.op_type.startswith(ROUNDING) for node in nodes_of(graph)):
            return ROUNDED
        if _computes_in_halves(graph):
            return HALF
    if source.layout in ("savedmodel", "pt2", "keras"):
        operators, types = _computed(source)
        if any(_ROUNDING_ELSEWHERE.search(name) for name in operators):
            return ROUNDED
        if types & set(HALVES):
            return HALF
    specs = (*source.signature.inputs, *source.signature.outputs) if source.signature else ()
    return HALF if any(s.dtype in HALVES for s in specs) else WHOLE


def _computed(source: Artifact) -> tuple[frozenset[str], frozenset[str]]:
    """The operators and types that a source computes with, as its files say."""
    from maasdam.sources import keras, pt2, savedmodel

    if source.layout == "savedmodel":
        return savedmodel.computed(source.path / "saved_model.pb")
    if source.layout == "pt2":
        return pt2.computed(source.path / "model.pt2")
    return frozenset(), keras.computed(source.path / "model.keras")


def _computes_in_halves(graph: onnx.GraphProto) -> bool:
    """Does anything become a half on the way, or does a layer read weights that are halves?"""
    halves = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    stored = {w.name for w in graph.initializer if w.data_type in halves}
    for node in nodes_of(graph):
        if node.op_type == "Cast":
            if any(a.name == "to" and a.i in halves for a in node.attribute):
                return True
        elif any(name in stored for name in node.input):
            return True
    return False
