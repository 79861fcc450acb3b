"""What deployments ask of their engines beyond what artifacts say."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Nothing, of those there are."""
    op.add_column("deployments", sa.Column("options", sa.JSON))
