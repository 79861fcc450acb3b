"""Names, versions, aliases, deployments and builds. Knows which artifact is what; refuses to know bytes and engines.

Every change is one transaction and raises the revision, which a service polls to follow.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Engine, delete, func, select, update
from sqlalchemy.orm import Session

from maasdam.core import Artifact, split_name
from maasdam.database.tables import AliasRow, BuildRow, DeploymentRow, ModelRow, RevisionRow, VersionRow
from maasdam.errors import Conflict, InvalidInput, NotFound, VerificationFailed

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,95}")
PROD = "prod"


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


@dataclass(frozen=True, slots=True)
class Deployment:
    """Desired state of one name. `version` None follows the name (its alias prod, else the newest that passed)."""

    model: str
    version: int | None
    replicas: int
    traffic: dict[str, float] | None
    shadow: int | None


@dataclass(frozen=True, slots=True)
class BuildState:
    """One run of a recipe: running, done or failed."""

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
    ) -> Version:
        """The artifact as the model's next version. Raises InvalidInput for a bad name."""
        check_name(model)
        with self._change() as session:
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
                passed=None if report is None else bool(report["passed"]),
                report=None if report is None else dict(report),
                passes=list(passes),
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
            row = _find(session, name)
            return _version(row, _aliases(session, row.model).get(row.version, ()), _deployed(session, row.model))

    def versions(self, model: str | None = None) -> list[Version]:
        """Every version (of one model), oldest first. Raises NotFound for a model there is none of."""
        with Session(self._reads) as session:
            query = select(VersionRow).order_by(VersionRow.model, VersionRow.version)
            rows = session.scalars(query.where(VersionRow.model == model) if model else query).all()
            if model and not rows:
                raise NotFound(_no_model(session, model))
            out = []
            for row in rows:
                served = self._served_version(session, row.model)
                out.append(_version(row, _aliases(session, row.model).get(row.version, ()), served == row.version))
            return out

    def promote(self, name: str, alias: str = PROD) -> Version:
        """Let NAME@alias be this version. Raises VerificationFailed when its report failed or there is none."""
        _check_alias(alias)
        with self._change() as session:
            row = _find(session, name)
            if row.passed is not True:
                failures = (row.report or {}).get("failures") or ["it was never verified"]
                raise VerificationFailed(
                    f"'{row.model}:{row.version}' can't be promoted: {'; '.join(failures)}. "
                    "Build it with another recipe, or with limits that allow this"
                )
            now = session.get(AliasRow, (row.model, alias), with_for_update=True)
            if now is None:
                now = AliasRow(model=row.model, alias=alias, version=row.version, previous=[], updated_at=datetime.now(UTC))
                session.add(now)
            elif now.version != row.version:
                now.previous = [*now.previous, now.version]
                now.version, now.updated_at = row.version, datetime.now(UTC)
            session.flush()
            return _version(row, _aliases(session, row.model).get(row.version, ()), _deployed(session, row.model))

    def rollback(self, model: str, alias: str = PROD) -> Version:
        """Let NAME@alias be what it was before. Raises NotFound when it was nothing."""
        with self._change() as session:
            now = session.get(AliasRow, (model, alias), with_for_update=True)
            existing = set(session.scalars(select(VersionRow.version).where(VersionRow.model == model)))
            before = [v for v in (now.previous if now else []) if v in existing]
            if now is None or not before:
                raise NotFound(f"'{model}@{alias}' was no other version before; see: maasdam models show {model}")
            now.version, now.previous, now.updated_at = before[-1], before[:-1], datetime.now(UTC)
            session.flush()
            row = _find(session, f"{model}:{now.version}")
            return _version(row, _aliases(session, model).get(row.version, ()), _deployed(session, model))

    def delete(self, name: str) -> list[str]:
        """Delete NAME:VERSION, or NAME with all its versions; returns the digests nothing refers to any more.

        Raises Conflict while it is deployed or an alias names it.
        """
        model, version, alias = split_name(name)
        if alias:
            raise InvalidInput(f"'{name}' is an alias; delete a version: {model}:NUMBER")
        with self._change() as session:
            if version is None and session.get(ModelRow, model) is None:
                raise NotFound(_no_model(session, model))
            every = select(VersionRow).where(VersionRow.model == model)
            rows = [_find(session, name)] if version else list(session.scalars(every))
            if _deployed(session, model) and (version is None or self._served_version(session, model) == version):
                raise Conflict(f"'{name}' is deployed; first: maasdam undeploy {model}")
            aliases = _aliases(session, model)
            if version is not None and aliases.get(version):
                raise Conflict(f"'{name}' is '{model}@{aliases[version][0]}'; promote another version first")
            digests = {row.digest for row in rows}
            for row in rows:
                session.delete(row)
            if version is None:
                session.execute(delete(AliasRow).where(AliasRow.model == model))
            session.flush()
            used = set(session.scalars(select(VersionRow.digest).where(VersionRow.digest.in_(digests))))
            return sorted(digests - used)

    def deploy(
        self, name: str, replicas: int = 1, traffic: Mapping[Any, float] | None = None, shadow: int | None = None
    ) -> Deployment:
        """Desired state: NAME follows its alias prod (else the newest that passed), NAME:VERSION stays.

        `traffic` is percent by version number, the rest going to the deployed one. Raises NotFound, InvalidInput and
        VerificationFailed for a version whose report failed.
        """
        model, version, alias = split_name(name)
        if replicas < 1:
            raise InvalidInput(f"replicas is {replicas}; it takes 1 or more")
        with self._change() as session:
            wanted = [_find(session, name), *(_find(session, f"{model}:{int(v)}") for v in traffic or {})]
            failed = next((row for row in wanted if row.passed is False), None)
            if failed is not None:
                reasons = "; ".join((failed.report or {}).get("failures", []))
                raise VerificationFailed(f"'{model}:{failed.version}' failed its verification: {reasons}")
            if traffic and not (all(0 <= share <= 100 for share in traffic.values()) and sum(traffic.values()) <= 100):
                raise InvalidInput(f"traffic shares are percent, 0-100 in sum; these are {dict(traffic)}")
            row = session.get(DeploymentRow, model, with_for_update=True) or DeploymentRow(model=model)
            row.version = wanted[0].version if version or alias else None
            row.replicas, row.shadow, row.updated_at = replicas, shadow, datetime.now(UTC)
            row.traffic = {str(int(v)): float(share) for v, share in traffic.items()} if traffic else None
            session.add(row)
            session.flush()
            return _deployment(row)

    def undeploy(self, model: str) -> None:
        """Take a name out of the desired state. Raises NotFound when it is not in it."""
        with self._change() as session:
            row = session.get(DeploymentRow, split_name(model)[0])
            if row is None:
                raise NotFound(f"'{model}' is not deployed; see: maasdam status")
            session.delete(row)

    def deployments(self) -> list[Deployment]:
        """All desired state, by name."""
        with Session(self._reads) as session:
            return [_deployment(row) for row in session.scalars(select(DeploymentRow).order_by(DeploymentRow.model))]

    def revision(self) -> int:
        """Grows with each change of versions, aliases and deployments."""
        with self._reads.connect() as connection:
            return int(connection.execute(select(RevisionRow.number).where(RevisionRow.id == 1)).scalar_one())

    def start_build(self, name: str) -> str:
        """A row for a build that begins now; returns its id."""
        check_name(name)
        now = datetime.now(UTC)
        row = BuildRow(id=uuid.uuid4().hex, name=name, state="running", stage="", message="", started_at=now, heartbeat_at=now)
        with Session(self._writes) as session, session.begin():
            session.add(row)
            return row.id

    def heartbeat(self, build_id: str, stage: str, progress: float | None, message: str) -> None:
        """The build is alive and at `stage`, `progress` 0-1 through it."""
        self._update_build(build_id, stage=stage, progress=progress, message=message)

    def finish_build(self, build_id: str, error: str | None = None) -> None:
        """The build is done, or failed with `error`."""
        self._update_build(build_id, state="failed" if error else "done", error=error, finished_at=datetime.now(UTC))

    def builds(self) -> list[BuildState]:
        """The hundred latest builds, newest first."""
        with Session(self._reads) as session:
            rows = session.scalars(select(BuildRow).order_by(BuildRow.started_at.desc()).limit(100)).all()
            names = BuildState.__dataclass_fields__
            return [BuildState(**{name: getattr(row, name) for name in names}) for row in rows]

    def _update_build(self, build_id: str, **values: Any) -> None:
        with self._writes.begin() as connection:
            connection.execute(update(BuildRow).where(BuildRow.id == build_id).values(heartbeat_at=datetime.now(UTC), **values))

    @contextmanager
    def _change(self) -> Iterator[Session]:
        with Session(self._writes, expire_on_commit=False) as session, session.begin():
            session.execute(update(RevisionRow).where(RevisionRow.id == 1).values(number=RevisionRow.number + 1))
            yield session

    @staticmethod
    def _served_version(session: Session, model: str) -> int | None:
        row = session.get(DeploymentRow, model)
        if row is None:
            return None
        try:
            return row.version or _find(session, model).version
        except NotFound:
            return None


