"""Every task that reads texts. Knows the list."""

from __future__ import annotations

from maasdam.tasks import entities, features, masked, passages, ranking, sentiments
from maasdam.tasks.task import Task

READERS: tuple[Task, ...] = (
    features.TASK,
    ranking.TASK,
    sentiments.TASK,
    entities.TASK,
    masked.TASK,
    passages.TASK,
)
