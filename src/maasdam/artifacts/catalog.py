"""Names, versions, aliases, deployments and builds. Knows which artifact is what; refuses to know bytes and engines.

Every change is one transaction and raises the revision, which a service polls to follow.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any, Literal, TypeVar, get_args

from sqlalchemy import Engine, delete, false, select, update
from sqlalchemy.orm import Session

from maasdam.artifacts.names import (
    NAME,
    PROD,
    UNVERIFIED,
    VERIFIED,
    aliases_of,
    check_alias,
    check_name,
    find,
    no_model,
    served_by,
)
from maasdam.core import Artifact, split_name
from maasdam.database.tables import AliasRow, Base, BuildRow, DeploymentRow, ModelRow, RevisionRow, VersionRow
from maasdam.errors import Conflict, InvalidInput, NotFound, VerificationFailed

T = TypeVar("T")

Mode = Literal["always", "on-demand", "pin"]
"""When a deployment's replicas are in memory: from the start, making room for others when idle; from the first request; or
from the start and never leaving."""
MODES: tuple[str, ...] = get_args(Mode)


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a model, as registered."""

    model: str
    version: int
    digest: str
    task: str | None
    format: str
    engine: str
    source: str
    recipe: str
    passed: bool | None
    report: dict[str, Any] | None
    passes: list[Any]
    created_at: datetime
    aliases: tuple[str, ...]
    deployed: bool
    imported: str | None = None
    """"unverified": it came from elsewhere with the report of whoever made it; "verified": it was verified here since."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """Desired state of one name. `version` None follows the name (its alias prod, else the newest that passed)."""

    model: str
    version: int | None
    replicas: int
    traffic: dict[str, float] | None
    shadow: int | None
    mode: str
    """One of MODES."""
    idle_seconds: float | None
    """After so long without a request its replicas leave, and the next request brings them back; None: they don't."""
    updated_at: datetime
    """When it was deployed last, or how it is served was changed."""
    isolate: bool = False
    """Whether its replicas are to have processes of their own."""
    options: dict[str, Any] | None = None
    """What is asked of its engine beyond what the artifact's settings say."""


@dataclass(frozen=True, slots=True)
class BuildState:
    """One run of a recipe: running, done, failed, or interrupted (its process was killed)."""

    id: str
    name: str
    state: str
    stage: str
    progress: float | None
    message: str
    error: str | None
    started_at: datetime
    heartbeat_at: datetime
    finished_at: datetime | None


