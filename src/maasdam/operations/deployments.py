"""What is deployed, and what the service makes of it: what every door tells and changes. Knows catalog and router together.

Refuses to know protocols. Reading what is served costs nothing; what reads or changes the catalog waits in a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from maasdam.core import SPEECH_RECOGNITION, TEXT_GENERATION, UNTRIED, Sampling, split_name
from maasdam.engines import ENGINES, HOLD_FORMS, check_options
from maasdam.errors import InvalidField, InvalidModel, NotFound, NotReady
from maasdam.operations.fleet import Follow, Settle, standing, worst
from maasdam.serving.router import ANSWERING
from maasdam.serving.upstreams.place import ELSEWHERE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from maasdam.artifacts.catalog import Version
    from maasdam.core import AudioPayload, Batching, Signature
    from maasdam.operations.service import Service
    from maasdam.serving.router import ReplicaSet

MOST_LIKELIEST = int(Sampling.RANGES["logprobs"][2])
TOLD_SECONDS = 5.0
"""A load has ended after load_seconds; so much later at most it is known why."""


@dataclass(frozen=True, slots=True)
class ServedVersion:
    """One version in the service, as it is now: of several workers, in the one where it is worst, see `fleet.WORST_FIRST`."""

    version: Version
    state: str
    reason: str | None
    """Why it failed, or is asleep."""
    replicas: int
    """In each worker."""
    signature: Signature | None
    """None while it loads, and for what generates."""
    batching: Batching | None
    load_seconds: Mapping[str, float]
    """What its last load took, by phase."""
    context_length: int | None = None
    """Tokens of prompt and answer together; None for what writes no text."""
    calls: str | None = None
    """How its template has tools called; None where it knows none."""
    reasons: bool = False
    """Whether it sets reasoning apart."""
    abilities: Mapping[str, Any] = field(default_factory=dict)
    """See `Facts`."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What its deployment asks of its engine."""
    likeliest_bytes: int | None = None
    """Of its memory, what telling the likeliest tokens takes, where something is there for that alone."""

    @property
    def name(self) -> str:
        """NAME:VERSION."""
        return f"{self.version.model}:{self.version.version}"

    @property
    def is_upstream(self) -> bool:
        """Whether another server runs it, or llama.cpp's."""
        return self.version.engine in ELSEWHERE

    @property
    def holds_forms(self) -> bool:
        """Whether its engine can hold answers to a JSON schema, an expression or a grammar."""
        if self.is_upstream:  # what it does not say it is asked, and its answers are checked
            return self.version.task == TEXT_GENERATION and self.abilities.get("structured_output") is not False
        return self.version.task == TEXT_GENERATION and self.version.engine in HOLD_FORMS

    @property
    def likeliest(self) -> int:
        """How many of the likeliest tokens its engine tells in each place of a text."""
        if self.is_upstream:
            most = self.abilities.get("top_logprobs", MOST_LIKELIEST)
            return min(max(int(most), 0), MOST_LIKELIEST) if self.version.task == TEXT_GENERATION else 0
        info = ENGINES.get(self.version.engine)
        asked = self.options.get("logprobs", 0)
        return 0 if info is None or self.version.task != TEXT_GENERATION else max(info.likeliest, asked)

    @property
    def is_answering(self) -> bool:
        """Whether requests are answered: of what is asleep too, which they wake."""
        return self.state in ANSWERING


def served_versions(service: Service, model: str | None = None) -> list[ServedVersion]:
    """Every version in the service, or those of one model, in the order of names."""
    return [_of(service, group) for group in service.router.groups() if model in (None, group.version.model)]


def served_version(service: Service, name: str) -> ServedVersion:
    """The version that NAME, NAME:VERSION or NAME@ALIAS means now, ready or not. Raises NotFound, NotReady."""
    return _of(service, service.router.find(name))


def default_versions(service: Service) -> list[ServedVersion]:
    """The version that each deployed name means now; none for a name that means nothing."""
    return [_of(service, group) for model in service.router.models() if (group := service.router.serving(model)) is not None]