def check_name(name: str) -> None:
    """Raise InvalidInput unless `name` can name a model."""
    if not NAME.fullmatch(name):
        raise InvalidInput(
            f"'{name[:100]}' can't name a model; use at most 96 lower-case letters, digits, '.', '_' and '-', "
            "the first a letter or digit"
        )


def _check_alias(alias: str) -> None:
    if not NAME.fullmatch(alias) or alias.isdigit():
        raise InvalidInput(f"'{alias}' can't be an alias; use lower-case letters, digits, '.', '_' and '-', not digits alone")


def _find(session: Session, name: str) -> VersionRow:
    model, version, alias = split_name(name)
    query = select(VersionRow).where(VersionRow.model == model)
    if alias is None and version is None:
        named = session.get(AliasRow, (model, PROD))
        if named is not None:
            version = named.version
    elif alias is not None:
        named = session.get(AliasRow, (model, alias))
        if named is None:
            others = session.scalars(select(AliasRow.alias).where(AliasRow.model == model)).all()
            have = f"its aliases are: {', '.join(others)}" if others else "it has no aliases"
            raise NotFound(f"no alias '{model}@{alias}'; {have}" if _has(session, model) else _no_model(session, model))
        version = named.version
    if version is not None:
        row = session.scalars(query.where(VersionRow.version == version)).one_or_none()
    else:
        passed = query.where(VersionRow.passed.is_(True)).order_by(VersionRow.version.desc()).limit(1)
        row = session.scalars(passed).one_or_none()
    if row is not None:
        return row
    newest = session.scalar(select(func.max(VersionRow.version)).where(VersionRow.model == model))
    if newest is None:
        raise NotFound(_no_model(session, model))
    if version is None:
        raise NotFound(f"no version of '{model}' has passed its verification; name one, such as '{model}:{newest}'")
    raise NotFound(f"no version '{model}:{version}'; the newest is {newest}")


