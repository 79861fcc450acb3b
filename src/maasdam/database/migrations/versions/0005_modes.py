"""When the replicas of a deployment are in memory."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """What was deployed before is loaded at the start, and stays."""
    op.add_column("deployments", sa.Column("mode", sa.String(16), nullable=False, server_default="always"))
    op.add_column("deployments", sa.Column("idle_seconds", sa.Float))