def check_holds(service: Service, name: str, field: str) -> None:
    """Raise InvalidField where the model's engine can't hold answers to the form that a field asks for."""
    with contextlib.suppress(NotReady):
        one = served_version(service, name)
        if one.version.task == TEXT_GENERATION and not one.holds_forms:
            able = sorted({other.version.model for other in default_versions(service) if other.holds_forms})
            others = f"models that can: {', '.join(able)}" if able else "no deployed model can"
            raise InvalidField(
                f"'{field}' is not supported by model '{one.name}', whose engine is {one.version.engine}; {others}",
                field,
                "unsupported_parameter",
            )


def check_tells_ids(service: Service, name: str) -> None:
    """Raise InvalidField where the model is another server's, which tells no tokens by their ids."""
    with contextlib.suppress(NotReady):
        if served_version(service, name).is_upstream:
            field = "return_token_ids"
            raise InvalidField(
                f"'{field}' is not supported by model '{name:.100}', which tells tokens by their text alone", field
            )


def check_biases(service: Service, name: str) -> None:
    """Raise InvalidField where the model's engine can add nothing to the logits of single tokens."""
    with contextlib.suppress(NotReady):
        one = served_version(service, name)
        if not one.is_upstream:
            field = "logit_bias"
            what = f"'{field}' is not supported by model '{one.name}', whose engine is {one.version.engine}; GGUF models can"
            raise InvalidField(what, field, "unsupported_parameter")


def check_hears(service: Service, name: str, payload: AudioPayload) -> None:
    """Raise InvalidField where a recording is to be written as the model can't, as far as that is known before it is heard."""
    with contextlib.suppress(NotReady):
        one = served_version(service, name)
        if one.version.task != SPEECH_RECOGNITION or one.state != "ready" or (one.is_upstream and not one.abilities):
            return
        asked = {
            "translations": (payload.translates, "model", "translates nothing; POST /v1/audio/transcriptions"),
            "word_times": (payload.timestamps, "timestamp_granularities", "gives no times of words; leave 'word' out"),
            "transcript_logprobs": (payload.logprobs, "include", "tells no log-probabilities; leave 'include' out"),
            "transcript_prompt": (bool(payload.prompt), "prompt", "reads no prompt; leave it out"),
            "transcript_temperature": (payload.temperature > 0, "temperature", "samples nothing; leave it out, or send 0"),
        }
        for ability, (is_asked, field, what) in asked.items():
            if is_asked and not one.abilities.get(ability):
                raise InvalidField(f"'{field}': model '{one.name}' {what}", field, "unsupported_parameter")


def unserved_names(service: Service) -> dict[str, str]:
    """The deployed names that mean no version, and why."""
    return {model: want.reason or "" for model, want in service.router.models().items() if want.version is None}


def deployed_names(service: Service) -> list[str]:
    """Every deployed name, also those that mean no version."""
    return list(service.router.models())


async def catalog_versions(service: Service) -> list[tuple[str, int]]:
    """Every version in the catalog, deployed or not."""
    return [(version.model, version.version) for version in await asyncio.to_thread(service.catalog.versions)]


async def deploy(service: Service, name: str, **how: Any) -> dict[str, Any]:
    """Bring NAME or NAME:VERSION up, or change how it is served (see `Catalog.deploy`); returns at once.

    Raises NotFound, InvalidInput, Unsupported, Conflict.
    """
    version = await asyncio.to_thread(service.catalog.resolve, name)  # NotFound is told before what is wrong with the shares
    check_options(version.engine, how.get("options") or {})
    deployment = await asyncio.to_thread(service.catalog.deploy, name, **how)
    await follow_everywhere(service)
    return asdict(deployment)


async def load(service: Service, name: str) -> None:
    """Deploy NAME or NAME:VERSION and wait until it is in memory; what is deployed so stays as it is, and is woken.

    Raises NotFound, NotReady, Overloaded (there is no room), InvalidModel (it can't be loaded).
    """
    await asyncio.to_thread(_deploy_or_wake, service, name)
    model, seconds = split_name(name)[0], service.settings.load_seconds + TOLD_SECONDS
    group, _ = await asyncio.gather(
        service.router.settled(model, seconds), service.fleet.tell(Settle(model, seconds), seconds + TOLD_SECONDS)
    )
    await service.fleet.say(standing(service))
    loaded = _of(service, group)
    if loaded.state == "failed":
        raise InvalidModel(f"model '{loaded.name}' failed to load: {loaded.reason}")
    if loaded.state == "loading":
        raise NotReady(f"model '{loaded.name}' is still loading after {seconds:.0f} s; ask for its state later")


