"""Scores to labels: what all classifiers share, whatever they look at. Knows labels, scores and their words; no payload."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maasdam.core import Classification, Label, Signature, Tensors
from maasdam.errors import EngineFailure, InvalidModel
from maasdam.tasks.files import labels_of, read_json
from maasdam.tasks.scoring import TOP1
from maasdam.tasks.task import Bytes, Task

if TYPE_CHECKING:
    from maasdam.core import type_array

USUAL = 5
"""Labels that are told where nobody says how many."""
SUM_TOLERANCE = 1e-3
"""How far from 1 the sum of a row of probabilities may be."""


class Classes:
    """The classes of one model, and which of its outputs has their scores."""

    def __init__(self, folder: Path, signature: Signature, what: str) -> None:
        """`what` is classified ("picture"). Raises InvalidModel where no output, or more than one, can be the scores."""
        self._labels = labels_of(folder)
        self._is_one_of = read_json(folder / "config.json").get("problem_type") != "multi_label_classification"
        self._output = _scores_output(signature)
        self._what = what

    def best(self, outputs: Sequence[Tensors], top_k: int | None) -> Classification:
        """Scores or probabilities [1, N], one or several of one payload -> the `top_k` best labels of their mean.

        Raises EngineFailure for NaN.
        """
        import numpy as np

        rows = [np.asarray(tensors[self._output], dtype=np.float64).reshape(-1) for tensors in outputs]
        if not all(np.isfinite(row).all() for row in rows):
            raise EngineFailure(f"the model's scores of this {self._what} are not finite")
        chances = np.mean([_probabilities(row, self._is_one_of) for row in rows], axis=0)
        return _best(chances, self._labels, top_k)


def best_of(scores: type_array, labels: Mapping[int, str], top_k: int | None, is_one_of: bool) -> Classification:
    """Scores [N] through a softmax, or where the labels don't exclude each other each through a sigmoid."""
    return _best(_chances(scores, is_one_of), labels, top_k)


def _best(chances: type_array, labels: Mapping[int, str], top_k: int | None) -> Classification:
    import numpy as np

    best = np.argsort(-chances, kind="stable")[: max(1, min(USUAL if top_k is None else top_k, len(chances)))]
    return Classification(tuple(Label(labels.get(int(i), str(int(i))), int(i), float(chances[i])) for i in best))


def _scores_output(signature: Signature) -> str:
    named = [s for s in signature.outputs if s.name == "logits"]
    flat = [s for s in signature.outputs if len(s.shape) == 2 and s.dtype.startswith("float")]
    outputs = named or flat or [s for s in signature.outputs if s.dtype.startswith("float") and set(s.shape[2:]) == {1}]
    if len(outputs) != 1:
        has = ", ".join(f"{s.name} {s.sizes}" for s in signature.outputs)
        raise InvalidModel(f"a classifier gives one output of 2 axes, or one called 'logits'; this model gives {has}")
    return outputs[0].name


def _probabilities(row: type_array, is_one_of: bool) -> type_array:
    """Rows that are none yet go through softmax; of labels that don't exclude each other, through a sigmoid. float64."""
    if bool((row >= 0).all()) and (abs(float(row.sum()) - 1.0) < SUM_TOLERANCE or (not is_one_of and row.max() <= 1)):
        return row
    return _chances(row, is_one_of)


def _chances(row: type_array, is_one_of: bool) -> type_array:
    import numpy as np

    if not is_one_of:
        return np.asarray(1 / (1 + np.exp(-row)))
    powers = np.exp(row - row.max())
    chances: type_array = powers / powers.sum()
    return chances


def best_label(of: str) -> Bytes:
    """How the Open Inference Protocol carries it: the BYTES input `of` to the best label and its score."""
    return Bytes(of, (("label", "BYTES"), ("score", "FP32")), lambda a: (a.labels[0].label.encode(), a.labels[0].score))


def shown(answer: Classification) -> str:
    """The best label."""
    return answer.labels[0].label


def lines(answer: Classification) -> list[str]:
    """As a terminal shows it."""
    return [", ".join(f"{x.label} ({x.score:.3f})" for x in answer.labels)]


def _data(answer: Classification) -> list[dict[str, Any]]:
    return [{"label": x.label, "label_id": x.label_id, "score": x.score} for x in answer.labels]


def to_json(answer: Classification) -> dict[str, Any]:
    """As a JSON object."""
    return {"labels": _data(answer)}


classification = partial(
    Task,
    answer=Classification,
    metric=TOP1,
    same=lambda one, other: one.labels[0].label_id == other.labels[0].label_id,
    shown=shown,
    lines=lines,
    data=_data,
    to_json=to_json,
    loss="classes",
)
"""A task of telling classes apart, without what is its own: payload, processor, examples, door."""
