"""From a version to a warm replica. Knows the store, engines and processors; never endpoints, keys or HTTP."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import MappingProxyType
from typing import Any, Protocol

from maasdam.core import (
    ANONYMOUS,
    OF_ITS_ENGINE,
    UNKNOWN,
    UNTRIED,
    Artifact,
    Batching,
    Engine,
    Processor,
    Request,
    Signature,
    TensorEngine,
    TensorPayload,
    Tensors,
    TryingEngine,
    WritingProcessor,
)
from maasdam.engines import ENGINES
from maasdam.errors import LimitExceeded, MaasdamError, NotReady, Unsupported
from maasdam.serving.attempts import LoadAttempts
from maasdam.serving.phases import Phases, told_seconds
from maasdam.serving.replica import Replica, SequenceReplica, TensorReplica
from maasdam.serving.share import Share, apart
from maasdam.settings import Settings
from maasdam.tasks import task_of
from maasdam.tasks.files import labels_of
from maasdam.telemetry.meter import CpuMeter

log = logging.getLogger("maasdam.serving")

WARM_RUNS = 3
PATIENCE_SECONDS = 30.0
"""So long one model waits for another's turn to end."""
SHORT_PATIENCE_SECONDS = 3.0
"""The same for a model of tensors, whose engine imports nothing that minds."""


class Loadable(Protocol):
    """What loading needs to know of a version."""

    @property
    def model(self) -> str:
        """Its name."""
        ...

    @property
    def version(self) -> int:
        """Its number."""
        ...

    @property
    def digest(self) -> str:
        """Of its artifact."""
        ...


class Files(Protocol):
    """What loading needs of the store."""

    def get(self, digest: str) -> Artifact:
        """The artifact; raises NotFound."""
        ...

    def intact(self, digest: str) -> Artifact:
        """The artifact, whose bytes are what they were; raises NotFound, InvalidModel."""
        ...


class Found(Protocol):
    """What loading needs of what was found of batching before."""

    def get(self, artifact: Artifact, *, device: str | None = None, threads: int = 0) -> Batching | None:
        """What was found of the artifact as it runs here; None where nothing was."""
        ...

    def keep(self, artifact: Artifact, found: Batching, *, device: str | None = None, threads: int = 0) -> None:
        """Keep what was found."""
        ...


