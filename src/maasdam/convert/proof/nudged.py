"""A source whose weights are one step of their type beside: what it answers otherwise is no more than its rounding.

For inputs that have no step of their own: integers. Knows ONNX graphs; of other layouts it says nothing. Refuses to know
candidates.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from maasdam.convert.proof.conditions import opened
from maasdam.convert.proof.edges import Question
from maasdam.core import Artifact, Tensors

DRAWS = 3
"""How often an answer is asked for anew to tell whether it is rounding alone."""
MOST_BYTES = 128 * 1024 * 1024
"""Larger graphs would be held once more for each draw."""
Beside = Callable[[Tensors, int], Tensors]
"""(batch, draw): what the source answers with other roundings."""


def beside(source: Artifact) -> Beside | None:
    """None where the source's inputs have steps of their own, or its weights can't be moved."""
    if source.layout != "onnx" or source.size_bytes > MOST_BYTES or source.signature is None:
        return None
    if not all(s.dtype.startswith(("int", "uint", "bool")) for s in source.signature.inputs):
        return None
    names = [s.name for s in source.signature.outputs]

    @cache
    def session(draw: int) -> Any:
        return _nudged(source, draw)

    def answer(batch: Tensors, draw: int) -> Tensors:
        return dict(zip(names, session(draw).run(names, dict(batch)), strict=True))

    return answer if session(0) is not None else None


def is_rounding(question: Question, answer: Beside, allowed: Callable[[str], float]) -> bool:
    """Does the source itself answer otherwise, by more than is `allowed` of an output?"""
    import numpy as np

    for draw in range(DRAWS):
        for name, moved in answer(question.batch, draw).items():
            wanted = question.answer[name]
            if wanted.dtype.kind == "f" and wanted.size and not np.abs(moved - wanted).max() <= allowed(name):  # or it is NaN
                return True
    return False


def _nudged(source: Artifact, draw: int) -> Any:
    import numpy as np
    import onnx
    from onnx import numpy_helper

    model = onnx.load(source.path / "model.onnx")
    random = np.random.default_rng([draw, 313])
    for weight in model.graph.initializer:
        if weight.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE):
            array = numpy_helper.to_array(weight)
            ends = random.choice(np.array([-np.inf, np.inf], array.dtype), array.shape)
            weight.CopyFrom(numpy_helper.from_array(np.asarray(np.nextafter(array, ends), array.dtype), weight.name))
    return opened(model, source.path / "model.onnx")
