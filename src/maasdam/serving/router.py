"""Name -> replicas, following the catalog's desired state. Knows deployments and replicas; never payloads or HTTP.

    catalog.revision() changed -> what should run -> load what is missing (in the background)
                                                  -> drain and close what is not wanted any more

A version that is being replaced keeps answering until its successor is ready; one that fails to load is reported
with its reason and takes nothing else down. It is tried again only once it is deployed again: what hung left a thread
behind that nobody can end, and another change of the catalog is no reason to leave one more. A replica whose process went
is brought up again, unless it crashes over and over.

A version need not be in memory to answer: one that is asleep (not asked for yet, idle for long, or without room) is loaded
when a request asks for it. All who ask meanwhile wait for the same load, as many as may wait; it goes on without them.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol

from maasdam.core import Facts, split_name
from maasdam.errors import Asleep, Crashed, MaasdamError, ModelNotFound, NoRoom, NotReady, Overloaded, UpstreamGone, words
from maasdam.serving.crashes import MOST, WINDOW_SECONDS, Crashes
from maasdam.serving.replica import Gone, Replica
from maasdam.serving.scheduler import settle
from maasdam.serving.share import apart

if TYPE_CHECKING:
    from maasdam.artifacts.catalog import Deployment, Version

log = logging.getLogger("maasdam.serving")
UNKNOWN_FACTS = Facts()

State = Literal["loading", "ready", "asleep", "waking", "failed", "stopping"]
ANSWERING = frozenset[str](("ready", "asleep", "waking"))
"""States in which requests are answered, if after a load."""
UNREACHABLE = "unreachable"
"""How a version stands whose replicas are up, and whose server is not."""
NAP_SECONDS = 5.0
POLL_SECONDS = 0.25
"""How often the catalog's revision is read: a change is followed within a second."""


class DesiredState(Protocol):
    """What the router reads of the catalog. Calls block and run in a thread."""

    def revision(self) -> int:
        """Grows with every change."""
        ...

    def deployments(self) -> list[Deployment]:
        """What should run."""
        ...

    def resolve(self, name: str) -> Version:
        """NAME, NAME:3 or NAME@alias to a version; raises NotFound."""
        ...


@dataclass(frozen=True, slots=True)
class Target:
    """What replicas are loaded for. Another one is a reason to try again where loading failed."""

    digest: str
    deployed_at: datetime


@dataclass(slots=True, eq=False)
class ReplicaSet:
    """One version and its replicas."""

    version: Version
    target: Target
    desired: Desired
    """How it is to be served."""
    state: State = "loading"
    reason: str | None = None
    """Why it failed."""
    failed: Target | None = None
    """What failed to load last: the same is not tried again."""
    replicas: list[Replica] = field(default_factory=list)
    crashes: Crashes = field(default_factory=Crashes)
    ways: dict[Replica, tuple[bool, Mapping[str, Any]]] = field(default_factory=dict)
    """How they were to be loaded, see `Desired.way`."""
    napping: int = 0
    """Of the replicas that are asked for, those that left on their own: they come back once there is work for them."""
    nap_until: float = 0.0
    """Not before then, monotonic seconds, is it tried again whether there is room for them."""
    known: Facts = UNKNOWN_FACTS
    """What is known of its replicas while it is asleep."""
    waiters: set[asyncio.Future[None]] = field(default_factory=set)
    """Those who wait until it is awake; each is told once."""
    load_seconds: dict[str, float] = field(default_factory=dict)
    """What its last load took, by phase."""
    task: asyncio.Task[None] | None = None
    insists: asyncio.TimerHandle | None = None
    """When it is tried again whether there is room for what is pinned."""

    @property
    def name(self) -> str:
        """NAME:VERSION."""
        return f"{self.version.model}:{self.version.version}"

    @property
    def is_unwanted(self) -> bool:
        """Whether it is on its way out."""
        return self.state == "stopping"

    @property
    def trouble(self) -> str | None:
        """Why none of its replicas can answer, though they are up; None: nothing stands in the way."""
        troubles = [replica.facts.trouble for replica in self.replicas]
        return None if None in troubles or self.state != "ready" else troubles[0] if troubles else None

    @property
    def standing(self) -> tuple[str, str | None]:
        """Its state and the reason for it, as they are told."""
        trouble = self.trouble
        return (str(self.state), self.reason) if trouble is None else (UNREACHABLE, trouble)

    @property
    def outdated(self) -> list[Replica]:
        """Those replicas that run otherwise than is wished now: each goes once another has taken its place."""
        return [replica for replica in self.replicas if self.ways[replica] != self.desired.way]

    @property
    def lacks(self) -> bool:
        """Whether another replica is to be loaded."""
        return len(self.replicas) - len(self.outdated) < self.due

    @property
    def due(self) -> int:
        """How many replicas should run now."""
        return max(self.desired.replicas - self.napping, 0)

    @property
    def facts(self) -> Facts:
        """What is known of its replicas; nothing while it loads for the first time."""
        if self.replicas:
            return self.replicas[0].facts
        return self.known if self.state in ANSWERING else UNKNOWN_FACTS

    def tell(self, error: Callable[[], MaasdamError] | None = None) -> None:
        """Let everyone who waits go on, each with an error of its own."""
        waiters, self.waiters = self.waiters, set()
        for waiter in waiters:
            settle(waiter, None if error is None else error())


