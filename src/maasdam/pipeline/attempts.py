"""Steps of a build that may end the process they run in: what ended a step is its failure, and the others go on.

Knows a note on disk, and which step it named when a process was gone. Refuses to know what a step does.

    in_steps(work) -> child: attempts.step(key) notes the key -> crash: Crashed here, and the note names the step
                   -> a new child, where that step raises what ended it; finished passes come from the cache
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from maasdam.children import ChildLimits, Tell, run_limited
from maasdam.errors import Crashed, EngineFailure, LimitExceeded

T = TypeVar("T")
Ended = Crashed | LimitExceeded
MOST_ENDED = 12
"""So many steps may end their process before the build ends with the last of them."""
MOST_OVER_LIMITS = 2
"""The same of those that crossed a limit, which may take its whole time to be found."""


@dataclass(frozen=True, slots=True)
class Attempts:
    """What was tried and ended the process. Without a note, in the caller's own process, nobody begins again."""

    note: Path | None = None
    ended: Mapping[str, Ended] = field(default_factory=dict)

    @contextmanager
    def step(self, *key: str) -> Iterator[None]:
        """Do what may end this process. Raises Crashed or LimitExceeded, as then, where the step has ended one; EngineFailure
        where it got no memory."""
        name = " ".join(key)
        if name in self.ended:
            raise self.ended[name]
        if self.note is None:
            yield
            return
        around = self.note.read_text()
        self.note.write_text(name)
        try:
            yield
        except MemoryError as error:  # as much this step's alone as a death
            raise EngineFailure("it needs more memory than there is for it") from error
        finally:
            self.note.write_text(around)


def in_steps(function: Callable[..., T], *args: Any, limits: ChildLimits, progress: Tell, **named: Any) -> T:
    """As `run_limited`, with `attempts` given to the function: after a step that ended the child it begins again without it."""
    ended: dict[str, Ended] = {}
    with tempfile.TemporaryDirectory(prefix="maasdam-") as folder:
        note = Path(folder) / "step"
        while True:
            note.write_text("")
            try:
                return run_limited(function, *args, attempts=Attempts(note, ended), limits=limits, progress=progress, **named)
            except (Crashed, LimitExceeded) as error:
                step = note.read_text()
                over = sum(isinstance(each, LimitExceeded) for each in (*ended.values(), error))
                if not step or step in ended or len(ended) >= MOST_ENDED or over > MOST_OVER_LIMITS:
                    raise
                ended[step] = error
