"""Which constants of a graph are weights. Knows what layers multiply, add and look up; never a framework."""

from __future__ import annotations

from typing import TYPE_CHECKING

from maasdam.convert.operators.nodes import Graph

if TYPE_CHECKING:
    from maasdam.core import type_array

WEIGHTS: dict[str, tuple[int, ...]] = {
    "BatchNormalization": (1, 2), "Conv": (1, 2), "ConvTranspose": (1, 2), "Einsum": (0, 1), "Expand": (0,),
    "Gather": (0,), "Gemm": (0, 1, 2),
    "GRU": (1, 2, 3), "GroupNormalization": (1, 2), "InstanceNormalization": (1, 2), "LSTM": (1, 2, 3),
    "LayerNormalization": (1, 2), "MatMul": (0, 1), "PRelu": (1,), "RMSNormalization": (1,), "RNN": (1, 2, 3),
    "SimplifiedLayerNormalization": (1,), "com.microsoft.Attention": (1, 2), "com.microsoft.BiasGelu": (1,),
    "com.microsoft.EmbedLayerNormalization": (2, 3, 4, 5, 6), "com.microsoft.FastGelu": (1,), "com.microsoft.FusedConv": (1, 2),
    "com.microsoft.FusedGemm": (0, 1, 2), "com.microsoft.FusedMatMul": (0, 1), "com.microsoft.MultiHeadAttention": (3,),
    "com.microsoft.SkipLayerNormalization": (2, 3, 4), "com.microsoft.SkipSimplifiedLayerNormalization": (2, 3),
}  # fmt: skip
"""Which inputs of an operator are learned. Of Add, Mul, Sub and Concat: any constant but masks."""
ANY_INPUT = ("Add", "Concat", "Mul", "Sub")
MASK = 1e4
"""A constant that adds or multiplies numbers as large as this hides positions; nobody learned it."""
PASSED_ON = ("Cast", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
"""A weight stays one through these."""


def learned_names(graph: Graph) -> set[str]:
    """The constants that are weights: what layers multiply, add and look up."""
    origin = {name: name for name, array in graph.constants.items() if array.dtype.kind in "fV"}
    learned = set()
    for node in graph.nodes:
        if node.operator in PASSED_ON and node.inputs and node.inputs[0] in origin:
            origin[node.outputs[0]] = origin[node.inputs[0]]
        slots = WEIGHTS.get(node.operator, ())
        learned |= {origin[n] for i, n in enumerate(node.inputs) if i in slots and n in origin}
        if node.operator in ANY_INPUT:
            learned |= {origin[n] for n in node.inputs if n in origin and not _is_mask(graph.constants[origin[n]])}
    return {name for name in learned if graph.constants[name].size > 1}


def _is_mask(array: type_array) -> bool:
    numbers = array.astype("float32")
    return bool(array.size) and not bool(abs(numbers).max() < MASK)  # NaN too is no weight