class Loader:
    """Opens engines and processors in threads, tries whether they may be batched, and warms them up. Call it with a version."""

    def __init__(
        self,
        store: Files,
        settings: Settings,
        findings: Found,
        *,
        meter: CpuMeter,
        open_engine: Callable[..., Engine] | None = None,
        open_processor: Callable[..., Processor] | None = None,
        attempts: LoadAttempts | None = None,
    ) -> None:
        """`attempts` keeps note of what is being loaded, where the service may die of it.

        What loading computes is no request's: its threads are left out of `meter`, also those that hang, and the rest
        is its own share for as long as it takes.
        """
        self._store = store
        self._settings = settings
        self._findings = findings
        self._meter = meter
        self._open_engine = open_engine
        self._open_processor = open_processor
        self._attempts = attempts
        self._turn = threading.Lock()

    async def __call__(self, version: Loadable, options: Mapping[str, Any] = MappingProxyType({})) -> Replica:
        """A replica that has answered at least once; `options` of its engine go before the artifact's settings.

        Raises what opening or the first answer raises, LimitExceeded.
        """
        with ExitStack() as note:
            return await self._load(version, options, note)

    async def _load(self, version: Loadable, options: Mapping[str, Any], note: ExitStack) -> Replica:
        phases = Phases()
        given_up = threading.Event()
        try:
            async with asyncio.timeout(self._settings.load_seconds):
                given = (version, options, note, given_up, phases)
                opening = apart("opening", self._open, *given, around=self._meter.without_this_thread)
                engine, processor = await opening
                opened: Engine | Replica = engine
                try:
                    batching = UNTRIED
                    if isinstance(engine, TensorEngine):
                        trying = (self._batching, version, engine, processor)
                        with phases.timed("try"):
                            batching = await apart("trying", *trying, around=self._meter.without_this_thread)
                    opened = replica = self._replica(version, engine, processor, batching)
                    with phases.timed("warm_up"):
                        await _warm(replica, processor.task if processor else None)
                except BaseException:
                    # not waited for: what warms up for ever would never end, and nobody else may wait for that
                    Share("closing", threads=1, idle_seconds=0.0).submit(opened.close)
                    raise
        except TimeoutError:
            raise LimitExceeded(
                f"model {version.model}:{version.version} did not load and answer once within "
                f"{self._settings.load_seconds:,.0f} s (setting load_seconds)"
            ) from None
        finally:
            given_up.set()
        if replica.executions is not None:
            replica.executions.clear()
        replica.load_seconds = phases.told()
        log.info("model %s:%d is up after %s", version.model, version.version, told_seconds(replica.load_seconds))
        return replica

    def _open(
        self, version: Loadable, options: Mapping[str, Any], note: ExitStack, given_up: threading.Event, phases: Phases
    ) -> tuple[Engine, Processor | None]:
        from maasdam import engines, tasks

        with phases.timed("read"):
            artifact = self._store.intact(version.digest)
        with self._taking_turns(artifact):
            if not given_up.is_set():
                note.enter_context(self._meter.spending())  # of threads of the engine's own; this one is left out
                if self._attempts is not None:
                    note.enter_context(self._attempts.noted(version.model, version.version))
                if given_up.is_set():  # in this very moment: nobody else takes the note away
                    note.close()
            with phases.timed("import"):
                if self._open_engine is None:
                    engines.import_library(artifact.engine)
            with phases.timed("compile"):
                engine = self._opened(artifact, options)
            try:
                processor: Processor | None = None
                if artifact.task is not None:
                    opener = self._open_processor or tasks.open_processor
                    with phases.timed("compile"):
                        processor = opener(artifact.task, artifact.path, artifact.signature, self._settings)
                if given_up.is_set():
                    raise NotReady("it opened too late: nobody waits for it any more")
            except BaseException:
                engine.close()
                raise
            return engine, processor

    def _opened(self, artifact: Artifact, options: Mapping[str, Any]) -> Engine:
        """The engine. One that tries by itself whether answers depend on their company is told what was found here before."""
        from maasdam.engines import open_engine

        threads = self._settings.threads
        known = self._findings.get(artifact, threads=threads) if artifact.layout == "genai" else None
        told = {"batching": known} if known is not None and known.verdict != UNKNOWN else {}
        given: dict[str, Any] = {"settings": {**options, **told}} if options or told else {}
        engine = (self._open_engine or open_engine)(artifact, threads=threads, **given)
        found = engine.batching if isinstance(engine, TryingEngine) else OF_ITS_ENGINE
        if found not in (known, OF_ITS_ENGINE):
            self._findings.keep(artifact, found, threads=threads)
            log.info("artifact %s: answers are %s of company: %s", artifact.digest[:19], found.verdict, found.how)
        return engine

    @contextmanager
    def _taking_turns(self, artifact: Artifact) -> Iterator[None]:
        """One opens at a time, so that a crash is its own; but nobody waits long for one that opens for ever.

        transformers is not safe to import from two threads at once ("cannot import name AutoTokenizer"): what may import
        it waits longer, until that must be over.
        """
        imports = artifact.task is not None or (artifact.engine in ENGINES and ENGINES[artifact.engine].may_import_transformers)
        patience = PATIENCE_SECONDS if imports else SHORT_PATIENCE_SECONDS
        has_turn = self._turn.acquire(timeout=min(patience, self._settings.load_seconds / 4))
        try:
            yield
        finally:
            if has_turn:
                self._turn.release()

    def _batching(self, version: Loadable, engine: TensorEngine, processor: Processor | None) -> Batching:
        """Whether callers may be computed together: as it was found here before, else tried now."""
        from maasdam.engines.batching import find_batching
        from maasdam.engines.batching_kept import NEVER
        from maasdam.engines.made_up import integer_ranges

        artifact = self._store.get(version.digest)
        if artifact.settings.get("batch") == "never":
            return NEVER
        threads = self._settings.threads
        known = self._findings.get(artifact, threads=threads)
        if known is not None and known.verdict != UNKNOWN:
            return known
        examples = _examples(processor, engine.signature)
        found = find_batching(engine, integer_ranges(artifact, engine.signature), examples)
        self._findings.keep(artifact, found, threads=threads)
        log.info("model %s:%d: batching is %s: %s", version.model, version.version, found.verdict, found.how)
        return found

    def _replica(self, version: Loadable, engine: Engine, processor: Processor | None, batching: Batching) -> Replica:
        share = Share(f"prepare {version.model}:{version.version}", self._meter.without_this_thread)
        if isinstance(engine, TensorEngine):
            artifact = self._store.get(version.digest)
            return TensorReplica(
                engine,
                processor,
                pool=share,
                meter=self._meter,
                queue_size=self._settings.queue_size,
                max_answer_bytes=self._settings.max_answer_bytes,
                threads=int(artifact.settings.get("streams", 1)),
                batching=batching,
                labels=labels_of(artifact.path) if processor is not None else {},
            )
        if processor is None:
            raise Unsupported(
                f"model {version.model}:{version.version} names no task, and its engine needs one; build it with --task"
            )
        engine.meter = self._meter  # one for all, or two engines at work would each be billed for both
        stream = processor.stream if isinstance(processor, WritingProcessor) else None
        queue_size, max_tokens = self._settings.queue_size, self._settings.max_tokens
        return SequenceReplica(engine, processor, pool=share, queue_size=queue_size, max_tokens=max_tokens, text_stream=stream)


def _examples(processor: Processor | None, signature: Signature) -> list[Tensors]:
    """What the processor makes of something plain: rows of the sizes that it really makes."""
    payload = task_of(processor.task).warm_up(signature) if processor else None
    if processor is None or payload is None:
        return []
    try:
        return list(processor.prepare(payload))
    except MaasdamError:  # the first answer says it
        return []


async def _warm(replica: Replica, task: str | None) -> None:
    payload = task_of(task).warm_up(replica.facts.signature)
    if payload is None:
        return
    request = Request("warm-up", "warm-up", (payload,), ANONYMOUS)
    for _ in range(WARM_RUNS):
        try:
            async for _chunk in replica.answer(request):
                pass
        except MaasdamError as error:
            if not isinstance(payload, TensorPayload):
                raise
            log.info("no warm-up: made-up tensors did not run (%s)", error)  # nothing is known of what they mean
            return