def _has(session: Session, model: str) -> bool:
    return session.scalar(select(func.count()).select_from(VersionRow).where(VersionRow.model == model)) != 0


def _no_model(session: Session, model: str) -> str:
    names = session.scalars(select(VersionRow.model).distinct().order_by(VersionRow.model).limit(20)).all()
    have = f"there are: {', '.join(names)}" if names else "the catalog is empty; begin with: maasdam build"
    return f"no model '{model[:200]}'; {have}"


def _aliases(session: Session, model: str) -> dict[int, tuple[str, ...]]:
    out: dict[int, tuple[str, ...]] = {}
    for row in session.scalars(select(AliasRow).where(AliasRow.model == model).order_by(AliasRow.alias)):
        out[row.version] = (*out.get(row.version, ()), row.alias)
    return out


def _deployed(session: Session, model: str) -> bool:
    return session.get(DeploymentRow, model) is not None


def _version(row: VersionRow, aliases: tuple[str, ...], deployed: bool) -> Version:
    names = [name for name in Version.__dataclass_fields__ if name not in ("aliases", "deployed")]
    return Version(**{name: getattr(row, name) for name in names}, aliases=aliases, deployed=deployed)


def _deployment(row: DeploymentRow) -> Deployment:
    return Deployment(row.model, row.version, row.replicas, row.traffic, row.shadow)
