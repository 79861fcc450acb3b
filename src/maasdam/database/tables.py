"""The tables. Knows columns and constraints; refuses to know what any of it is for.

Times are UTC. JSON columns hold what is read whole and never searched.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, Boolean, DateTime, Float, ForeignKey, Index, Integer, String, Text, UniqueConstraint
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator


class UtcTime(TypeDecorator[datetime]):
    """A moment, in UTC, aware on both ways (SQLite forgets time zones)."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Aware in, UTC out."""
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """UTC in, aware out."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """All tables."""

    type_annotation_map = {dict[str, Any]: JSON, list[Any]: JSON, datetime: UtcTime}  # noqa: RUF012  SQLAlchemy reads it so


class VersionRow(Base):
    """One version of a model."""

    __tablename__ = "versions"
    __table_args__ = (UniqueConstraint("model", "version"),)

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    model: Mapped[str] = mapped_column(String(96), index=True)
    version: Mapped[int] = mapped_column(Integer)
    digest: Mapped[str] = mapped_column(String(80))
    task: Mapped[str | None] = mapped_column(String(64))
    format: Mapped[str] = mapped_column(String(16))
    engine: Mapped[str] = mapped_column(String(32))
    source: Mapped[str] = mapped_column(Text)
    recipe: Mapped[str] = mapped_column(Text)
    passed: Mapped[bool | None] = mapped_column(Boolean)
    report: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    passes: Mapped[list[Any]] = mapped_column(JSON)
    imported: Mapped[str | None] = mapped_column(String(16))
    created_at: Mapped[datetime] = mapped_column(UtcTime)


class ModelRow(Base):
    """One name; counts its versions, so that a deleted number is never given again."""

    __tablename__ = "models"

    name: Mapped[str] = mapped_column(String(96), primary_key=True)
    last_version: Mapped[int] = mapped_column(Integer)


class AliasRow(Base):
    """NAME@ALIAS; `previous` lists the versions it named before, newest last."""

    __tablename__ = "aliases"

    model: Mapped[str] = mapped_column(String(96), primary_key=True)
    alias: Mapped[str] = mapped_column(String(96), primary_key=True)
    version: Mapped[int] = mapped_column(Integer)
    previous: Mapped[list[Any]] = mapped_column(JSON)
    updated_at: Mapped[datetime] = mapped_column(UtcTime)


class DeploymentRow(Base):
    """Desired state: one row a served name."""

    __tablename__ = "deployments"

    model: Mapped[str] = mapped_column(String(96), primary_key=True)
    version: Mapped[int | None] = mapped_column(Integer)
    replicas: Mapped[int] = mapped_column(Integer)
    traffic: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    shadow: Mapped[int | None] = mapped_column(Integer)
    mode: Mapped[str] = mapped_column(String(16), server_default="always")
    idle_seconds: Mapped[float | None] = mapped_column(Float)
    isolate: Mapped[bool] = mapped_column(Boolean, server_default="0")
    options: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    updated_at: Mapped[datetime] = mapped_column(UtcTime)


class RevisionRow(Base):
    """One row; grows with each change of versions, aliases and deployments."""

    __tablename__ = "revision"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    number: Mapped[int] = mapped_column(BigInteger)


class BuildRow(Base):
    """One run of a recipe."""

    __tablename__ = "builds"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(96))
    state: Mapped[str] = mapped_column(String(16))
    stage: Mapped[str] = mapped_column(String(64))
    progress: Mapped[float | None] = mapped_column(Float)
    message: Mapped[str] = mapped_column(Text)
    error: Mapped[str | None] = mapped_column(Text)
    started_at: Mapped[datetime] = mapped_column(UtcTime)
    heartbeat_at: Mapped[datetime] = mapped_column(UtcTime)
    finished_at: Mapped[datetime | None] = mapped_column(UtcTime)


class KeyRow(Base):
    """An API key; the secret itself is nowhere."""

    __tablename__ = "keys"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(100))
    hash: Mapped[str] = mapped_column(String(64))
    scopes: Mapped[list[Any]] = mapped_column(JSON)
    created_at: Mapped[datetime] = mapped_column(UtcTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcTime)


class JournalRow(Base):
    """A file of answered requests, and up to which byte of it they are in the ledger."""

    __tablename__ = "journals"

    name: Mapped[str] = mapped_column(String(96), primary_key=True)
    end: Mapped[int] = mapped_column(BigInteger)


class LedgerRow(Base):
    """One request, answered or not. Unmeasured is NULL."""

    __tablename__ = "ledger"
    __table_args__ = (Index("ledger_at", "at"), Index("ledger_key_at", "key_id", "at"))

    request_id: Mapped[str] = mapped_column(String(128), primary_key=True)
    at: Mapped[datetime] = mapped_column(UtcTime)
    key_id: Mapped[str | None] = mapped_column(String(32), ForeignKey("keys.id"))
    caller: Mapped[str] = mapped_column(String(100))
    model: Mapped[str] = mapped_column(String(256))
    version: Mapped[int | None] = mapped_column(Integer)
    task: Mapped[str | None] = mapped_column(String(64))
    endpoint: Mapped[str] = mapped_column(String(128))
    status: Mapped[int] = mapped_column(Integer)
    error_code: Mapped[str | None] = mapped_column(String(64))
    items: Mapped[int] = mapped_column(Integer)
    prompt_tokens: Mapped[int | None] = mapped_column(Integer)
    completion_tokens: Mapped[int | None] = mapped_column(Integer)
    audio_seconds: Mapped[float | None] = mapped_column(Float)
    seconds: Mapped[float] = mapped_column(Float)
    compute_seconds: Mapped[float | None] = mapped_column(Float)
    joules: Mapped[float | None] = mapped_column(Float)
    energy_method: Mapped[str | None] = mapped_column(Text)
    grams_co2e: Mapped[float | None] = mapped_column(Float)
    price: Mapped[float | None] = mapped_column(Float)
    currency: Mapped[str | None] = mapped_column(String(3))


class ResponseRow(Base):
    """One kept answer of /v1/responses, with what was asked. `beat_at`: when its writer last said so; NULL at its end."""

    __tablename__ = "responses"
    __table_args__ = (
        Index("responses_owner", "owner", "created_at", "size"),
        Index("responses_expires", "expires_at"),
        Index("responses_beat", "beat_at"),
    )

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    owner: Mapped[str] = mapped_column(String(100))
    previous: Mapped[str | None] = mapped_column(String(40))
    depth: Mapped[int] = mapped_column(Integer)
    status: Mapped[str] = mapped_column(String(16))
    body: Mapped[str] = mapped_column(Text)
    items: Mapped[str] = mapped_column(Text)
    size: Mapped[int] = mapped_column(BigInteger)
    chain_size: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(UtcTime)
    expires_at: Mapped[datetime] = mapped_column(UtcTime)
    beat_at: Mapped[datetime | None] = mapped_column(UtcTime)
