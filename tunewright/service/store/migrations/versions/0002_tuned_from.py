"""A model names the tuned model that its job began from."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("models", sa.Column("tuned_from", sa.Text(), nullable=True))
    jobs = sa.table("jobs", sa.column("id"), sa.column("spec", sa.JSON))
    models = sa.table("models", sa.column("job"), sa.column("tuned_from"))
    begun = jobs.c.spec["model"].as_string()
    of_job = sa.select(begun).where(jobs.c.id == models.c.job, begun.like("ft:%")).scalar_subquery()
    op.execute(models.update().values(tuned_from=of_job))
    op.drop_index("ix_models_base", "models")
    op.create_index("ix_models_tuned_from", "models", ["tuned_from"])