class Lease:
    """A request's hold on one replica of one version, from its door to its row in the ledger."""

    __slots__ = ("_is_held", "replica", "version")

    def __init__(self, version: Version, replica: Replica) -> None:
        self.version = version
        self.replica = replica
        self._is_held = True
        replica.in_flight += 1

    def release(self) -> None:
        """The request is over. Once is enough, and more does no harm."""
        if self._is_held:
            self._is_held = False
            self.replica.in_flight -= 1


@dataclass(frozen=True, slots=True)
class Desired:
    """What one deployment asks for: shares of requests by version number, the first being the deployed one."""

    version: int | None
    """None: nothing to serve, see `reason`."""
    shares: Mapping[int, float]
    replicas: int
    deployed_at: datetime
    """When it was asked for last."""
    reason: str | None = None
    isolate: bool = False
    """Whether its replicas are to have processes of their own, whatever is known of it."""
    mode: str = "always"
    """When its replicas are in memory, see `Deployment`."""
    idle_seconds: float | None = None
    """After so long without a request they leave."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What is asked of the engine beyond what the artifact's settings say."""

    @property
    def way(self) -> tuple[bool, Mapping[str, Any]]:
        """What a replica can't change once it is loaded."""
        return self.is_apart, self.options

    @property
    def is_apart(self) -> bool:
        """Whether its replicas must have processes of their own: memory comes back whole only with a process."""
        return self.isolate or self.mode == "on-demand" or self.idle_seconds is not None


Load = Callable[["Version", Desired, bool], Awaitable[Replica]]
"""Opens and warms up one replica; others may have to leave for it only where that is said: somebody waits for it."""


