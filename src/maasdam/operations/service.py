"""One running service, wired: router, inference, pools and clocks over one workspace. Knows who needs whom; nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from maasdam.accounts.importer import Importer
from maasdam.accounts.journal import Journal
from maasdam.accounts.ledger import Ledger
from maasdam.accounts.outbox import Outbox
from maasdam.accounts.responses import Responses
from maasdam.core import TEXT_GENERATION, Facts
from maasdam.database.presence import Presence
from maasdam.engines.batching_kept import Findings
from maasdam.engines.generation import Defaults, read_defaults
from maasdam.errors import InvalidModel, NotFound, NotReady
from maasdam.operations.builds import builds
from maasdam.operations.fleet import Alone, Count, Fleet, busy
from maasdam.operations.infer import Inference
from maasdam.operations.keeping import open_keeper
from maasdam.operations.limits import memory_budget
from maasdam.operations.responses import KeptResponses
from maasdam.operations.workspace import JOURNALS
from maasdam.serving.attempts import LoadAttempts
from maasdam.serving.hosts.keeper import Keeper
from maasdam.serving.hosts.loading import HostLoader
from maasdam.serving.hosts.local import LocalKeeper
from maasdam.serving.loading import Loader
from maasdam.serving.placing import Placing
from maasdam.serving.router import Router
from maasdam.serving.upstreams.place import ELSEWHERE
from maasdam.serving.upstreams.replica import UpstreamLoader
from maasdam.settings import Settings
from maasdam.tasks.recordings import longest_seconds
from maasdam.telemetry.energy import open_meter
from maasdam.telemetry.meter import CpuMeter
from maasdam.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from sqlalchemy import Engine as Database

    from maasdam.accounts.keys import Keys
    from maasdam.accounts.prices import Prices
    from maasdam.artifacts.catalog import BuildState, Catalog, Version
    from maasdam.artifacts.store import Store
    from maasdam.core import Batching, Caller, Engine, Processor

T = TypeVar("T")

WIRE_THREADS = 4
"""Threads that read and write large tensors. What a model's own files do runs in its replica's."""


class Records(Protocol):
    """What a service needs of a workspace."""

    @property
    def settings(self) -> Settings:
        """What was set."""
        ...

    @property
    def store(self) -> Store:
        """The artifacts."""
        ...

    @property
    def catalog(self) -> Catalog:
        """Versions and desired state."""
        ...

    @property
    def database(self) -> Database:
        """Where they are kept."""
        ...

    @property
    def keys(self) -> Keys:
        """Who may call."""
        ...

    @property
    def ledger(self) -> Ledger:
        """What was used."""
        ...

    @property
    def prices(self) -> Prices:
        """What it costs."""
        ...


@dataclass(slots=True)
class Service:
    """One running service. Calls on `catalog`, `keys` and `ledger` block: they belong in threads."""

    settings: Settings
    inference: Inference
    router: Router
    pool: ThreadPoolExecutor
    meter: CpuMeter
    catalog: Catalog
    keys: Keys
    ledger: Ledger
    metrics: Metrics
    presence: Presence
    importer: Importer | None
    """None: another process of this service has it."""
    outbox: Outbox
    batching: Callable[[str], Batching]
    """What is known here of the artifact of a digest; it blocks."""
    defaults: Callable[[str], Defaults]
    """How the text model of a digest is sampled where a caller doesn't say; it blocks at first."""
    responses: KeptResponses
    hosts: LocalKeeper | None
    """Of the engine hosts of this process; None where another process keeps them."""
    keeper: Keeper
    """Of the engine hosts of this service, wherever."""
    budget_bytes: int | None
    """What they may hold together; None is no limit."""
    builds: Callable[[], list[BuildState]]
    """Builds, running and done; like `catalog`, it blocks."""
    fleet: Fleet = field(default_factory=Alone)
    is_draining: bool = False
    _lookups: dict[tuple[str, int], asyncio.Task[Caller]] = field(default_factory=dict)
    """Secrets that are being looked up, and how often keys were forgotten before: what was found then is not what is so now."""

    @property
    def is_loaded(self) -> bool:
        """Whether everything deployed is up or has failed."""
        return self.router.is_ready and self.fleet.knows_us and all(other.is_loaded for other in self.fleet.others)

    @property
    def is_ready(self) -> bool:
        """Whether requests are welcome: everything deployed is up or has failed, rows can be kept, it is not stopping."""
        return self.is_loaded and not self.is_draining and self.trouble is None

    @property
    def trouble(self) -> str | None:
        """Why nothing can be answered now, though models may be up; None: nothing stands in the way."""
        troubles = (self.presence.reason, *(other.trouble for other in self.fleet.others))
        return next((trouble for trouble in troubles if trouble is not None), None)

    def threads(self, count: int, name: str) -> ThreadPoolExecutor:
        """Threads whose CPU time is no engine's."""
        return ThreadPoolExecutor(count, name, self.meter.exclude_this_thread)

    def in_thread(self, work: Callable[[], T], tell: Callable[[T | BaseException], object]) -> None:
        """Have `work` done beside the event loop, and `tell` hear there what came of it; of what was cancelled it hears not."""

        def told(task: asyncio.Future[T]) -> None:
            if not task.cancelled():
                tell(task.exception() or task.result())

        asyncio.get_running_loop().run_in_executor(self.pool, work).add_done_callback(told)

    def exclude_thread(self, ident: int) -> None:
        """Say that the CPU time of another thread, by its ident, is no engine's."""
        self.meter.exclude(ident)

    def seen(self, secret: str) -> Caller | None:
        """Who holds an API key's secret, where that was found out a moment ago; in time before it is too long ago it is looked
        up again, once for all that ask."""
        caller = self.keys.seen(secret)
        if caller is not None and self.keys.is_due(secret):
            self._look_up(secret)
        return caller

    async def authenticate(self, secret: str) -> Caller:
        """Who holds an API key's secret. Raises Unauthenticated."""
        caller = self.seen(secret)
        return await asyncio.shield(self._look_up(secret)) if caller is None else caller

    def _look_up(self, secret: str) -> asyncio.Task[Caller]:
        asked = secret, self.keys.times_forgotten
        task = self._lookups.get(asked)
        if task is None:
            task = self._lookups[asked] = asyncio.create_task(asyncio.to_thread(self.keys.check, secret))
            task.add_done_callback(lambda done: (self._lookups.pop(asked), done.cancelled() or done.exception()))
        return task

    def check_model(self, name: str) -> None:
        """Raise NotFound where no such model is deployed: told before anything else that may be wrong with a request."""
        with contextlib.suppress(NotReady):
            self.router.find(name)

    def seconds_for(self, recording: bytes) -> float:
        """How long a request with it may take."""
        settings = self.settings
        grows_by = longest_seconds(recording, settings.max_audio_seconds) * settings.timeout_per_audio_second
        return settings.request_timeout_seconds + grows_by

    async def metrics_text(self) -> bytes:
        """The metrics as Prometheus reads them, of all workers."""
        sums: dict[tuple[str, int], tuple[int, int]] = {}
        for one in [*busy(self), *await self.fleet.tell(Count())]:
            in_flight, waiting = sums.get((one.model, one.version), (0, 0))
            sums[one.model, one.version] = in_flight + one.in_flight, waiting + one.waiting
        return await asyncio.to_thread(self.metrics.text, sums, await self.memory(), self.budget_bytes)

    async def memory(self) -> dict[tuple[str, int], int]:
        """Bytes that each version's engine hosts hold, measured now; those in this process are not in it."""
        sums: dict[tuple[str, int], int] = {}
        for one in await self.keeper.readings():
            key = one.work.model, one.work.version
            sums[key] = sums.get(key, 0) + one.memory_bytes
        return sums

    async def start(self) -> None:
        """Bring up what is deployed; returns before it is ready."""
        self.meter.exclude_this_thread()
        self.presence.start()
        if self.importer is not None:
            self.importer.start()
        self.responses.start()
        await self.router.start()

    def close_records(self) -> None:
        """Make durable what is known of the requests so far; blocks, but for no database."""
        self.outbox.close()

    async def stop(self) -> None:
        """Let go of every replica."""
        await self.responses.stop()
        await self.router.stop()
        if self.hosts is not None:
            await self.hosts.close()
        self.outbox.flush()
        self.pool.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self.close_records)
        if self.importer is not None:
            await asyncio.to_thread(self.importer.stop)
        await asyncio.to_thread(self.presence.stop)


