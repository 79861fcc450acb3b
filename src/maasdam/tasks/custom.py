"""A user's own task: payloads to tensors and outputs to an answer by code that came with the model.

Knows the artifact's archive of code, and what a payload and an answer of it are. Refuses to run any of it here: see
`custom_child`.
"""

from __future__ import annotations

import json
import math
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from maasdam.core import CUSTOM, Answer, CustomAnswer, CustomPayload, Example, Payload, Score, Signature, Tensors, Units
from maasdam.errors import EngineFailure, InvalidInput, InvalidTensor, Unsupported
from maasdam.settings import Settings
from maasdam.tasks.custom_child import CustomChild
from maasdam.tasks.custom_code import check_trusted
from maasdam.tasks.examples import own_examples
from maasdam.tasks.task import Metric, RawExample, Task

if TYPE_CHECKING:
    from maasdam.core import type_array

T = TypeVar("T")

SIDE_BY_SIDE = 2
"""Processes of one model: one that hangs leaves another."""
AS_LARGE = 1e-3
"""Numbers of two answers that differ by less than this part are the same."""


class CustomTask:
    """The processor of one model. Thread-safe: each call has a process to itself."""

    task = CUSTOM

    def __init__(self, folder: Path, signature: Signature | None, settings: Settings) -> None:
        """Start the first process. Raises UnsafeModel where nobody here trusts the code, EngineFailure where it won't run."""
        if signature is None:
            raise Unsupported("a task of one's own goes with a model that takes and gives tensors; this one writes by itself")
        self._signature = signature
        archive = check_trusted(folder)
        seconds, memory = settings.custom_seconds, settings.custom_memory_bytes
        self._start: Callable[[], CustomChild] = lambda: CustomChild(archive, seconds, memory)
        self._idle = [self._start()]
        self._lock, self._turns = threading.Lock(), threading.BoundedSemaphore(SIDE_BY_SIDE)
        weakref.finalize(self, _end, self._idle)

    def prepare(self, payload: Payload) -> list[dict[str, type_array]]:
        """What the code makes of it, each with batch 1. Raises InvalidPayload where it raises ValueError; EngineFailure."""
        assert isinstance(payload, CustomPayload)
        made = self._asked(lambda child: child.prepare(payload.data, payload.is_file))
        for tensors in made:
            try:
                self._signature.check(tensors)
            except InvalidTensor as error:
                raise EngineFailure(f"the task's code made what the model does not take: {error}") from error
            for spec in self._signature.inputs:
                if spec.shape and spec.shape[0] is None and spec.rows_of is None and len(tensors[spec.name]) != 1:
                    rows = len(tensors[spec.name])
                    raise EngineFailure(
                        f"the task's code made {rows} rows of '{spec.name}'; it gives a dict for each, of one row"
                    )
        return made

    def finish(self, outputs: Sequence[Tensors], payload: Payload) -> Answer:
        """The code's answer. Raises EngineFailure, LimitExceeded, Crashed."""
        assert isinstance(payload, CustomPayload)
        given = (outputs, payload.data, payload.is_file, payload.truth)
        return CustomAnswer(*self._asked(lambda child: child.finish(*given)))

    def units(self, payload: Payload, prepared: Sequence[Tensors]) -> Units:
        """One item: what is in it only the code knows."""
        return Units()

    def _asked(self, ask: Callable[[CustomChild], T]) -> T:
        """Of a process that is free, or a new one."""
        with self._turns:
            with self._lock:
                child = self._idle.pop() if self._idle else None
            if child is None or not child.is_alive:
                child = self._start()
            try:
                return ask(child)
            finally:
                if child.is_alive:
                    self._idle.append(child)


def _end(idle: list[CustomChild]) -> None:
    for child in idle:
        child.kill()


def _score(answers: Sequence[CustomAnswer], examples: Sequence[Example]) -> Score:
    """The mean of what the code's `score` says; where it has none, whether an answer is what is right."""
    values = [
        float(_same(answer.json, getattr(example.payload, "truth", None) or "null")) if answer.score is None else answer.score
        for answer, example in zip(answers, examples, strict=True)
    ]
    return Score("score", sum(values) / len(values), len(values), shares=tuple((value, 1.0) for value in values))


def _same(one: str, other: str) -> bool:
    return _alike(json.loads(one), json.loads(other))


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, int | float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=AS_LARGE, abs_tol=AS_LARGE)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_alike, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_alike(value, other[key]) for key, value in one.items())
    return bool(one == other)


def _read(path: Path, labels: Mapping[int, str] | None, signature: Signature | None) -> list[RawExample]:
    found = own_examples(path)
    return [(name, CustomPayload(data, is_file, truth), truth) for name, data, is_file, truth in found]


def of_row(row: Mapping[str, Any]) -> CustomPayload:
    """A row of a table that holds the value itself. Raises InvalidInput."""
    if "input" not in row:
        raise InvalidInput("a row holds what the task is given as 'input'")
    return CustomPayload(json.dumps(row["input"]).encode(), is_file=False)


TASK = Task(
    name=CUSTOM,
    payloads=(CustomPayload,),
    answer=CustomAnswer,
    takes="files of any kind, or JSON",
    doors=("/v1/custom",),
    open=CustomTask,
    warm_up=lambda signature: None,
    read_examples=_read,
    metric=Metric("score", None, "Score of the task's own", score=_score),
    same=lambda one, other: _same(one.json, other.json),
    shown=lambda answer: answer.json[:200],
    lines=lambda answer: [answer.json],
    to_json=lambda answer: {"answer": json.loads(answer.json)},
    of_file=lambda data, top_k: CustomPayload(data),
)
