"""Whether a version came from elsewhere."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """NULL: made here. What was imported before is not known any more, and counts as made here."""
    op.add_column("versions", sa.Column("imported", sa.String(16)))
