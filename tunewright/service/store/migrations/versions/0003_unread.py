"""A job that was paused before its files were read; the hash of a part, by which one that is sent again is known."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("unread", sa.Boolean(), nullable=True))
    op.add_column("parts", sa.Column("sha256", sa.Text(), nullable=True))
