"""The engine a source runs on by itself, found by opening it.

Knows that two engines read ONNX, and that one may lack what the other has. Refuses to know whether they agree: where only one
opens the model, nobody can say, and what is built of it is held to that one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from maasdam.core import Artifact
from maasdam.errors import EngineFailure, InvalidModel, LimitExceeded, MaasdamError, Unsupported

if TYPE_CHECKING:
    from maasdam.artifacts.store import Store
    from maasdam.pipeline.attempts import Attempts

OTHER = {"onnx": "openvino"}
"""By layout: who else reads it."""


def on_its_own_engine(source: Artifact, store: Store, device: str, attempts: Attempts) -> tuple[Artifact, str | None]:
    """`source` on an engine that opens it: its own, else the other that reads its files, and then why, for the report.

    The artifact as it is where neither opens it: whoever opens it next says so in the engine's words.
    """
    other = OTHER.get(source.layout)
    if other is None or source.signature is None or device != "cpu" or (why := _why_not(source, attempts)) is None:
        return source, None
    moved = store.add_as(source.path, replace(source, engine=other), source.task, source.digest)
    if _why_not(moved, attempts) is not None:
        return source, None
    return moved, f"{source.engine} can't open the model, so {other} runs it and is what it is held to: {why}"


def _why_not(artifact: Artifact, attempts: Attempts) -> str | None:
    from maasdam.engines import open_engine

    try:
        with attempts.step("open", artifact.digest):
            engine: Any = open_engine(artifact)
            engine.close()
    except (InvalidModel, Unsupported, EngineFailure, LimitExceeded) as error:
        return str(error)
    except MaasdamError:  # a library that is missing is for whoever runs this to install
        return None
    return None
