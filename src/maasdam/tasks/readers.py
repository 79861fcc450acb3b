"""Every task that reads texts. Knows the list."""

from __future__ import annotations

from maasdam.tasks import features
from maasdam.tasks.task import Task

READERS: tuple[Task, ...] = (features.TASK,)
