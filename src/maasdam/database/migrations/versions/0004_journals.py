"""How far each journal of answered requests is in the ledger."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """A row a file."""
    op.create_table(
        "journals",
        sa.Column("name", sa.String(96), primary_key=True),
        sa.Column("end", sa.BigInteger, nullable=False),
    )
