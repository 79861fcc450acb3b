"""The kinds of problem, and how payloads of each become tensors and come back as answers.

Knows tasks, payloads and the Hugging Face files that describe a model's processor. Refuses to know engines, batching
and HTTP.

    payload --Processor.prepare--> tensors, tensors, …   (windows of a long recording: several)
    outputs, outputs, … --Processor.finish--> answer
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from maasdam.core import Answer, Example, Payload, Processor, Score, Signature
from maasdam.errors import InvalidInput, Unsupported
from maasdam.settings import Settings
from maasdam.tasks import (
    custom,
    detection,
    image_features,
    images,
    raw,
    sounds,
    speech,
    text,
    zero_shot,
)
from maasdam.tasks.readers import READERS
from maasdam.tasks.task import Bytes, Task

T = TypeVar("T")

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        images.TASK,
        text.TASK,
        speech.TASK,
        custom.TASK,
        detection.TASK,
        zero_shot.TASK,
        image_features.TASK,
        *READERS,
        sounds.TASK,
    )
}
"""Every task that is served. Raw tensors are no task: a model without one takes nothing else."""


_DOORS = {
    door: [task for task in TASKS.values() if door in task.doors] for door in (d for task in TASKS.values() for d in task.doors)
}


def task_of(name: str | None) -> Task:
    """The record of a task; that of raw tensors for None (or "tensors"). Raises Unsupported, naming the tasks there are."""
    task = raw.TASK if name in (None, raw.TASK.name) else TASKS.get(str(name))
    if task is None:
        raise Unsupported(f"no task '{name}'; the tasks are: {', '.join(TASKS)}")
    return task


def check_door(name: str | None, endpoint: str) -> None:
    """Raise InvalidInput where a door is another task's: two may take the same payload, and each writes answers of its own."""
    owners = [task.name for task in _DOORS.get(endpoint, ())]
    if owners and name in TASKS and name not in owners:
        raise InvalidInput(f"this model does {name}, not {' or '.join(owners)}; use {TASKS[name].door}")


def carried_by(name: str | None) -> Bytes | None:
    """How the Open Inference Protocol carries a task in BYTES; None for raw tensors, and where that is not done."""
    return TASKS[name].oip if name in TASKS else None


def giving(answer: Answer) -> Task:
    """A task that answers in this kind, by which it is shown; raw tensors where none does."""
    return next((task for task in TASKS.values() if isinstance(answer, task.answer)), raw.TASK)


def open_processor(task: str, folder: Path, signature: Signature | None, settings: Settings | None = None) -> Processor:
    """The processor that the files in `folder` describe, fitted to the engine's `signature`.

    `settings` bounds what is decoded (max_image_pixels, max_audio_seconds, max_tokens).
    Raises Unsupported (no such task), InvalidModel (files missing or wrong, or they don't fit the signature).
    """
    return task_of(task).open(folder, signature, settings or Settings())


def load_examples(
    task: str | None,
    path: Path,
    *,
    labels: Mapping[int, str] | None = None,
    limit: int | None = None,
    seed: int = 0,
    signature: Signature | None = None,
) -> list[Example]:
    """Evaluation examples from a folder or file in Hugging Face's conventions; without a task .npz of named arrays.

    `labels` are the model's (id to name): a label's text must be one of them. With `limit`, so many chosen by `seed`, in
    their own order. `signature` tells which tensors have no batch: a scalar, a state. `truth` is the label's id, the
    transcription, or None where the data has none.
    Raises InvalidInput: nothing there, another kind, unknown labels, files missing or outside the folder.
    """
    record, path = task_of(task), Path(path)
    if not path.exists():
        raise InvalidInput(f"no data at {path}; give a folder or file of examples")
    if limit is not None and limit < 1:
        raise InvalidInput(f"the limit is {limit} examples; it takes at least 1")
    rows = record.read_examples(path, labels, signature)
    if not rows:
        raise InvalidInput(f"{path} holds no examples for {record.name}; see the Hugging Face folder convention")
    return [Example(name, _payload(record, content), truth) for name, content, truth in some(rows, limit, seed)]


def _payload(record: Task, content: Payload | Path | Callable[[], Payload]) -> Payload:
    if isinstance(content, Path):
        return record.payload(content.read_bytes())
    return content() if callable(content) else content


def some(items: list[T], limit: int | None, seed: int) -> list[T]:
    """`limit` of them, chosen by `seed`, in their own order."""
    if limit is None or len(items) <= limit:
        return items
    return [items[i] for i in sorted(random.Random(seed).sample(range(len(items)), limit))]


def score(task: str, answers: Sequence[Answer], examples: Sequence[Example]) -> Score:
    """The task's metric over `answers` to `examples`, one to one: "top1" (0-1) or "wer" (0 up).

    Raises Unsupported for tasks without one here (text is scored by perplexity, from logits), InvalidInput without truths.
    """
    if len(answers) != len(examples):
        raise InvalidInput(f"{len(answers)} answers to {len(examples)} examples; they go one to one")
    if not examples:
        raise InvalidInput("there are no examples to score; give --data that holds some")
    unlabelled = next((e.name for e in examples if e.truth is None), None)
    if unlabelled is not None:
        raise InvalidInput(f"example '{unlabelled}' has no label to score against; add one to metadata.csv")
    over_answers = task_of(task).metric.score
    if over_answers is None:
        raise Unsupported(f"task '{task}' has no metric over answers")
    return over_answers(answers, examples)