async def undeploy(service: Service, model: str) -> None:
    """Take a model out of the service; requests in flight finish. Raises NotFound."""
    await asyncio.to_thread(service.catalog.undeploy, model)
    await follow_everywhere(service)


async def follow_everywhere(service: Service) -> None:
    """Have this worker and every other act on what the catalog has now."""
    await asyncio.gather(service.router.follow(), service.fleet.tell(Follow()))
    await service.fleet.say(standing(service))


async def deployment_rows(service: Service) -> list[dict[str, Any]]:
    """What should be served, and under "serving" what is."""
    rows, memory = [], await service.memory()
    for deployment in await asyncio.to_thread(service.catalog.deployments):
        serving = [
            {"version": one.version.version, "state": one.state, "reason": one.reason, "replicas": one.replicas}
            | _weight(one, memory)
            | (one.batching.facts() if one.batching else {})
            for one in served_versions(service, deployment.model)
        ]
        rows.append(asdict(deployment) | {"serving": serving, "reason": unserved_names(service).get(deployment.model)})
    return rows


async def catalog_rows(service: Service) -> list[dict[str, Any]]:
    """Every version in the catalog, and how those that are deployed do."""
    versions = await asyncio.to_thread(service.catalog.versions)
    tried = await asyncio.to_thread(_batching, service, [version.digest for version in versions])
    here = {one.name: one for one in served_versions(service)}
    rows, memory = [], await service.memory()
    for version in versions:
        one = here.get(f"{version.model}:{version.version}")
        row = {key: value for key, value in asdict(version).items() if key not in ("report", "passes")}
        row |= {"state": one.state if one else None, "reason": one.reason if one else None}
        row |= _weight(one, memory) if one else {"memory_bytes": None, "load_seconds": None}
        rows.append(row | (one.batching if one and one.batching else tried[version.digest]).facts())
    return rows


async def catalog_row(service: Service, name: str) -> dict[str, Any]:
    """One version in the catalog, with its report. Raises NotFound."""
    version = await asyncio.to_thread(service.catalog.resolve, name)
    return asdict(version) | (await asyncio.to_thread(_batching, service, [version.digest]))[version.digest].facts()


def _deploy_or_wake(service: Service, name: str) -> None:
    model, version, alias = split_name(name)
    if alias is not None:
        version = service.catalog.resolve(name).version
    now = next((one for one in service.catalog.deployments() if one.model == model), None)
    if now is None or now.version != version:
        service.catalog.deploy(name)
    else:
        how = {key: value for key, value in asdict(now).items() if key not in ("model", "version", "updated_at")}
        service.catalog.deploy(name, **how)


def _weight(one: ServedVersion, memory: Mapping[tuple[str, int], int]) -> dict[str, Any]:
    """What it holds, where that is measured, and what its last load took by phase, where it was one of this worker's."""
    return {
        "memory_bytes": memory.get((one.version.model, one.version.version)),
        "likeliest_bytes": one.likeliest_bytes,
        "load_seconds": {phase: round(took, 4) for phase, took in one.load_seconds.items()} or None,
    }


def _of(service: Service, group: ReplicaSet) -> ServedVersion:
    own, version, facts = (*group.standing, len(group.replicas)), group.version, group.facts
    others = service.fleet.others
    state, reason, replicas = worst(own, version.model, version.version, others) if others else own
    told = facts.signature, facts.batching, group.load_seconds, facts.context_length
    spoken = facts.calls, facts.reasons, facts.abilities
    return ServedVersion(version, state, reason, replicas, *told, *spoken, group.desired.options, facts.likeliest_bytes)


def _batching(service: Service, digests: Iterable[str]) -> dict[str, Batching]:
    """What was found of artifacts, by digest."""
    batchings = {}
    for digest in set(digests):
        try:
            batchings[digest] = service.batching(digest)
        except (NotFound, KeyError):  # its files are gone
            batchings[digest] = UNTRIED
    return batchings
