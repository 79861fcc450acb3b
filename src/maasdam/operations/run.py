"""One-shot inference in this process: a version's engine and processor, opened, asked, closed.

Knows the order of the steps. Refuses to know scheduling, accounts and HTTP. What it answers is what the service answers
with the same build.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from maasdam.core import (
    Answer,
    Payload,
    Sampling,
    SequenceEngine,
    SequenceRequest,
    TensorEngine,
    TensorPayload,
    Tensors,
    TextPayload,
    TextPiece,
)
from maasdam.engines.generating import text_of, transcript_of
from maasdam.errors import NotFound, Unsupported
from maasdam.tasks import giving, open_processor, task_of
from maasdam.tasks.examples import arrays_of

if TYPE_CHECKING:
    from maasdam.artifacts.catalog import Version
    from maasdam.core import Engine, Processor
    from maasdam.operations.workspace import Workspace

NEUTRAL = Sampling()

OnPiece = Callable[[str], None]
"""Told each piece of a text as it comes."""


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """A version ready to answer."""

    version: Version
    engine: Engine
    processor: Processor | None
    max_tokens: int
    """Tokens generated where the payload names no limit."""

    def answer(self, payload: Payload, on_piece: OnPiece | None = None) -> Answer:
        """The whole answer. Raises InvalidPayload, InvalidTensor, Unsupported (another kind of payload), EngineFailure."""
        if isinstance(payload, TensorPayload):
            if not isinstance(self.engine, TensorEngine):
                raise Unsupported(f"{self.version.model} takes no raw tensors; it does {self.version.task}")
            return self.engine.run(payload.tensors)
        if self.processor is None or type(payload) not in task_of(self.processor.task).payloads:
            raise Unsupported(
                f"{self.version.model} does {self.version.task or 'raw tensors'}; it can't answer this kind of input"
            )
        prepared = self.processor.prepare(payload)
        if isinstance(self.engine, TensorEngine):
            return self.processor.finish([self.engine.run(tensors) for tensors in prepared], payload)
        if isinstance(payload, TextPayload):
            return asyncio.run(self._text(self.engine, payload.sampling, prepared[0], on_piece))
        return asyncio.run(transcript_of(self.engine, prepared, "run"))[0]

    async def _text(self, engine: SequenceEngine, sampling: Sampling, inputs: Tensors, on_piece: OnPiece | None) -> TextPiece:
        if sampling.max_tokens is None:
            sampling = replace(sampling, max_tokens=self.max_tokens)
        request = SequenceRequest("run", inputs, sampling)
        pieces: list[TextPiece] = []
        stream = cast(Any, self.processor).stream(sampling.stop, inputs["input_ids"][0])
        async for piece, _ in text_of(engine, request, stream):
            pieces.append(piece)
            if on_piece is not None and piece.text:
                on_piece(piece.text)
        ids = tuple(i for piece in pieces for i in piece.token_ids)
        return TextPiece("".join(piece.text for piece in pieces), ids, pieces[-1].finish_reason)


@contextmanager
def opened(workspace: Workspace, name: str, device: str = "cpu") -> Iterator[OpenedModel]:
    """Open NAME, NAME:3 or NAME@alias; closed at the end. Raises NotFound, MissingExtra, InvalidModel."""
    from maasdam.engines import open_engine

    settings = workspace.settings
    version = workspace.catalog.resolve(name)
    artifact = workspace.store.intact(version.digest)
    processor = open_processor(artifact.task, artifact.path, artifact.signature, settings) if artifact.task else None
    engine = open_engine(artifact, device=device, threads=settings.threads)
    try:
        yield OpenedModel(version, engine, processor, settings.max_tokens)
    finally:
        engine.close()


def payload_of(task: str | None, given: str, *, sampling: Sampling = NEUTRAL, top_k: int = 5, chats: bool = False) -> Payload:
    """What the command line was given as a payload: a file of the task's kind, `.npz`, or a prompt.

    Raises NotFound (no such file), InvalidInput (not .npz).
    """
    record = task_of(task)
    if TextPayload in record.payloads:
        if chats:
            return TextPayload(messages=({"role": "user", "content": given},), sampling=sampling)
        return TextPayload(prompt=given, sampling=sampling)
    path = Path(given)
    if not path.is_file():
        raise NotFound(f"no file {path}; this model takes {record.takes}")
    if path.suffix == ".npz" or record.of_file is None:
        return TensorPayload(arrays_of(path))
    return record.payload(path.read_bytes(), top_k)


def to_json(answer: Answer) -> dict[str, Any]:
    """An answer as a JSON object."""
    return giving(answer).to_json(answer)