class Router:
    """Start with `start`, end with `stop`. All methods run in one event loop."""

    def __init__(
        self,
        catalog: DesiredState,
        load: Load,
        *,
        known: Callable[[Version], Facts] = lambda version: UNKNOWN_FACTS,
        when_loaded: Callable[[str, Mapping[str, float]], None] = lambda how, seconds: None,
        most_waiting: int = 256,
        drain_seconds: float = 10.0,
        poll_seconds: float = POLL_SECONDS,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """`known` tells of a version that is not loaded, blocking; `when_loaded` hears of each load, "start" or "wake", and
        its seconds by phase; `most_waiting` may wait for one load; `draw` gives 0-1 for traffic shares.
        """
        self._catalog = catalog
        self._load = load
        self._drain_seconds = drain_seconds
        self._known = known
        self._when_loaded = when_loaded
        self._facts: dict[str, Facts] = {}
        self._most_waiting = most_waiting
        self._poll_seconds = poll_seconds
        self._draw = draw
        self._desired: dict[str, Desired] = {}
        self._groups: dict[str, list[ReplicaSet]] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._poll: asyncio.Task[None] | None = None
        self._is_stopping = False
        self._following = asyncio.Lock()
        self._changed = asyncio.Event()

    async def start(self) -> None:
        """Read the desired state and follow it from now on. Returns before the replicas are ready."""
        revision = await asyncio.to_thread(self._catalog.revision)
        await self.follow()
        self._poll = asyncio.create_task(self._watch(revision))

    async def stop(self) -> None:
        """Drain and close every replica."""
        self._is_stopping = True
        if self._poll:
            self._poll.cancel()
        groups = [group for many in self._groups.values() for group in many]
        self._groups.clear()
        for group in groups:
            if group.task:
                group.task.cancel()
            group.tell(_stopping)
        await asyncio.gather(*(self._retire(group.replicas) for group in groups))
        await asyncio.gather(*self._background, return_exceptions=True)

    @property
    def is_ready(self) -> bool:
        """Whether everything deployed is up or has failed: nothing is loading."""
        return not self._is_stopping and all(group.state != "loading" for group in self.groups())

    def groups(self) -> Iterable[ReplicaSet]:
        """Every version that is up, on its way up or failed, in the order of names."""
        return [group for model in sorted(self._groups) for group in self._groups[model]]

    def models(self) -> Mapping[str, Desired]:
        """What should be served, by model name."""
        return dict(sorted(self._desired.items()))

    def serving(self, model: str) -> ReplicaSet | None:
        """What a bare name means now; None when there is none."""
        desired = self._desired.get(model)
        number = None if desired is None else desired.version
        ready = wanted = None
        for group in self._groups.get(model, ()):
            if group.version.version == number:
                wanted = group
                if group.state == "ready":
                    return group
            elif ready is None and group.state == "ready":
                ready = group
        return wanted if wanted is not None and wanted.state == "asleep" else ready or wanted

    def find(self, name: str) -> ReplicaSet:
        """What NAME, NAME:VERSION or NAME@ALIAS means now, ready or not: of a bare name the deployed one.

        Raises NotFound, NotReady. Nothing is drawn here: requests are, by `lease`.
        """
        return self._find(*split_name(name))

    def _find(self, model: str, version: int | None, alias: str | None) -> ReplicaSet:
        if model not in self._desired:
            known = ", ".join(sorted(self._desired)) or "none; deploy one with: maasdam deploy NAME"
            raise ModelNotFound(f"no model '{model}' is deployed; deployed models: {known}")
        if version is None and alias is None:
            group = self.serving(model)
            if group is None:
                raise NotReady(f"model '{model}' can't be served: {self._desired[model].reason or 'nothing is loaded'}")
            return group
        groups = self._groups.get(model, [])
        for group in groups:
            if group.version.version == version or (alias and alias in group.version.aliases):
                return group
        have = ", ".join(str(c.version.version) for c in groups) or "none"
        asked = f"version {version}" if version is not None else f"alias '{alias}'"
        raise ModelNotFound(f"model '{model}' does not serve {asked}; versions being served: {have}")

    def lease(self, name: str) -> Lease:
        """A ready replica for one request to NAME, NAME:VERSION or NAME@ALIAS. Raises NotFound, NotReady, Asleep.

        Where traffic of a bare name is shared among versions, this is the one draw: the lease holds what it gave. Of a
        version's replicas it is the one with the fewest leases.
        """
        model, version, alias = split_name(name)
        groups = self._groups.get(model, ()) if version is None and alias is None else ()
        if len(groups) == 1 and groups[0].state == "ready" and model in self._desired:
            return self._lease(name, groups[0])
        group = self._share(model) if len(groups) > 1 else None
        return self._lease(name, group or self._find(model, version, alias))

    def _lease(self, name: str, group: ReplicaSet) -> Lease:
        replicas = group.replicas
        if group.state != "ready" or not replicas:
            if group.state in ("asleep", "waking"):
                raise Asleep(f"model '{group.name}' is asleep; try again in a second", name, group)
            if group.state == "failed":
                raise NotReady(f"model '{group.name}' failed to load; GET /admin/models says why")
            raise NotReady(f"model '{group.name}' is loading; try again in a second")
        replica = replicas[0] if len(replicas) == 1 else min(replicas, key=lambda one: one.in_flight)
        if replica.facts.trouble is not None:
            raise UpstreamGone(f"model '{group.name}' can't answer now: {replica.facts.trouble}")
        if group.napping and replica.in_flight and time.monotonic() > group.nap_until:  # there is work for more of them
            group.napping = 0
            self._tend(group)
        return Lease(group.version, replica)

    async def woken(self, asleep: Asleep) -> Lease:
        """What `lease` would have given, once it is awake. Who is cancelled waits no longer; the load goes on.

        Raises what `lease` raises but Asleep, and Overloaded: too many wait, or there is no room.
        """
        while True:
            group: ReplicaSet = asleep.group
            await self._awake(group)
            try:  # it may have been replaced meanwhile, or have left again
                return self.lease(asleep.name) if group.is_unwanted else self._lease(asleep.name, group)
            except Asleep as again:
                asleep = again

    async def _awake(self, group: ReplicaSet) -> None:
        """Return once something else is to be said of it than that it is asleep. Raises what is in its way."""
        if self._is_stopping:
            raise _stopping()
        if group.state == "asleep":
            log.info("model %s wakes", group.name)
            group.state, group.napping, group.reason, group.failed = "waking", 0, None, None
            self._tend(group)
        if group.state != "waking":
            return
        if len(group.waiters) >= self._most_waiting:
            error = Overloaded(f"{len(group.waiters)} requests already wait until model '{group.name}' is loaded")
            error.retry_after_seconds = max(1.0, sum(group.load_seconds.values()))
            raise error
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        group.waiters.add(waiter)
        try:
            await waiter
        finally:
            group.waiters.discard(waiter)

    async def settled(self, model: str, seconds: float) -> ReplicaSet:
        """Follow the catalog now and wait until `model` is ready or failed. Raises NotFound, NotReady after `seconds`."""
        await self.follow()
        try:
            async with asyncio.timeout(seconds):
                while True:
                    desired = self._desired.get(model)
                    if desired is None:
                        raise ModelNotFound(f"no model '{model}' is deployed")
                    group = next((c for c in self._groups.get(model, []) if c.version.version == desired.version), None)
                    if group is not None and group.state in ("asleep", "waking"):
                        try:
                            await self._awake(group)
                        except NotReady:
                            if group.failed is None:
                                raise
                        continue
                    if group is not None and group.state in ("ready", "failed"):
                        return group
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise NotReady(f"model '{model}' is still loading after {seconds:.0f} s; ask for its state later") from None

    async def _watch(self, revision: int) -> None:
        is_away = False
        while True:
            await asyncio.sleep(self._poll_seconds)
            try:
                now = await asyncio.to_thread(self._catalog.revision)
                if now != revision or is_away:  # what is back may be another with the same number
                    await self.follow()
                    revision, is_away = now, False
            except Exception:  # the catalog may be away for a while; what runs goes on running
                if not is_away:
                    log.exception("can't follow the catalog; trying again")
                is_away = True

    async def follow(self) -> None:
        """Read the desired state now and begin to act on it."""
        async with self._following:  # or what was read before a change could be acted on after it
            self._act(*await asyncio.to_thread(self._read))

    def _act(self, desired: dict[str, Desired], versions: Mapping[tuple[str, int], Version]) -> None:
        self._desired = desired
        for model, want in desired.items():
            groups = self._groups.setdefault(model, [])
            for number in want.shares:
                version = versions[model, number]
                target = Target(version.digest, want.deployed_at)
                group = next((c for c in groups if c.version.version == number), None)
                if group is not None:
                    if group.target != target:
                        group.crashes = Crashes()
                        self._get_up(group, want)
                    group.version, group.target, group.desired = version, target, want
                if group is None or (group.state == "failed" and group.failed != target):
                    if group is not None:
                        groups.remove(group)
                    group = ReplicaSet(version, target, want, known=self._facts[version.digest])
                    if want.mode == "on-demand":  # what takes the place of another that is in use is loaded at once
                        group.state = "waking" if any(other.state == "ready" for other in groups) else "asleep"
                    groups.append(group)
                self._tend(group)
        self._tidy()

    def _get_up(self, group: ReplicaSet, want: Desired) -> None:
        """It was deployed anew: what is to be there from the start is loaded as then."""
        if group.state == "asleep" and want.mode != "on-demand":
            group.state, group.reason, group.failed = "loading", None, None
        if group.state != "asleep":
            group.napping = 0

    def _read(self) -> tuple[dict[str, Desired], dict[tuple[str, int], Version]]:
        """Blocking: the desired state, with every name resolved."""
        desired: dict[str, Desired] = {}
        versions: dict[tuple[str, int], Version] = {}
        for deployment in self._catalog.deployments():
            model = deployment.model
            try:
                pinned = model if deployment.version is None else f"{model}:{deployment.version}"
                primary = self._catalog.resolve(pinned)
                shares = {primary.version: 0.0}
                versions[model, primary.version] = primary
                for other, percent in (deployment.traffic or {}).items():
                    version = self._catalog.resolve(f"{model}:{int(other)}")
                    versions[model, version.version] = version
                    shares[version.version] = float(percent) / 100
                rest = 1.0 - sum(share for number, share in shares.items() if number != primary.version)
                shares[primary.version] = max(rest, 0.0)
                desired[model] = Desired(
                    primary.version,
                    shares,
                    deployment.replicas,
                    deployment.updated_at,
                    isolate=deployment.isolate,
                    mode=deployment.mode,
                    idle_seconds=deployment.idle_seconds,
                    options=deployment.options or {},
                )
            except MaasdamError as error:
                desired[model] = Desired(None, {}, deployment.replicas, deployment.updated_at, str(error))
        for version in versions.values():
            if version.digest not in self._facts:
                self._facts[version.digest] = self._known(version)
        return desired, versions

    def _share(self, model: str) -> ReplicaSet | None:
        """Where a request without a version goes, where traffic is shared among several."""
        groups = self._groups.get(model, ())
        desired = self._desired.get(model)
        if len(groups) < 2 or desired is None:
            return None
        shares = desired.shares
        stands_in = any(c.state == "ready" and c.version.version not in shares for c in groups)
        states = ("ready",) if stands_in else ANSWERING
        ready = [c for c in groups if c.state in states and shares.get(c.version.version) and c.trouble is None]
        if len(ready) < 2:
            return ready[0] if ready else None
        point = self._draw() * sum(shares[c.version.version] for c in ready)
        for group in ready:
            point -= shares[group.version.version]
            if point <= 0:
                return group
        return ready[-1]

    def _tend(self, group: ReplicaSet) -> None:
        """Have as many replicas as wanted, unless just that has failed."""
        while len(group.replicas) - len(group.outdated) > group.desired.replicas:
            self._retire_one(group, group.replicas[-1])
        for replica in group.outdated[group.desired.replicas :]:
            self._retire_one(group, replica)
        may_load = group.task is None and group.failed != group.target and not self._is_stopping
        if may_load and group.state != "asleep" and group.lacks:
            group.task = asyncio.create_task(self._bring_up(group))

    async def _bring_up(self, group: ReplicaSet) -> None:
        target = group.target
        try:
            while group.lacks and not group.is_unwanted:
                target = group.target
                await asyncio.sleep(group.crashes.pause)
                desired, is_waking = group.desired, group.state == "waking"
                try:
                    replica = await self._load(group.version, desired, is_waking or desired.mode == "pin")
                except Crashed as error:
                    self._crashed(group, str(error))
                    continue
                except Exception as error:
                    if isinstance(error, NoRoom) or group.target == target:
                        raise
                    log.warning("model %s failed to load, and is loaded as it was deployed since: %s", group.name, error)
                    continue
                if replica.load_seconds:
                    group.load_seconds = replica.load_seconds
                    self._when_loaded("wake" if is_waking else "start", replica.load_seconds)
                if group.is_unwanted or not group.lacks:  # since it began to load
                    self._spawn(self._retire([replica]))
                    return
                group.replicas.append(replica)
                group.ways[replica] = desired.way
                if group.outdated and desired.way == group.desired.way:
                    self._retire_one(group, group.outdated[0])
                replica.when_gone = partial(self._gone, group, replica)
                if group.state != "ready":
                    log.info("model %s is ready", group.name)
                    group.state, group.reason = "ready", None
                    self._tidy()
                    group.tell()
        except NoRoom as error:
            self._lie_down(group, str(error))
            if group.desired.mode == "pin":  # nobody has to ask for it
                if group.insists is not None:
                    group.insists.cancel()
                group.insists = asyncio.get_running_loop().call_later(NAP_SECONDS, self._insist, group)
        except Exception as error:
            self._fail(group, target, error)
        finally:
            group.task = None
            self._changed.set()

    def _gone(self, group: ReplicaSet, replica: Replica, gone: Gone) -> None:
        """A replica can answer nothing more: another takes its place, at once or, where it left on its own, when asked for."""
        if replica not in group.replicas or group.is_unwanted:
            return
        self._retire_one(group, replica, is_patient=not gone.is_crash)
        if not gone.is_crash:
            group.known = replica.facts
            if group.task is None:
                self._lie_down(group, gone.reason)
            elif not group.replicas:  # another is on its way
                group.state, group.napping = "waking", group.desired.replicas - 1
            self._changed.set()
            return
        if not group.replicas and group.state == "ready":
            group.state = "loading"
        log.warning("a replica of model %s is gone: %s", group.name, gone.reason)
        try:
            if gone.is_crash:
                self._crashed(group, gone.reason)
            self._tend(group)
        except Crashed as error:
            self._fail(group, group.target, error)
        self._changed.set()

    def _insist(self, group: ReplicaSet) -> None:
        """Try again whether there is room for what is pinned."""
        if self._is_stopping or group.is_unwanted or not group.napping or group.desired.mode != "pin":
            return
        if group.state == "asleep":
            group.state, group.failed = "waking", None
        group.napping = 0
        self._tend(group)

    def _lie_down(self, group: ReplicaSet, reason: str) -> None:
        """What is not there has no room, or no work: it comes back when it is asked for."""
        log.info("%d of %d replicas of model %s are up: %s", len(group.replicas), group.desired.replicas, group.name, reason)
        group.napping = group.desired.replicas - len(group.replicas)
        group.nap_until = time.monotonic() + NAP_SECONDS
        if not group.replicas:
            group.state, group.reason = "asleep", reason
            self._tidy()
            group.tell(lambda: NoRoom(f"model '{group.name}' can't be loaded now: {reason}"))

    def _crashed(self, group: ReplicaSet, reason: str) -> None:
        """Count a crash. Raises Crashed where they are too many."""
        group.crashes.add()
        if group.crashes.are_too_many:
            raise Crashed(f"it crashed {MOST} times within {WINDOW_SECONDS:.0f} s, the last time so: {reason}")

    def _fail(self, group: ReplicaSet, target: Target, error: Exception) -> None:
        log.error("model %s failed to load: %s", group.name, error, exc_info=not isinstance(error, MaasdamError))
        if not group.replicas:
            group.state = "failed"
        group.reason = f"{type(error).__name__}: {words(error)}"
        group.failed = target
        group.tell(lambda: NotReady(f"model '{group.name}' failed to load: {error}"))

    def _retire_one(self, group: ReplicaSet, replica: Replica, is_patient: bool = False) -> None:
        group.replicas.remove(replica)
        del group.ways[replica]
        replica.when_gone = None
        self._spawn(self._retire([replica], is_patient))

    def _tidy(self) -> None:
        """Drain what is not wanted any more, unless it stands in for a successor that is not ready."""
        for model, groups in list(self._groups.items()):
            want = self._desired.get(model)
            numbers = want.shares if want else {}
            successor = any(c.version.version in numbers and c.state in ("ready", "asleep") for c in groups)
            for group in list(groups):
                if group.version.version in numbers or (want and not successor and group.state == "ready"):
                    continue
                groups.remove(group)
                group.state = "stopping"
                group.tell()  # who waits asks again
                self._spawn(self._retire(group.replicas))
            if not groups and not want:
                del self._groups[model]
        self._changed.set()

    async def _retire(self, replicas: list[Replica], is_patient: bool = False) -> None:
        """Wait until no request holds a lease, then close. With `is_patient` it takes as long as it takes."""
        waited = 0.0
        while any(replica.in_flight for replica in replicas):
            if waited >= self._drain_seconds and (not is_patient or self._is_stopping):
                break
            await asyncio.sleep(0.02)
            waited += 0.02
        for replica in replicas:
            try:
                await apart("closing", replica.close)
            except Exception:
                log.exception("a replica failed to close")

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def _stopping() -> NotReady:
    return NotReady("the service is stopping; send it to another, or again later")
