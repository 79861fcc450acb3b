"""Raw tensors: what a model takes that names no task. Knows arrays; no processor stands between them and the engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from maasdam.core import Payload, Processor, Signature, TensorPayload, Tensors, with_words
from maasdam.errors import Unsupported
from maasdam.settings import Settings
from maasdam.tasks.examples import tensors
from maasdam.tasks.scoring import COSINE
from maasdam.tasks.task import Task

FREE_AXIS = 8
"""Size given to a dynamic axis, other than the batch, of tensors that nothing is known of."""


def _zeros(signature: Signature | None) -> Payload | None:
    import numpy as np

    if signature is None or any(spec.dtype in ("object", "bfloat16") for spec in signature.inputs):
        return None
    made = {}
    for spec in signature.inputs:
        shape = [(1 if axis == 0 else FREE_AXIS) if size is None else size for axis, size in enumerate(spec.shape)]
        made[spec.name] = np.zeros(shape, spec.dtype)
    return TensorPayload(made)


def _no_processor(folder: Path, signature: Signature | None, settings: Settings) -> Processor:
    raise Unsupported("raw tensors have no processor; name the model's task")


def _lines(answer: Tensors) -> list[str]:
    return [f"{name} {array.dtype.name} {list(array.shape)}\n{array}" for name, array in answer.items()]


def _to_json(answer: Tensors) -> dict[str, Any]:
    return {"outputs": {name: with_words(array.tolist()) for name, array in answer.items()}}


TASK = Task(
    name="tensors",
    payloads=(TensorPayload,),
    answer=dict,
    takes="an .npz file of its inputs",
    doors=("/v2/models/NAME/infer",),
    open=_no_processor,
    warm_up=_zeros,
    read_examples=lambda path, labels, signature: tensors(path, signature),
    metric=COSINE,
    same=lambda one, other: None,
    shown=lambda answer: None,
    lines=_lines,
    to_json=_to_json,
)
