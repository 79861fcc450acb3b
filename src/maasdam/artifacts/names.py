"""How a model's name becomes one of its versions. Knows NAME, NAME:3 and NAME@alias; changes nothing."""

from __future__ import annotations

import re

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from maasdam.core import NOT_IN_NAMES, split_name
from maasdam.database.tables import AliasRow, DeploymentRow, VersionRow
from maasdam.errors import InvalidInput, ModelNotFound, NotFound

NAME = re.compile(rf"(?=.{{1,96}}\Z)[a-z0-9][a-z0-9._-]*(/(?!({'|'.join(NOT_IN_NAMES)})\Z)[a-z0-9][a-z0-9._-]*)?")
ALIAS = re.compile(r"[a-z0-9][a-z0-9._-]{0,95}")
PROD = "prod"
UNVERIFIED, VERIFIED = "unverified", "verified"
"""A version that came from elsewhere: its report is as true as whoever made it, or was made again here."""


def check_name(name: str) -> None:
    """Raise InvalidInput unless `name` can name a model."""
    if not NAME.fullmatch(name):
        raise InvalidInput(
            f"'{name[:100]}' can't name a model; use at most 96 lower-case letters, digits, '.', '_' and '-', "
            "the first a letter or digit; one '/' may part an owner from the name, as in acme/photos"
        )


def check_alias(alias: str) -> None:
    """Raise InvalidInput unless `alias` can be an alias."""
    if not ALIAS.fullmatch(alias) or alias.isdigit():
        raise InvalidInput(f"'{alias}' can't be an alias; use lower-case letters, digits, '.', '_' and '-', not digits alone")


def find(session: Session, name: str) -> VersionRow:
    """NAME, NAME:3 or NAME@alias; bare NAME is NAME@prod, else the newest that passed. Raises NotFound."""
    model, version, alias = split_name(name)
    if not NAME.fullmatch(model) or not ALIAS.fullmatch(alias or PROD):  # not every database takes any text
        raise no_model(session, name)
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
            raise NotFound(f"no alias '{model}@{alias}'; {have}") if _has(session, model) else no_model(session, model)
        version = named.version
    if version is not None:
        row = session.scalars(query.where(VersionRow.version == version)).one_or_none()
    else:
        passed = query.where(VersionRow.passed.is_(True), is_known_here()).order_by(VersionRow.version.desc()).limit(1)
        row = session.scalars(passed).one_or_none()
    if row is not None:
        return row
    newest = session.scalar(select(func.max(VersionRow.version)).where(VersionRow.model == model))
    if newest is None:
        raise no_model(session, model)
    if version is None:
        raise NotFound(f"no version of '{model}' has passed its verification here; name one, such as '{model}:{newest}'")
    raise NotFound(f"no version '{model}:{version}'; the newest is {newest}")


def is_known_here() -> ColumnElement[bool]:
    """Whether a version's report was made here: it was built here, or verified again after it came from elsewhere."""
    return VersionRow.imported.is_(None) | (VersionRow.imported == VERIFIED)


def _has(session: Session, model: str) -> bool:
    return session.scalar(select(func.count()).select_from(VersionRow).where(VersionRow.model == model)) != 0


def no_model(session: Session, model: str) -> ModelNotFound:
    """The error for a name there is no model of: says which there are."""
    names = session.scalars(select(VersionRow.model).distinct().order_by(VersionRow.model).limit(20)).all()
    have = f"there are: {', '.join(names)}" if names else "the catalog is empty; begin with: maasdam build"
    printable = "".join(c if c.isprintable() else "\ufffd" for c in model[:200])
    return ModelNotFound(f"no model '{printable}'; {have}")


def aliases_of(session: Session, model: str) -> dict[int, tuple[str, ...]]:
    """The model's aliases by version."""
    out: dict[int, tuple[str, ...]] = {}
    for row in session.scalars(select(AliasRow).where(AliasRow.model == model).order_by(AliasRow.alias)):
        out[row.version] = (*out.get(row.version, ()), row.alias)
    return out


def served_by(session: Session, model: str) -> set[int]:
    """The versions that the model's deployment brings up."""
    row = session.get(DeploymentRow, model)
    if row is None:
        return set()
    served = {int(number) for number in row.traffic or {}} | ({row.shadow} if row.shadow is not None else set())
    if row.version is not None:
        return served | {row.version}
    try:
        return served | {find(session, model).version}
    except NotFound:
        return served
