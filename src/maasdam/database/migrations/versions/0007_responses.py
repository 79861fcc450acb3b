"""Answers that are kept for whoever asked."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """There are none yet."""
    time = sa.DateTime(timezone=True)
    op.create_table(
        "responses",
        sa.Column("id", sa.String(40), primary_key=True),
        sa.Column("owner", sa.String(100), nullable=False),
        sa.Column("previous", sa.String(40)),
        sa.Column("depth", sa.Integer, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("items", sa.Text, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("chain_size", sa.BigInteger, nullable=False),
        sa.Column("created_at", time, nullable=False),
        sa.Column("expires_at", time, nullable=False),
        sa.Column("beat_at", time),
    )
    op.create_index("responses_owner", "responses", ["owner", "created_at", "size"])
    op.create_index("responses_expires", "responses", ["expires_at"])
    op.create_index("responses_beat", "responses", ["beat_at"])
