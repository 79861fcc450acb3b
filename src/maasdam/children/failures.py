"""An exception on its way from one process to another. Knows errors; never what failed."""

from __future__ import annotations

import contextlib
import importlib
import pickle
import re
import traceback
from dataclasses import dataclass
from typing import Any, cast

from maasdam.errors import MaasdamError, ServiceError, remade

_NO_MEMORY = re.compile(
    r"bad.?alloc|(un|not |n't )(be )?(able to )?allocate|failed to allocate|out of memory|RESOURCE_EXHAUSTED", re.I
)
"""How libraries say that they got no memory."""


@dataclass(frozen=True, slots=True)
class PackedError:
    """An exception on its way through the pipe."""

    error: bytes | None
    """Pickled, where that can be undone."""
    module: str
    name: str
    text: str
    facts: dict[str, Any]
    trace: str
    is_memory: bool


def packed(error: BaseException) -> PackedError:
    """What can be pickled of it, whatever it is."""
    trace = "".join(traceback.format_exception(error))
    facts = {}
    for key, value in vars(error).items():
        with contextlib.suppress(Exception):
            pickle.dumps(value)
            facts[key] = value
    pickled: bytes | None = None
    with contextlib.suppress(Exception):
        pickled = pickle.dumps(error)
        pickle.loads(pickled)
    kind = type(error)
    return PackedError(pickled, kind.__module__, kind.__qualname__, str(error), facts, trace, is_out_of_memory(error))


def unpacked(failure: PackedError) -> BaseException:
    """The exception as it was; ServiceError with its words where it can't be made again."""
    try:
        kind = getattr(importlib.import_module(failure.module), failure.name)
        if issubclass(kind, MaasdamError):
            return remade(kind, failure.text, failure.facts)
        if failure.error is not None:
            return cast(BaseException, pickle.loads(failure.error))
    except Exception:
        pass
    return ServiceError(f"{failure.name}: {failure.text}")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it, or what it came of, says that there was no memory."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError) or _NO_MEMORY.search(str(cause)[:2000]):
            return True
        cause = cause.__cause__ or cause.__context__
    return False
