"""Inference without a service, or by the one that runs: a version's engine and processor, opened, asked, closed.

Knows the order of the steps. Refuses to know scheduling, accounts and HTTP. What it answers is what the service answers
with the same build.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

from maasdam.core import (
    PLAIN,
    TEXT_GENERATION,
    Answer,
    AudioPayload,
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
from maasdam.errors import Unsupported
from maasdam.operations.asked import asked
from maasdam.serving.upstreams.place import ELSEWHERE
from maasdam.tasks import giving, open_processor, task_of

if TYPE_CHECKING:
    from maasdam.artifacts.catalog import Version
    from maasdam.core import Engine, Processor
    from maasdam.operations.workspace import Workspace

TOGETHER = 16
"""Texts that are written together, and inputs that a service is asked: of more, each gets slower by about as much."""

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
    url: str | None = None
    """Of the service that answers; None: this process does."""
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """An engine of tensors in this process has one answer at a time; the next input is read meanwhile."""

    def answer(self, payload: Payload, on_piece: OnPiece | None = None) -> Answer:
        """The whole answer. Raises InvalidPayload, InvalidTensor, Unsupported (another kind of payload), EngineFailure."""
        return asyncio.run(self.reply(lambda: payload, "run", on_piece))

    async def reply(self, payload: Callable[[], Payload], name: str, on_piece: OnPiece | None = None) -> Answer:
        """As `answer`, of what `payload` reads. Of texts, `width` at once are written together."""
        given = await asyncio.to_thread(payload)
        if isinstance(given, TensorPayload):
            if not isinstance(self.engine, TensorEngine):
                raise Unsupported(f"{self.version.model} takes no raw tensors; it does {self.version.task}")
            return await self._run(self.engine, given.tensors)
        processor = self.processor
        if processor is None or type(given) not in task_of(processor.task).payloads:
            raise Unsupported(
                f"{self.version.model} does {self.version.task or 'raw tensors'}; it can't answer this kind of input"
            )
        prepared = await asyncio.to_thread(processor.prepare, given)
        if isinstance(self.engine, TensorEngine):
            outputs = [await self._run(self.engine, tensors) for tensors in prepared]
            return await asyncio.to_thread(processor.finish, outputs, given)
        if isinstance(given, TextPayload):
            return await self._text(self.engine, given.sampling, prepared[0], name, on_piece)
        sampling = given.sampling if isinstance(given, AudioPayload) else PLAIN
        return (await transcript_of(self.engine, prepared, name, sampling))[0]

    async def _run(self, engine: TensorEngine, tensors: Tensors) -> Tensors:
        async with contextlib.nullcontext() if self.url else self._turn:
            try:
                return await asyncio.to_thread(engine.run, tensors)
            except asyncio.CancelledError:  # by who breaks off: the thread is waited for, and may itself wait for a service
                if self.url:
                    engine.close()
                raise

    @property
    def width(self) -> int:
        """How many are worth while to be asked at once."""
        return TOGETHER if self.url or self.version.task == TEXT_GENERATION else 2

    async def _text(
        self, engine: SequenceEngine, sampling: Sampling, inputs: Tensors, name: str, on_piece: OnPiece | None
    ) -> TextPiece:
        if sampling.max_tokens is None:
            sampling = replace(sampling, max_tokens=self.max_tokens)
        request = SequenceRequest(name, inputs, sampling)
        pieces: list[TextPiece] = []
        stream = cast(Any, self.processor).stream(sampling.stop, inputs["input_ids"][0])
        async for piece, _ in text_of(engine, request, stream):
            pieces.append(piece)
            if on_piece is not None and piece.text:
                on_piece(piece.text)
        ids = tuple(i for piece in pieces for i in piece.token_ids)
        return TextPiece("".join(piece.text for piece in pieces), ids, pieces[-1].finish_reason)


@contextmanager
def opened(workspace: Workspace, name: str, device: str | None = None, here: bool = True) -> Iterator[OpenedModel]:
    """Open NAME, NAME:3 or NAME@alias; closed at the end. Raises NotFound, MissingExtra, InvalidModel.

    Not `here`, and on no named device: where this home's service runs the version, it is asked instead.
    """
    from maasdam.engines import open_engine

    settings = workspace.settings
    version = workspace.catalog.resolve(name)
    if version.engine in ELSEWHERE:
        raise Unsupported(f"{version.model}:{version.version} is run by {version.engine}; ask it through the service")
    artifact = workspace.store.intact(version.digest)
    processor = open_processor(artifact.task, artifact.path, artifact.signature, settings) if artifact.task else None
    there = None if here or device else asked(settings.home, version.model, version.version, artifact)
    engine = there or open_engine(artifact, device=device or "cpu", threads=settings.threads)
    try:
        yield OpenedModel(version, cast("Engine", engine), processor, settings.max_tokens, None if there is None else there.url)
    finally:
        engine.close()


def version_of(workspace: Workspace, name: str) -> Version:
    """Which one NAME, NAME:3 or NAME@alias is. Raises NotFound."""
    return workspace.catalog.resolve(name)


def to_json(answer: Answer) -> dict[str, Any]:
    """An answer as a JSON object."""
    return giving(answer).to_json(answer)
