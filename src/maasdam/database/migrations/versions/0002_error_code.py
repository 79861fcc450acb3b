"""What a refused request was refused for."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """A code beside the status."""
    op.add_column("ledger", sa.Column("error_code", sa.String(64)))
