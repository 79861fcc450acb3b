"""Which deployments are to have processes of their own."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """None of those there are."""
    op.add_column("deployments", sa.Column("isolate", sa.Boolean, nullable=False, server_default=sa.false()))