def open_service(
    workspace: Records,
    *,
    open_engine: Callable[..., Engine] | None = None,
    open_processor: Callable[..., Processor] | None = None,
    operators_secret: str | None = None,
    metrics: Metrics | None = None,
    imports: bool = True,
    keeper: Keeper | None = None,
    is_one_of_many: bool = False,
) -> Service:
    """Wire a service over an open workspace. The openers default to those of `engines` and `tasks`.

    Whoever has `operators_secret` may do everything here. `imports`: whether this process brings journals into the ledger.
    `keeper` is another process's, of engine hosts; default one of this process's own. `is_one_of_many`: a worker among others.
    """
    settings, store = workspace.settings, workspace.store
    workspace.keys.operators_secret = operators_secret
    meter = CpuMeter(open_meter(settings.watts_per_core))
    pool = ThreadPoolExecutor(WIRE_THREADS, "wire", meter.exclude_this_thread)
    findings = Findings(settings.home)
    attempts = LoadAttempts(settings.home / "loading")
    openers: dict[str, Any] = {"open_engine": open_engine, "open_processor": open_processor}
    here = Loader(store, settings, findings, meter=meter, attempts=attempts, **openers)
    hosts = open_keeper(workspace) if keeper is None else None
    keeper = keeper or cast(Keeper, hosts)
    budget_bytes = memory_budget(settings)
    load = Placing(
        here,
        HostLoader(keeper, settings),
        attempts,
        elsewhere=UpstreamLoader(store, settings, meter),
        is_one_of_many=is_one_of_many,
        has_budget=budget_bytes is not None,
        has_loaded=lambda version: findings.get(store.get(version.digest), threads=settings.threads) is not None,
    )
    is_injected = open_engine is not None or open_processor is not None  # which no other process could be given
    stays = is_injected or sys.platform != "linux"  # which alone has what hosts are made of
    metrics = metrics or Metrics()
    router = Router(
        workspace.catalog,
        (lambda version, desired, may_push: here(version, desired.options)) if stays else load,
        known=partial(_known, store, findings, settings.threads),
        when_loaded=metrics.loaded,
        most_waiting=settings.queue_size,
        drain_seconds=settings.shutdown_grace_seconds,
    )
    outbox = Outbox(Journal(settings.home / JOURNALS), metrics, workspace.prices)
    presence = Presence(workspace.database, on_back=workspace.ledger.look_anew)
    inference = Inference(
        router,
        outbox,
        grams_co2e_per_kwh=settings.grams_co2e_per_kwh,
        refuse_if_lost=presence.refuse_if_lost,
    )
    return Service(
        settings=settings,
        inference=inference,
        router=router,
        pool=pool,
        meter=meter,
        catalog=workspace.catalog,
        keys=workspace.keys,
        ledger=workspace.ledger,
        metrics=metrics,
        presence=presence,
        outbox=outbox,
        importer=Importer(workspace.ledger) if imports else None,
        batching=lambda digest: findings.told(store.get(digest), threads=settings.threads),
        defaults=lru_cache(maxsize=64)(lambda digest: read_defaults(store.get(digest).path)),
        responses=KeptResponses(Responses(workspace.database, settings.response_days, settings.response_bytes), tidies=imports),
        hosts=hosts,
        keeper=keeper,
        budget_bytes=budget_bytes,
        builds=lambda: builds(workspace.catalog, store),
    )


def _known(store: Store, findings: Findings, threads: int, version: Version) -> Facts:
    """What is known of a version that is not loaded; blocks."""
    try:
        artifact = store.get(version.digest)
    except (NotFound, InvalidModel, KeyError):  # loading it says so
        return Facts()
    from maasdam.tasks.chat import spoken_in

    is_text = version.task == TEXT_GENERATION and artifact.engine not in ELSEWHERE
    context = read_defaults(artifact.path).context_length if is_text else None
    found = findings.told(artifact, threads=threads)
    return Facts(artifact.signature, context, version.task, found, **(spoken_in(artifact.path) if is_text else {}))
