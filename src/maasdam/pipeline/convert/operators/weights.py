"""Which constants of a graph are weights. Knows what layers multiply, add and look up; never a framework."""

from __future__ import annotations

from maasdam.pipeline.convert.operators.graph import Graph

WEIGHTS: dict[str, tuple[int, ...]] = {
    "BatchNormalization": (1, 2), "Conv": (1, 2), "ConvTranspose": (1, 2), "Einsum": (0, 1), "Gather": (0,), "Gemm": (0, 1, 2),
    "GRU": (1, 2, 3), "GroupNormalization": (1, 2), "InstanceNormalization": (1, 2), "LSTM": (1, 2, 3),
    "LayerNormalization": (1, 2), "MatMul": (0, 1), "PRelu": (1,), "RMSNormalization": (1,), "RNN": (1, 2, 3),
}  # fmt: skip
"""Which inputs of an operator are learned. Of Add, Mul and Sub: constants of one axis and more than one number."""
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
        if node.operator in ("Add", "Mul", "Sub"):
            given = [origin[n] for n in node.inputs if n in origin]
            learned |= {n for n in given if graph.constants[n].ndim == 1 and graph.constants[n].size > 1}
    return {name for name in learned if graph.constants[name].size > 1}