class Catalog:
    """The catalog in one database. Thread-safe; several processes may use it at once."""

    def __init__(self, database: Engine) -> None:
        self._writes = database
        self._reads = database.execution_options(is_reader=True)

    def register(
        self,
        model: str,
        artifact: Artifact,
        *,
        source: str,
        recipe: str,
        report: Mapping[str, Any] | None,
        passes: Sequence[Any] = (),
        is_imported: bool = False,
    ) -> Version:
        """The artifact as the model's next version; a number is never given twice, not even after a deletion.

        `is_imported` says that the report was made elsewhere. Numbers of the report that are no numbers (NaN, infinite)
        are kept as null. Raises InvalidInput for a bad name, Conflict when the artifact's files were deleted meanwhile.
        """
        check_name(model)
        with self._change() as session:
            if not artifact.path.exists():  # inside the change: nobody collects artifacts meanwhile
                raise Conflict(f"the files of {artifact.digest} were deleted while '{model}' was built; build it again")
            counter = session.get(ModelRow, model, with_for_update=True)
            if counter is None:
                counter = ModelRow(name=model, last_version=0)
                session.add(counter)
            counter.last_version += 1
            row = VersionRow(
                model=model,
                version=counter.last_version,
                digest=artifact.digest,
                task=artifact.task,
                format=artifact.format,
                engine=artifact.engine,
                source=source,
                recipe=recipe,
                passed=None if report is None else report["passed"],
                report=None if report is None else _finite(report),
                passes=_finite(list(passes)),
                imported=UNVERIFIED if is_imported else None,
                created_at=datetime.now(UTC),
            )
            session.add(row)
            session.flush()
            return _version(row, (), False)

    def resolve(self, name: str) -> Version:
        """NAME, NAME:3 or NAME@alias; bare NAME is NAME@prod, else the newest that passed.

        Raises NotFound, saying what there is.
        """
        with Session(self._reads) as session:
            return _whole(session, find(session, name))

    def versions(self, model: str | None = None) -> list[Version]:
        """Every version (of one model), oldest first. Raises NotFound for a model there is none of."""
        with Session(self._reads) as session:
            query = select(VersionRow).order_by(VersionRow.model, VersionRow.version)
            if model is not None:
                query = query.where(VersionRow.model == model if NAME.fullmatch(model) else false())
            rows = session.scalars(query).all()
            if model is not None and not rows:
                raise no_model(session, model)
            models = {row.model for row in rows}
            aliases = {name: aliases_of(session, name) for name in models}
            served = {name: served_by(session, name) for name in models}
            return [_version(row, aliases[row.model].get(row.version, ()), row.version in served[row.model]) for row in rows]

    def verified(self, name: str, report: Mapping[str, Any]) -> Version:
        """An imported version was verified here: this is its report from now on. Raises InvalidInput for one built here."""
        with self._change() as session:
            row = find(session, name)
            if row.imported is None:
                raise built_here(row.model, row.version)
            row.report, row.passed, row.imported = _finite(report), report["passed"], VERIFIED
            session.flush()
            return _whole(session, row)

    def promote(self, name: str, alias: str = PROD, trust: bool = False) -> Version:
        """Let NAME@alias be this version. Raises VerificationFailed when its report failed or there is none.

        One whose report was made elsewhere is refused too until it was verified here; `trust` takes it at its word.
        """
        check_alias(alias)
        with self._change() as session:
            row = find(session, name)
            if row.passed is not True:
                failures = (row.report or {}).get("failures") or ["it was never verified"]
                raise VerificationFailed(
                    f"'{row.model}:{row.version}' can't be promoted: {'; '.join(failures)}. "
                    "Build it with another recipe, or with limits that allow this"
                )
            _refuse_unverified(row, trust, "promoted")
            now = session.get(AliasRow, (row.model, alias), with_for_update=True)
            if now is None:
                now = AliasRow(model=row.model, alias=alias, version=row.version, previous=[], updated_at=datetime.now(UTC))
                session.add(now)
            elif now.version != row.version:
                now.previous = [*now.previous, now.version]
                now.version, now.updated_at = row.version, datetime.now(UTC)
            session.flush()
            return _whole(session, row)

    def rollback(self, model: str, alias: str = PROD) -> Version:
        """Let NAME@alias be what it was before. Raises NotFound when it was nothing."""
        check_alias(alias)
        check_name(model)
        with self._change() as session:
            now = session.get(AliasRow, (model, alias), with_for_update=True)
            existing = set(session.scalars(select(VersionRow.version).where(VersionRow.model == model)))
            before = [v for v in (now.previous if now else []) if v in existing]
            if now is None or not before:
                raise NotFound(f"'{model}@{alias}' was no other version before; see: maasdam models show {model}")
            now.version, now.previous, now.updated_at = before[-1], before[:-1], datetime.now(UTC)
            session.flush()
            return _whole(session, find(session, f"{model}:{now.version}"))

    def delete(self, name: str) -> list[str]:
        """Delete NAME:VERSION, or NAME with all its versions; returns the digests nothing refers to any more.

        Raises Conflict while it is deployed or an alias names it.
        """
        model, version, alias = split_name(name)
        if alias:
            raise InvalidInput(f"'{name}' is an alias; delete a version: {model}:NUMBER")
        with self._change() as session:
            if version is None:
                rows = list(session.scalars(select(VersionRow).where(VersionRow.model == model)))
                if not rows:
                    raise no_model(session, model)
            else:
                rows = [find(session, name)]
            if not served_by(session, model).isdisjoint(row.version for row in rows):
                raise Conflict(f"'{name}' is deployed; first: maasdam undeploy {model}")
            aliases = aliases_of(session, model)
            if version is not None and aliases.get(version):
                raise Conflict(f"'{name}' is '{model}@{aliases[version][0]}'; promote another version first")
            digests = {row.digest for row in rows}
            for row in rows:
                session.delete(row)
            if version is None:
                session.execute(delete(AliasRow).where(AliasRow.model == model))
                session.execute(delete(DeploymentRow).where(DeploymentRow.model == model))
            session.flush()
            used = set(session.scalars(select(VersionRow.digest).where(VersionRow.digest.in_(digests))))
            return sorted(digests - used)

    @contextmanager
    def held(self) -> Iterator[set[str]]:
        """The digests that versions refer to, while no process can register another: the time to delete the rest."""
        with self._change() as session:
            yield set(session.scalars(select(VersionRow.digest)))

    def deploy(
        self,
        name: str,
        replicas: int = 1,
        traffic: Mapping[Any, float] | None = None,
        shadow: int | None = None,
        trust: bool = False,
        *,
        mode: str = "always",
        idle_seconds: float | None = None,
        isolate: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> Deployment:
        """Desired state: NAME follows its alias prod (else the newest that passed), NAME:VERSION stays.

        `traffic` is percent by version number, the rest going to the deployed one; `shadow` is a version number; `mode`,
        `idle_seconds`, `isolate` and `options` as in `Deployment`.
        Raises NotFound, InvalidInput, and VerificationFailed for a version whose report failed, or came from elsewhere
        and was not verified here, unless it was promoted or there is `trust`.
        """
        model, version, alias = split_name(name)
        if replicas < 1:
            raise InvalidInput(f"replicas is {replicas}; it takes 1 or more")
        _check_mode(mode, idle_seconds)
        shares = _shares(traffic)
        with self._change() as session:
            others = [*shares, *([] if shadow is None else [shadow])]
            wanted = [find(session, name), *(find(session, f"{model}:{number}") for number in others)]
            failed = next((row for row in wanted if row.passed is False), None)
            if failed is not None:
                reasons = "; ".join((failed.report or {}).get("failures", []))
                raise VerificationFailed(f"'{model}:{failed.version}' failed its verification: {reasons}")
            for each in wanted:
                _refuse_unverified(each, trust or bool(aliases_of(session, model).get(each.version)), "deployed")
            row = session.get(DeploymentRow, model, with_for_update=True) or DeploymentRow(model=model)
            row.version = None if version is None and alias is None else wanted[0].version
            row.replicas, row.shadow, row.updated_at = replicas, shadow, datetime.now(UTC)
            row.mode, row.idle_seconds, row.isolate, row.options = mode, idle_seconds, isolate, dict(options or {}) or None
            row.traffic = {str(number): share for number, share in shares.items()} or None
            session.add(row)
            session.flush()
            return _as(Deployment, row)

    def undeploy(self, model: str) -> None:
        """Take a name out of the desired state. Raises NotFound when it is not in it."""
        name = split_name(model)[0]
        with self._change() as session:
            row = session.get(DeploymentRow, name) if NAME.fullmatch(name) else None
            if row is None:
                raise NotFound(f"'{model}' is not deployed; see: maasdam status")
            session.delete(row)

    def deployments(self) -> list[Deployment]:
        """All desired state, by name."""
        with Session(self._reads) as session:
            return [_as(Deployment, row) for row in session.scalars(select(DeploymentRow).order_by(DeploymentRow.model))]

    def revision(self) -> int:
        """Grows with each change of versions, aliases and deployments."""
        with self._reads.connect() as connection:
            return int(connection.execute(select(RevisionRow.number).where(RevisionRow.id == 1)).scalar_one())

    def start_build(self, name: str, build_id: str | None = None) -> str:
        """A row for a build that begins now, under an id of the caller's or a new one; returns it."""
        check_name(name)
        now = datetime.now(UTC)
        build_id = build_id or uuid.uuid4().hex
        row = BuildRow(id=build_id, name=name, state="running", stage="", message="", started_at=now, heartbeat_at=now)
        with Session(self._writes) as session, session.begin():
            session.add(row)
            return row.id

    def heartbeat(self, build_id: str, stage: str, progress: float | None, message: str) -> None:
        """The build is alive and at `stage`, `progress` 0-1 through it."""
        self._update_build(build_id, stage=stage[:64], progress=progress, message=message)

    def finish_build(self, build_id: str, error: str | None = None) -> None:
        """The build is done, or failed with `error`."""
        self._update_build(build_id, state="failed" if error else "done", error=error, finished_at=datetime.now(UTC))

    def interrupt_builds(self, is_gone: Callable[[BuildState], bool]) -> None:
        """Note which running builds will never end: those that `is_gone` says have no process any more."""
        with Session(self._reads) as session:
            rows = [_as(BuildState, row) for row in session.scalars(select(BuildRow).where(BuildRow.state == "running"))]
        for build in [build for build in rows if is_gone(build)]:
            stage = f" in '{build.stage}'" if build.stage else ""
            reason = f"its process was killed{stage}; build it again: passes that had finished are taken from the cache"
            with self._writes.begin() as connection:  # one that ended meanwhile stays as it ended
                which = (BuildRow.id == build.id) & (BuildRow.state == "running")
                connection.execute(
                    update(BuildRow).where(which).values(state="interrupted", error=reason, finished_at=build.heartbeat_at)
                )

    def builds(self) -> list[BuildState]:
        """The hundred latest builds, newest first."""
        with Session(self._reads) as session:
            rows = session.scalars(select(BuildRow).order_by(BuildRow.started_at.desc()).limit(100)).all()
            return [_as(BuildState, row) for row in rows]

    def _update_build(self, build_id: str, **values: Any) -> None:
        with self._writes.begin() as connection:
            connection.execute(update(BuildRow).where(BuildRow.id == build_id).values(heartbeat_at=datetime.now(UTC), **values))

    @contextmanager
    def _change(self) -> Iterator[Session]:
        with Session(self._writes, expire_on_commit=False) as session, session.begin():
            session.execute(update(RevisionRow).where(RevisionRow.id == 1).values(number=RevisionRow.number + 1))
            yield session


def _refuse_unverified(row: VersionRow, trust: bool, done: str) -> None:
    if row.imported == UNVERIFIED and not trust:
        name = f"{row.model}:{row.version}"
        raise VerificationFailed(
            f"'{name}' can't be {done}: it was imported, and its report is as true as whoever made it. "
            f"Verify it here (maasdam models verify {name}), or pass --trust if you know who made it"
        )


def _check_mode(mode: str, idle_seconds: float | None) -> None:
    if mode not in MODES:
        raise InvalidInput(f"mode is '{mode}'; it takes {', '.join(MODES)}")
    if idle_seconds is not None and not 0 < idle_seconds < math.inf:
        raise InvalidInput(f"idle_seconds is {idle_seconds:g}; it takes more than 0, or leave it out")
    if mode == "pin" and idle_seconds is not None:
        raise InvalidInput("what is pinned never leaves, so it has no idle time; leave one of the two out")


def _shares(traffic: Mapping[Any, float] | None) -> dict[int, float]:
    try:
        shares = {int(number): float(share) for number, share in (traffic or {}).items()}
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"traffic is percent by version number, as in 2=10; this is {dict(traffic or {})}") from error
    if not all(0 < share <= 100 for share in shares.values()) or sum(shares.values()) > 100:
        raise InvalidInput(f"traffic shares are percent, more than 0 and at most 100 in sum; these are {shares}")
    return shares


def built_here(model: str, version: int) -> InvalidInput:
    """Why a version that was not imported is not verified again."""
    return InvalidInput(
        f"'{model}:{version}' was built here, so its report is of what it was made from; verified again it would be compared "
        f"with itself. To measure it anew build it again: maasdam build; see: maasdam models show {model}:{version}"
    )


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _whole(session: Session, row: VersionRow) -> Version:
    return _version(row, aliases_of(session, row.model).get(row.version, ()), row.version in served_by(session, row.model))


def _version(row: VersionRow, aliases: tuple[str, ...], deployed: bool) -> Version:
    names = [name for name in Version.__dataclass_fields__ if name not in ("aliases", "deployed")]
    return Version(**{name: getattr(row, name) for name in names}, aliases=aliases, deployed=deployed)


def _as(kind: type[T], row: Base) -> T:
    """A row as the facts of the same names."""
    return kind(**{field.name: getattr(row, field.name) for field in fields(kind)})  # type: ignore[arg-type]  # of dataclasses
