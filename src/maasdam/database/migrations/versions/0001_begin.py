"""Models, versions, aliases, deployments, builds, keys, ledger."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make every table."""
    time = sa.DateTime(timezone=True)
    op.create_table(
        "models",
        sa.Column("name", sa.String(96), primary_key=True),
        sa.Column("last_version", sa.Integer, nullable=False),
    )
    op.create_table(
        "versions",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("model", sa.String(96), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("digest", sa.String(80), nullable=False),
        sa.Column("task", sa.String(64)),
        sa.Column("format", sa.String(16), nullable=False),
        sa.Column("engine", sa.String(32), nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("recipe", sa.Text, nullable=False),
        sa.Column("passed", sa.Boolean),
        sa.Column("report", sa.JSON),
        sa.Column("passes", sa.JSON, nullable=False),
        sa.Column("created_at", time, nullable=False),
        sa.UniqueConstraint("model", "version"),
    )
    op.create_index("ix_versions_model", "versions", ["model"])
    op.create_table(
        "aliases",
        sa.Column("model", sa.String(96), primary_key=True),
        sa.Column("alias", sa.String(96), primary_key=True),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("previous", sa.JSON, nullable=False),
        sa.Column("updated_at", time, nullable=False),
    )
    op.create_table(
        "deployments",
        sa.Column("model", sa.String(96), primary_key=True),
        sa.Column("version", sa.Integer),
        sa.Column("replicas", sa.Integer, nullable=False),
        sa.Column("traffic", sa.JSON),
        sa.Column("shadow", sa.Integer),
        sa.Column("updated_at", time, nullable=False),
    )
    revision_table = op.create_table(
        "revision",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("number", sa.BigInteger, nullable=False),
    )
    op.bulk_insert(revision_table, [{"id": 1, "number": 0}])
    op.create_table(
        "builds",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("name", sa.String(96), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("stage", sa.String(64), nullable=False),
        sa.Column("progress", sa.Float),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("error", sa.Text),
        sa.Column("started_at", time, nullable=False),
        sa.Column("heartbeat_at", time, nullable=False),
        sa.Column("finished_at", time),
    )
    op.create_table(
        "keys",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("scopes", sa.JSON, nullable=False),
        sa.Column("created_at", time, nullable=False),
        sa.Column("revoked_at", time),
    )
    op.create_table(
        "ledger",
        sa.Column("request_id", sa.String(128), primary_key=True),
        sa.Column("at", time, nullable=False),
        sa.Column("key_id", sa.String(32), sa.ForeignKey("keys.id")),
        sa.Column("caller", sa.String(100), nullable=False),
        sa.Column("model", sa.String(256), nullable=False),
        sa.Column("version", sa.Integer),
        sa.Column("task", sa.String(64)),
        sa.Column("endpoint", sa.String(128), nullable=False),
        sa.Column("status", sa.Integer, nullable=False),
        sa.Column("items", sa.Integer, nullable=False),
        sa.Column("prompt_tokens", sa.Integer),
        sa.Column("completion_tokens", sa.Integer),
        sa.Column("audio_seconds", sa.Float),
        sa.Column("seconds", sa.Float, nullable=False),
        sa.Column("compute_seconds", sa.Float),
        sa.Column("joules", sa.Float),
        sa.Column("energy_method", sa.Text),
        sa.Column("grams_co2e", sa.Float),
        sa.Column("price", sa.Float),
        sa.Column("currency", sa.String(3)),
    )
    op.create_index("ledger_at", "ledger", ["at"])
    op.create_index("ledger_key_at", "ledger", ["key_id", "at"])
