"""What a source answers otherwise one step beside is no more than its rounding: of its weights, where inputs have no step of
their own (integers), and of one number everywhere.

Knows ONNX graphs, whose weights it moves. Refuses to know candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from maasdam.convert.proof.conditions import opened
from maasdam.convert.proof.differences import Pairs, differences_of
from maasdam.convert.proof.edges import Question
from maasdam.core import Artifact, Tensors

DRAWS = 3
"""How often an answer is asked for anew to tell whether it is rounding alone."""
OTHERS = 32
"""Ids that are asked about to tell whether the source has a number for each."""
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


def is_rounding(
    question: Question,
    found: Tensors,
    bases: Sequence[Tensors],
    answer: Beside,
    allowed: Callable[[str], float],
    pairs: Pairs | None = None,
) -> bool:
    """Does the source itself answer one number everywhere otherwise, by more than is `allowed` of an output?

    A norm along equal numbers leaves nothing but their rounding. An infinity that stays is no other answer. Where `found` holds
    a number and the source none, or the other way round, the source has to do so itself for another one, taken from `bases`:
    that there is a number is seldom rounding. `pairs`, of numbers that have steps: what is rounded otherwise there is so on
    either side too, where an answer that turns on this very number is the same for both.
    """
    wanted = {name: array for name, array in question.answer.items() if array.dtype.kind == "f" and array.size}
    if any(array.shape != found[name].shape for name, array in wanted.items()):
        return False

    def differ(one: Tensors, other: Tensors) -> bool:
        return any(differences_of(one[name], other[name])[0].max() > allowed(name) for name in wanted)

    if pairs and not differ(wanted, found):
        return False
    if not _are_numbers_alike(wanted, found):
        others = (_filled(question.batch, base, draw) for draw in range(OTHERS) for base in bases[:1])
        if all(_are_numbers_alike(wanted, answer(other, 0)) for other in others):
            return False
    moves = any(differ(wanted, answer(question.batch, draw)) for draw in range(DRAWS))
    return moves and (pairs is None or any(differ(*pairs(draw)) for draw in range(DRAWS)))


def _are_numbers_alike(one: Tensors, other: Tensors) -> bool:
    return all(np.array_equal(np.isfinite(array), np.isfinite(other[name])) for name, array in one.items())


def _filled(batch: Tensors, base: Tensors, draw: int) -> Tensors:
    """The batch with other ids, one for each input, as `base` has them."""
    return {name: np.full_like(array, base[name].flat[draw * 7919 % base[name].size]) for name, array in batch.items()}


def _nudged(source: Artifact, draw: int) -> Any:
    model = onnx.load(source.path / "model.onnx")
    random = np.random.default_rng([draw, 313])
    for weight in model.graph.initializer:
        if weight.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE):
            array = numpy_helper.to_array(weight)
            ends = random.choice(np.array([-np.inf, np.inf], array.dtype), array.shape)
            with np.errstate(over="ignore"):
                moved = np.nextafter(array, ends)
            kept = np.where(np.isfinite(array) & np.isfinite(moved), moved, array)  # one step from infinity is no step
            weight.CopyFrom(numpy_helper.from_array(np.asarray(kept, array.dtype), weight.name))
    return opened(model, source.path / "model.onnx")
